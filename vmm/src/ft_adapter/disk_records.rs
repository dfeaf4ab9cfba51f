//! What the disks of a host have on record about the VM's last run, asked of the disk program before any
//! device is started.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use crossbeam_channel::bounded;
use ft_proto::VmId;
use ft_proto::witness::{DiskState, Disks};
use host_kit::sandbox::Needs;
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::unistd::pipe2;
use serde::Deserialize;

use crate::config::{DiskConfig, VmConfig};
use crate::process::{DISK_PROGRAM, launch};

/// How long a disk may take to tell its record.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What the disk program tells of one disk.
#[derive(Clone, Debug, Default, Deserialize)]
struct ImageRecord {
    #[serde(default)]
    vm: Option<VmId>,
    state: DiskState,
    /// What the disk was last used for, if it has a record.
    #[serde(default)]
    role: Option<String>,
    #[serde(default)]
    reason: Option<String>,
}

/// What the disks that the guest writes through us say, all together. What is wrong with them is logged.
#[must_use]
pub fn read(config: &VmConfig) -> Disks {
    let (disks, doubt) = read_with_reason(config);
    if let Some(doubt) = doubt {
        tracing::warn!("disks: {doubt}");
    }
    disks
}

/// Whether a disk holds what no VM of a pair has written, as far as is known: content without a record, or
/// with one that cannot be read.
#[must_use]
pub fn hold_other_data(config: &VmConfig) -> bool {
    let told = images(config).map(|image| ask(image).unwrap_or_else(unusable));
    told.into_iter().any(|told| told.role.is_none() && told.state != DiskState::Hole)
}

/// As [`read`]; and why, if nothing can be started from them, or it is not
/// certain that they are what they say.
#[must_use]
pub fn read_with_reason(config: &VmConfig) -> (Disks, Option<String>) {
    let told: Vec<(String, ImageRecord)> =
        images(config).map(|image| (image.display().to_string(), ask(image).unwrap_or_else(unusable))).collect();
    let vm = told.iter().find_map(|(_, told)| told.vm);
    match combine(&told) {
        Ok(state) => {
            let doubt = told.iter().find_map(|(image, told)| Some(format!("{image}: {}", told.reason.as_ref()?)));
            (Disks { vm, state }, doubt)
        }
        Err(why) => (Disks { vm, state: DiskState::Unusable }, Some(why)),
    }
}

fn images(config: &VmConfig) -> impl Iterator<Item = &Path> {
    let written = |disk: &&DiskConfig| !disk.readonly && !disk.vhost_user;
    config.disks.iter().flatten().filter(written).filter_map(|disk| disk.path.as_deref())
}

fn ask(image: &Path) -> Result<ImageRecord, String> {
    let arguments: [OsString; 4] = ["record".into(), "--json".into(), "--".into(), image.into()];
    let output =
        output(DISK_PROGRAM, &arguments, ANSWER_LIMIT).map_err(|e| format!("cannot run {DISK_PROGRAM}: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|e| format!("{DISK_PROGRAM} gave no usable answer: {e}"))
}

/// What `program` prints. One that takes too long, as on a file system that hangs, is killed, and left to end
/// when it can.
fn output(program: &str, arguments: &[OsString], limit: Duration) -> io::Result<Output> {
    let ((out, stdout), (err, stderr)) = (pipe2(OFlag::O_CLOEXEC)?, pipe2(OFlag::O_CLOEXEC)?);
    let child = launch(program, arguments, (Some(stdout.as_fd()), stderr.as_fd()), &[])?;
    drop((stdout, stderr));
    let (tell, told) = bounded(1);
    host_kit::thread::spawn("disk-record", Needs::NOTHING, move || {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let all = File::from(out).read_to_end(&mut stdout).and_then(|_| File::from(err).read_to_end(&mut stderr));
        // Nobody may wait for it any more.
        let _ = tell.send(all.map(|_| (stdout, stderr)));
    })?;
    if let Ok(read) = told.recv_timeout(limit) {
        let (stdout, stderr) = read?;
        return Ok(Output { status: child.wait()?, stdout, stderr });
    }
    // It may have ended just now.
    child.signal(Signal::SIGKILL);
    host_kit::thread::spawn("disk-record", Needs::CHILDREN, move || drop(child.wait()))?;
    Err(io::Error::other(format!("no answer in {} s: does the file system of the image hang?", limit.as_secs())))
}

fn unusable(why: String) -> ImageRecord {
    ImageRecord { state: DiskState::Unusable, reason: Some(why), ..ImageRecord::default() }
}

/// The least that is proven by all, or why they contradict each other.
fn combine(told: &[(String, ImageRecord)]) -> Result<DiskState, String> {
    if let Some((image, told)) = told.iter().find(|(_, told)| told.state == DiskState::Unusable) {
        return Err(format!("{image}: {}", told.reason.as_deref().unwrap_or("no VM can be started from it")));
    }
    let mut owned = told.iter().filter_map(|(image, told)| Some((image, told.vm?)));
    if let Some((first, vm)) = owned.next()
        && let Some((second, other)) = owned.find(|(_, other)| *other != vm)
    {
        return Err(format!("{first} is of VM {vm}, {second} of VM {other}"));
    }
    let mut all = told.iter();
    let Some((mut image, mut least)) = all.next().map(|(image, told)| (image, told.state)) else {
        return Ok(DiskState::None);
    };
    for (other_image, other) in all {
        let both = least.with(other.state).ok_or_else(|| {
            let [one, two] = [least, other.state].map(words);
            format!("{image} {one}, {other_image} {two}: they are from different points in time")
        })?;
        if both != least {
            (image, least) = (other_image, both);
        }
    }
    Ok(least)
}

fn words(state: DiskState) -> String {
    match state {
        DiskState::None => "is not written by the guest".to_owned(),
        DiskState::Fresh => "has content and no record".to_owned(),
        DiskState::Hole => "is empty and has no record".to_owned(),
        DiskState::Alone(term) => format!("ran alone in term {term}"),
        DiskState::Ended(term) => format!("was shut down in term {term}"),
        DiskState::Protected(term) => format!("ran with a standby in term {term}"),
        DiskState::Copy(term) => format!("is a copy of term {term}"),
        DiskState::Unusable => "cannot be used".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use ft_proto::Term;

    use super::DiskState::{Alone, Copy, Ended, Fresh, Hole, Protected, Unusable};
    use super::*;

    fn told(states: &[DiskState]) -> Vec<(String, ImageRecord)> {
        let told = |state: &DiskState| ImageRecord { state: *state, vm: Some(VmId(7)), ..ImageRecord::default() };
        states.iter().enumerate().map(|(at, state)| (format!("/disk{at}"), told(state))).collect()
    }

    #[test]
    fn a_program_that_does_not_answer_is_not_waited_for() {
        let error = output("sleep", &["1000".into()], Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().starts_with("no answer in"), "{error}");
        assert_eq!(output("echo", &["word".into()], ANSWER_LIMIT).unwrap().stdout, b"word\n");
    }

    #[test]
    fn what_the_program_says_is_understood() {
        let text = br#"{"record":"/a.pollux","vm":"00000000000000000000000000000007","role":"alone","ended":12,
            "hole":false,"state":{"ended":12}}"#;
        let told: ImageRecord = serde_json::from_slice(text).unwrap();
        assert_eq!((told.vm, told.state), (Some(VmId(7)), Ended(Term(12))));
        let told: ImageRecord = serde_json::from_slice(br#"{"record":null,"hole":true,"state":"hole"}"#).unwrap();
        assert_eq!((told.vm, told.state), (None, Hole));
    }

    #[test]
    fn the_disk_that_proves_least_counts() {
        let t = Term;
        for (states, state) in [
            (&[][..], DiskState::None),
            (&[Hole, Hole], Hole),
            (&[Hole, Fresh, Hole], Fresh),
            (&[Ended(t(4)), Ended(t(3))], Ended(t(3))),
            (&[Ended(t(3)), Alone(t(4)), Ended(t(3))], Alone(t(3))),
            (&[Alone(t(4)), Protected(t(3))], Protected(t(3))),
            (&[Protected(t(5)), Ended(t(3))], Protected(t(3))),
            (&[Copy(t(5)), Copy(t(5))], Copy(t(5))),
            (&[Alone(t(6)), Copy(t(5)), Copy(t(5))], Copy(t(5))),
        ] {
            assert_eq!(combine(&told(states)), Ok(state), "{states:?}");
            let backwards: Vec<_> = states.iter().rev().copied().collect();
            assert_eq!(combine(&told(&backwards)), Ok(state), "{backwards:?}");
        }
    }

    #[test]
    fn disks_that_do_not_belong_together_are_told() {
        let t = Term;
        for states in [
            [Copy(t(5)), Copy(t(6))],
            // It became a standby again, and only one of its disks was overwritten.
            [Copy(t(6)), Alone(t(5))],
            [Copy(t(6)), Protected(t(5))],
            [Copy(t(6)), Ended(t(5))],
            [Copy(t(6)), Hole],
            [Alone(t(6)), Hole],
            [Ended(t(6)), Fresh],
            [Alone(t(6)), Unusable],
        ] {
            let why = combine(&told(&states)).unwrap_err();
            assert!(why.contains("/disk1"), "{why}");
            let backwards = [states[1], states[0]];
            assert!(combine(&told(&backwards)).is_err(), "{backwards:?}");
        }
        let mut two = told(&[Alone(t(1)), Alone(t(1))]);
        two[1].1.vm = Some(VmId(8));
        let why = combine(&two).unwrap_err();
        assert!(why.contains(&VmId(7).to_string()) && why.contains(&VmId(8).to_string()), "{why}");
        two[1].1.vm = None;
        assert_eq!(combine(&two), Ok(Alone(t(1))), "a record of an earlier version names no VM");
    }

    #[test]
    fn disks_that_the_guest_does_not_write_do_not_count() {
        let disk = |readonly, vhost_user| DiskConfig {
            path: Some("/none".into()),
            readonly,
            vhost_user,
            ..Default::default()
        };
        let config = VmConfig { disks: Some(vec![disk(true, false), disk(false, true)]), ..VmConfig::default() };
        assert_eq!(read_with_reason(&config), (Disks::default(), None));
        assert_eq!(read(&VmConfig::default()), Disks::default());
    }
}
