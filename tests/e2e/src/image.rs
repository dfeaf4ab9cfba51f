//! Disk images: an empty one for a standby, and what is in a guest's after it is off, without mounting it.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, Result};

/// Bytes compared at a time.
const COMPARE_CHUNK: usize = 1 << 20;

/// Makes an image of `size` bytes that holds nothing.
///
/// # Errors
/// When it cannot be made.
pub fn blank(image: &Path, size: u64) -> Result<()> {
    let file = File::create(image).map_err(Error::file("create", image))?;
    file.set_len(size).map_err(Error::file("size", image))
}

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
    dump(image, "/var/lib/redis/appendonlydir", scratch)?;
    let files = scratch.join("appendonlydir");
    let manifest = files.join("appendonly.aof.manifest");
    if !manifest.exists() {
        return Ok((false, "the image holds no append-only files".into()));
    }
    let (clean, words) = verdict(guest_tool(guest_tree, "usr/bin/redis-check-aof")?.arg(&manifest))?;
    let last = words.lines().last().unwrap_or("no answer").to_owned();
    Ok((clean, if clean { last } else { words }))
}

/// Takes the database cluster of PostgreSQL out of the image and has PostgreSQL's own tool check every page
/// of it.
///
/// # Errors
/// When it cannot be taken out or the tool cannot be run.
pub fn check_cluster(image: &Path, guest_tree: &Path, scratch: &Path) -> Result<(bool, String)> {
    dump(image, "/var/lib/postgresql/main", scratch)?;
    let mut tool = guest_tool(guest_tree, "usr/lib/postgresql/bin/pg_checksums")?;
    let (clean, words) = verdict(tool.arg("--check").arg("-D").arg(scratch.join("main")))?;
    Ok((clean, words.replace('\n', ", ")))
}

/// Whether two images hold the same bytes, and if not, where they differ first.
///
/// # Errors
/// When one cannot be read.
pub fn first_difference(one: &Path, other: &Path) -> Result<Option<u64>> {
    let open = |path: &Path| File::open(path).map_err(Error::file("open", path));
    let mut files = [open(one)?, open(other)?];
    let mut buffers = [vec![0; COMPARE_CHUNK], vec![0; COMPARE_CHUNK]];
    let mut offset = 0;
    loop {
        let mut lengths = [0; 2];
        for ((file, buffer), length) in files.iter_mut().zip(&mut buffers).zip(&mut lengths) {
            buffer.clear();
            let part = file.take(COMPARE_CHUNK as u64).read_to_end(buffer);
            *length = part.map_err(Error::io("cannot read an image"))?;
        }
        if buffers[0] != buffers[1] {
            let same = buffers[0].iter().zip(&buffers[1]).take_while(|(one, other)| one == other).count();
            return Ok(Some(offset + same as u64));
        }
        if lengths[0] == 0 {
            return Ok(None);
        }
        offset += lengths[0] as u64;
    }
}

/// Copies a folder out of the image.
fn dump(image: &Path, folder: &str, scratch: &Path) -> Result<()> {
    fs::create_dir_all(scratch).map_err(Error::file("create", scratch))?;
    run(Command::new("debugfs").arg("-R").arg(format!("rdump {folder} {}", scratch.display())).arg(image))
}

/// A program of the guest, ready to run here: its libraries are the guest's own and its loader starts it, so
/// nothing has to be installed.
///
/// # Errors
/// When the guest has no loader.
pub fn guest_tool(guest_tree: &Path, program: &str) -> Result<Command> {
    let libraries = guest_tree.join("usr/lib/x86_64-linux-gnu");
    let other = guest_tree.join("lib/x86_64-linux-gnu");
    let loaders = [guest_tree.join("lib64/ld-linux-x86-64.so.2"), libraries.join("ld-linux-x86-64.so.2")];
    let mut command = Command::new(first_of(&loaders)?);
    command.arg("--library-path").arg(format!("{}:{}", libraries.display(), other.display()));
    command.arg(guest_tree.join(program));
    Ok(command)
}

/// Runs a checking tool: whether it is content, and what it says.
fn verdict(command: &mut Command) -> Result<(bool, String)> {
    let output = command.output().map_err(Error::io(format!("cannot run {:?}", command.get_program())))?;
    let words = [output.stdout, output.stderr].map(|part| String::from_utf8_lossy(&part).trim().to_owned());
    Ok((output.status.success(), words.join("\n").trim().to_owned()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_found() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::io("cannot make a folder"))?;
        let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
        let mut bytes = vec![7; 2 * COMPARE_CHUNK + 5];
        for (position, expected) in [(None, None), (Some(COMPARE_CHUNK + 3), Some(COMPARE_CHUNK as u64 + 3))] {
            fs::write(&one, &bytes).map_err(Error::file("write", &one))?;
            position.into_iter().for_each(|at| bytes[at] = 8);
            fs::write(&other, &bytes).map_err(Error::file("write", &other))?;
            assert_eq!(first_difference(&one, &other)?, expected);
        }
        bytes.truncate(100);
        fs::write(&one, &bytes).map_err(Error::file("write", &one))?;
        assert_eq!(first_difference(&one, &other)?, Some(100), "one is shorter");
        Ok(())
    }
}
