//! Lines from a pipe.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Lines from a pipe that is never waited for.
pub(super) struct Lines {
    source: File,
    partial: Vec<u8>,
}

impl Lines {
    pub(super) fn new(source: OwnedFd) -> Self {
        // Without this a read could block past the process's end; then its last lines are lost, which is
        // bearable.
        if let Ok(flags) = fcntl(&source, FcntlArg::F_GETFL) {
            let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
            let _ = fcntl(&source, FcntlArg::F_SETFL(flags));
        }
        Self { source: source.into(), partial: Vec::new() }
    }

    /// Readable when there is more, or when that was all.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }

    /// Hands over the lines that are there; false when there will be no more.
    pub(super) fn pass_on(&mut self, mut take: impl FnMut(&str)) -> bool {
        let mut buffer = [0; 4096];
        loop {
            let open = match self.source.read(&mut buffer) {
                Ok(0) => false,
                Ok(len) => {
                    self.partial.extend_from_slice(&buffer[..len]);
                    true
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => false,
            };
            while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.partial.drain(..=end).collect();
                take(String::from_utf8_lossy(&line).trim_end());
            }
            if !open || self.partial.len() > 64 << 10 {
                if !self.partial.is_empty() {
                    take(String::from_utf8_lossy(&self.partial).trim_end());
                    self.partial.clear();
                }
                if !open {
                    return false;
                }
            }
        }
    }
}
