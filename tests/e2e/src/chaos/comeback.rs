//! Hosts that come back as they should not: with a word of yesterday, without their witness, with other
//! disks.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

use super::pair::{Pair, Seen};
use super::plan::Backup;
use crate::artifacts::copy;
use crate::host::letter;
use crate::topology::Topology;
use crate::{Error, Result, image, wait};

/// Long enough for a host that waits to ask the witness again, more than once.
const A_WHILE: Duration = Duration::from_secs(6);
const EVENT_LIMIT: Duration = Duration::from_secs(20);
const SAME_LIMIT: Duration = Duration::from_secs(60);
/// What has changed so soon after the death of a process may pass for its own last write.
const APART: Duration = Duration::from_millis(200);
/// Places that are written to in an image, and how much.
const PLACES: usize = 16;
const PLACE_BYTES: usize = 700;

/// A dead host is told to run the VM although the witness is in `term`, which is over: it is refused, with
/// the reason.
///
/// # Errors
/// When it is not.
pub fn stale_force(pair: &mut Pair, topology: &Topology, host: u8, term: u64) -> Result<()> {
    let (code, words) = pair.refused(host, topology, &format!("role=primary,force={term}"))?;
    // By the witness, or by that host itself.
    let told = ["runs this VM", "runs the VM"].iter().any(|reason| words.contains(reason));
    if code == Some(1) && told {
        return Ok(());
    }
    let answer = format!("with force={term}, which is over, it ended with {code:?}: {words}");
    Err(Error::Protocol { from: format!("host {}", letter(host)), answer })
}

/// A dead host comes back, and where the witness's record should be is nothing: it stays a standby without a
/// session, says why, and makes no record. Then it is killed again.
///
/// # Errors
/// When it does anything else.
pub fn unmounted_witness(pair: &mut Pair, topology: &Topology, host: u8) -> Result<()> {
    let place = pair.witness().empty_place(pair.artifacts())?;
    pair.revive_with(host, topology, &place)?;
    wait::until("a word of why it waits", EVENT_LIMIT, || {
        let events = pair.host(host).ft_events()?;
        let told = events.iter().any(|event| {
            event["event"] == "started-as-standby" && event["detail"].to_string().contains("no record of this VM")
        });
        told.then_some(Some(())).ok_or_else(|| unexpected(host, format!("events {events:?}")))
    })?;
    let start = Instant::now();
    while start.elapsed() < A_WHILE {
        let status = pair.host(host).ft_status()?;
        if pair.look(host) != Seen::StandsBy || status["state"] != "standby-empty" {
            return Err(unexpected(host, format!("it should wait without a session: {status}")));
        }
        wait::pass(APART)?;
    }
    if Path::new(&place).exists() {
        return Err(unexpected(host, format!("it has made a record at {place}")));
    }
    pair.kill_host(host)
}

/// Writes to a dead host's image, at places that `seed` decides.
///
/// # Errors
/// When it cannot be written to.
pub fn change_image(pair: &Pair, host: u8, seed: u64) -> Result<()> {
    wait::pass(APART)?;
    let path = pair.host(host).image();
    let file = OpenOptions::new().write(true).open(path).map_err(Error::file("open", path))?;
    let size = file.metadata().map_err(Error::file("look at", path))?.len();
    let mut chance = Xoshiro256PlusPlus::seed_from_u64(seed);
    for _ in 0..PLACES {
        let at = chance.random_range(0..size.saturating_sub(PLACE_BYTES as u64));
        file.write_all_at(&[chance.random(); PLACE_BYTES], at).map_err(Error::file("write to", path))?;
    }
    Ok(())
}

/// A copy of what a host's disk consists of, made while it is in use.
#[derive(Debug)]
pub struct Copy {
    /// What it is a copy of, and where it is.
    files: Vec<(PathBuf, PathBuf)>,
}

impl Copy {
    /// Copies image, record, or both of `host`.
    ///
    /// # Errors
    /// When they cannot be copied.
    pub fn of(pair: &Pair, host: u8, what: Backup) -> Result<Self> {
        let image = pair.disk(host).path("image");
        let record = image.with_added_extension("pollux");
        let files = match what {
            Backup::Both => vec![image, record],
            Backup::Image => vec![image],
            Backup::Record => vec![record],
        };
        let backups = files.into_iter().zip(["backup.image", "backup.record"]);
        let files: Vec<_> = backups.map(|(file, name)| (file, pair.artifacts().path(name))).collect();
        for (file, backup) in &files {
            copy(file, backup, "a standby's disk has it")?;
        }
        Ok(Self { files })
    }

    /// Puts it back, in the place of what the dead host has now. Whether that makes a difference: a record
    /// may not have been written since.
    ///
    /// # Errors
    /// When it cannot be put back.
    pub fn put_back(self) -> Result<bool> {
        wait::pass(APART)?;
        let mut differs = false;
        for (file, backup) in &self.files {
            let read = |path: &Path| fs::read(path).map_err(Error::file("read", path));
            // An image is another one by its times, whatever is in it.
            differs |= file.extension().is_none_or(|kind| kind != "pollux") || read(file)? != read(backup)?;
            copy(backup, file, "it was copied before")?;
            fs::remove_file(backup).map_err(Error::file("remove", backup))?;
        }
        Ok(differs)
    }
}

/// What the copy of the disk that is in use now began as, by the events of the standby.
///
/// # Errors
/// When it cannot be asked.
pub fn last_resync(pair: &Pair, standby: u8) -> Result<Option<String>> {
    let events = pair.host(standby).ft_events()?;
    let last: Option<&Value> = events.iter().rev().find(|event| event["event"] == "resync-started");
    Ok(last.and_then(|event| event["detail"]["kind"].as_str()).map(str::to_owned))
}

/// The protected VM is paused until both images have been compared: they are the same, and were not made so
/// by marks alone.
///
/// # Errors
/// When they are not.
pub fn check_copy(pair: &Pair, runner: u8) -> Result<()> {
    let kind = last_resync(pair, 1 - runner)?;
    if !matches!(kind.as_deref(), Some("compare" | "full")) {
        return Err(unexpected(1 - runner, format!("its disk was changed, and the resynchronisation was {kind:?}")));
    }
    pair.host(runner).api(&["pause"])?;
    let images = [pair.host(0).image(), pair.host(1).image()];
    let same =
        wait::until("equality of both images", SAME_LIMIT, || match image::first_difference(images[0], images[1])? {
            None => Ok(Some(())),
            Some(at) => Err(Error::Protocol { from: "images".into(), answer: format!("they differ at byte {at}") }),
        });
    pair.host(runner).api(&["resume"])?;
    same
}

fn unexpected(host: u8, answer: String) -> Error {
    Error::Protocol { from: format!("host {}", letter(host)), answer }
}
