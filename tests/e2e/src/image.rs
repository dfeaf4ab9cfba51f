//! Looks into a guest's disk image after the guest is off, without mounting it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, Result};

/// Runs `e2fsck -fn`: its verdict, and whether the file system is clean.
///
/// # Errors
/// When e2fsck cannot be run.
pub fn fsck(image: &Path) -> Result<(bool, String)> {
    let output = Command::new("e2fsck")
        .arg("-fn")
        .arg(image)
        .output()
        .map_err(Error::io("cannot run e2fsck (package e2fsprogs)"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let verdict = text.lines().rfind(|line| !line.is_empty()).unwrap_or("no answer").to_owned();
    Ok((output.status.success(), if output.status.success() { verdict } else { text.into_owned() }))
}

/// Takes the append-only files of Redis out of the image and has Redis's own tool check them.
///
/// # Errors
/// When they cannot be taken out or the tool cannot be run.
pub fn check_aof(image: &Path, guest_tree: &Path, scratch: &Path) -> Result<(bool, String)> {
    fs::create_dir_all(scratch).map_err(Error::file("create", scratch))?;
    run(Command::new("debugfs")
        .arg("-R")
        .arg(format!("rdump /var/lib/redis/appendonlydir {}", scratch.display()))
        .arg(image))?;
    let files = scratch.join("appendonlydir");
    let manifest = files.join("appendonly.aof.manifest");
    if !manifest.exists() {
        return Ok((false, "the image holds no append-only files".into()));
    }
    // The tool and its libraries are the guest's own: its loader starts it, nothing has to be installed here.
    let libraries = guest_tree.join("usr/lib/x86_64-linux-gnu");
    let other = guest_tree.join("lib/x86_64-linux-gnu");
    let loaders = [guest_tree.join("lib64/ld-linux-x86-64.so.2"), libraries.join("ld-linux-x86-64.so.2")];
    let loader = first_of(&loaders)?;
    let output = Command::new(loader)
        .arg("--library-path")
        .arg(format!("{}:{}", libraries.display(), other.display()))
        .arg(guest_tree.join("usr/bin/redis-check-aof"))
        .arg(&manifest)
        .output()
        .map_err(Error::io("cannot run redis-check-aof"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let verdict = text.lines().rfind(|line| !line.is_empty()).unwrap_or("no answer").to_owned();
    Ok((output.status.success(), if output.status.success() { verdict } else { text }))
}

fn first_of(candidates: &[PathBuf]) -> Result<&PathBuf> {
    let found = candidates.iter().find(|path| path.exists());
    found.ok_or_else(|| Error::Missing { path: candidates[0].clone(), hint: "scripts/guest-image makes it" })
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().map_err(Error::io(format!("cannot run {:?}", command.get_program())))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: format!("{command:?}"),
        status: output.status.to_string(),
        output: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
