//! `vhost-user-blk-repl record IMAGE`: displays the record of an image, and whether it describes that image,
//! without using it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Parser;
use ft_proto::witness::DiskState;
use ft_proto::{Term, VmId};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Whence, lseek};
use serde::Serialize;

use crate::image::stamp::stamp;
use crate::record::contents::{Base, Record, RecordFault, Role};
use crate::record::file::{beside, examine, read};
use crate::record::format::decode;
use crate::record::proof::{Reason, Verdict};

/// Shows the record of an image: what it was last used for, and whether another copy may be newer.
#[derive(Debug, Parser)]
#[command(name = "vhost-user-blk-repl record")]
pub struct Show {
    /// The image.
    pub image: PathBuf,
    /// Where its record is kept, if not in the usual place.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What is known about an image.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// The file with the record, if there is one.
    pub record: Option<PathBuf>,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Its contents.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub says: Option<Fields>,
    /// Whether it describes this image: `same`, `unknown` or `changed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<&'static str>,
    /// Why that is unknown or not so; or why no VM can be started from the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether the image has no data at all.
    pub hole: bool,
    /// What follows for the decision which host may run the VM.
    pub state: DiskState,
}

/// The record.
#[derive(Debug, Serialize)]
pub struct Fields {
    /// The VM.
    pub vm: Option<VmId>,
    /// Last use.
    pub role: &'static str,
    /// Its term.
    pub term: Term,
    /// How often a host began to run the VM from a copy.
    pub generation: u64,
    /// The term of the VM's last orderly end here.
    pub ended: Term,
    /// Name of the state that is common with a peer.
    pub base: Option<String>,
    /// Its former name.
    pub former: Option<String>,
    /// Regions that may differ from it.
    pub marked: usize,
}

/// Everything about the image and its record. An image without a record has never been replicated, nor run
/// under a witness.
///
/// # Errors
/// When the image is none, or it or its record cannot be read.
pub fn inspect(image: &Path, record: Option<&Path>) -> io::Result<Inspection> {
    let (file, size) = open(image)?;
    let hole = is_hole(&file);
    let path = record.map_or_else(|| beside(image), Path::to_owned);
    let Some((_, bytes)) = read(&path, false).map_err(|e| named(&path, &e))? else {
        let state = if hole { DiskState::Hole } else { DiskState::Fresh };
        return Ok(Inspection { record: None, fault: None, says: None, image: None, reason: None, hole, state });
    };
    let unreadable = |fault: Option<RecordFault>| Inspection {
        record: Some(path.clone()),
        reason: fault.map(|fault| format!("record {}: {fault}", path.display())),
        fault: fault.map(|fault| fault.to_string()),
        says: None,
        image: None,
        hole,
        state: DiskState::Unusable,
    };
    let (sequence, record) = match decode(&bytes) {
        Ok(decoded) => decoded,
        Err(fault) => return Ok(unreadable(Some(fault))),
    };
    let verdict = examine((sequence, &record), size, stamp(&file)?.as_ref());
    let (state, reason) = state(&record, verdict);
    Ok(Inspection { says: Some(fields(&record)), image: Some(name_of(verdict)), reason, state, ..unreadable(None) })
}

/// As [`inspect`], one `KEY=VALUE` a line, or as JSON.
///
/// # Errors
/// As [`inspect`].
pub fn show(image: &Path, record: Option<&Path>, json: bool) -> io::Result<String> {
    let inspection = serde_json::to_value(inspect(image, record)?).map_err(io::Error::other)?;
    if json {
        return Ok(format!("{inspection}\n"));
    }
    let line = |(key, value): (&String, &serde_json::Value)| {
        let value = match value {
            serde_json::Value::Null => "none".to_owned(),
            serde_json::Value::String(text) => text.clone(),
            // A state and its term.
            serde_json::Value::Object(state) => {
                state.iter().map(|(name, term)| format!("{name} {term}")).collect::<Vec<_>>().join(" ")
            }
            value => value.to_string(),
        };
        format!("{key}={value}\n")
    };
    Ok(inspection.as_object().into_iter().flatten().map(line).collect())
}

/// Opens the image, to read what the kernel reports about it.
fn open(image: &Path) -> io::Result<(File, u64)> {
    let usable = |meta: &fs::Metadata| meta.is_file() || meta.file_type().is_block_device();
    let other = || io::Error::new(io::ErrorKind::InvalidInput, "it is neither a regular file nor a block device");
    // Opening a device or a pipe may have side effects.
    fs::metadata(image).and_then(|meta| if usable(&meta) { Ok(()) } else { Err(other()) })?;
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(image)?;
    if !usable(&file.metadata()?) {
        return Err(other());
    }
    let size = lseek(&file, 0, Whence::SeekEnd)?.unsigned_abs();
    Ok((file, size))
}

fn is_hole(file: &File) -> bool {
    lseek(file, 0, Whence::SeekData) == Err(Errno::ENXIO)
}

fn named(path: &Path, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

fn fields(record: &Record) -> Fields {
    let hex = |base: Base| format!("{:032x}", base.0);
    Fields {
        vm: record.vm,
        role: match record.role {
            Role::Alone => "alone",
            Role::Protected => "protected",
            Role::Syncing => "syncing",
            Role::Standby => "standby",
        },
        term: record.term,
        generation: record.generation,
        ended: record.ended,
        base: record.base.map(hex),
        former: record.former.map(hex),
        marked: record.marks.count(),
    }
}

fn name_of(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Same => "same",
        Verdict::Unknown(_) => "unknown",
        Verdict::Changed(_) => "changed",
    }
}

/// What the image can be used for, and the reason for any doubt.
fn state(record: &Record, verdict: Verdict) -> (DiskState, Option<String>) {
    let doubt = match verdict {
        Verdict::Same => None,
        Verdict::Unknown(reason) | Verdict::Changed(reason) => Some(reason.to_string()),
    };
    let altered = record.altered || matches!(verdict, Verdict::Changed(_));
    let unusable = |why: &str| (DiskState::Unusable, Some(why.to_owned()));
    match record.role {
        Role::Syncing => unusable("it is a copy that was never completed"),
        // The owner of a VM may change its disk while it is shut down, or runs nowhere else.
        Role::Alone if record.ended > Term(0) => (DiskState::Ended(record.ended), doubt),
        Role::Alone => (DiskState::Alone(record.term), doubt),
        Role::Protected if record.ended > Term(0) => (DiskState::Ended(record.ended), doubt),
        _ if altered => {
            let why = doubt.unwrap_or_else(|| Reason::Later.to_string());
            unusable(&format!("{why}, so it is not known to be a whole copy"))
        }
        Role::Protected => (DiskState::Protected(record.term), doubt),
        Role::Standby => (DiskState::Copy(record.term), doubt),
    }
}
