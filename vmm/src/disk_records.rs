//! What the disks of a host have on record about the VM's last end, asked of the disk program before any device is started.

use std::path::Path;
use std::process::{Command, Stdio};

use ft_proto::Term;
use ft_proto::witness::{DiskState, Disks};

use crate::config::{DiskConfig, VmConfig};
use crate::device_process::find;
use crate::devices::DISK_PROGRAM;

/// What they say.
#[must_use]
pub fn read(config: &VmConfig) -> Disks {
    let written = |disk: &&DiskConfig| !disk.readonly && !disk.vhost_user;
    let disks = config.disks.iter().flatten().filter(written).filter_map(|disk| disk.path.as_deref());
    let state = match disks.map(ended_of).min() {
        None => DiskState::None,
        Some(Term(0)) => DiskState::Fresh,
        Some(term) => DiskState::Ended(term),
    };
    Disks { vm: None, state }
}

fn ended_of(image: &Path) -> Term {
    // What is wrong with the image is told when its process is started.
    let told = find(DISK_PROGRAM).and_then(|program| {
        let mut command = Command::new(program);
        command.arg("record").arg(image).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()
    });
    told.map(|output| parse(&String::from_utf8_lossy(&output.stdout))).unwrap_or_default()
}

fn parse(text: &str) -> Term {
    let ended = text.lines().find_map(|line| line.strip_prefix("ended="));
    Term(ended.and_then(|term| term.parse().ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_on_record_never_ended() {
        assert_eq!(parse("record=/a.pollux\nrole=alone\ngeneration=3\nended=12\nmarked=0\n"), Term(12));
        assert_eq!(parse("record=none\n"), Term(0));
        assert_eq!(parse("record=/a.pollux\nfault=it is damaged\n"), Term(0));
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
        assert_eq!(read(&config).state, DiskState::None);
        assert_eq!(read(&VmConfig::default()).state, DiskState::None);
    }
}
