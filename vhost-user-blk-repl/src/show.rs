//! `vhost-user-blk-repl record IMAGE`: tells what the record of an image says, without using the image.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Parser;

use crate::record::{Role, decode};
use crate::record_file::beside;

/// Tells what is on record about an image: what it was last used for, and whether another copy may be newer.
#[derive(Debug, Parser)]
#[command(name = "vhost-user-blk-repl record")]
pub struct Show {
    /// The image.
    pub image: PathBuf,
    /// Where its record is kept, if not in the usual place.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
}

/// The record in words, one `KEY=VALUE` a line. An image without one has never been replicated, nor shut down under a witness.
///
/// # Errors
/// When the record cannot be read.
pub fn show(image: &Path, record: Option<&Path>) -> io::Result<String> {
    let path = record.map_or_else(|| beside(image), Path::to_owned);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok("record=none\n".to_owned()),
        Err(e) => return Err(e),
    };
    let mut text = format!("record={}\n", path.display());
    // Writing to a string does not fail.
    let _ = match decode(&bytes) {
        Err(fault) => writeln!(text, "fault={fault}"),
        Ok((_, record)) => writeln!(
            text,
            "role={}\ngeneration={}\nended={}\nmarked={}",
            name(record.role),
            record.generation,
            record.ended,
            record.marks.count()
        ),
    };
    Ok(text)
}

fn name(role: Role) -> &'static str {
    match role {
        Role::Alone => "alone",
        Role::Protected => "protected",
        Role::Syncing => "syncing",
        Role::Standby => "standby",
    }
}
