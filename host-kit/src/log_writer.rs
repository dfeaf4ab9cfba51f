//! A log that holds nobody up and ends nobody: what it cannot take at once is left out and counted.
//!
//! In: lines. Out: a pipe, a terminal or a file. Never: waiting, since it may be a vCPU that logs; an error,
//! since the reader of a log may go away, and its file system may be full.

use std::io::{self, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// So many bytes a pipe takes without waiting, if it can be written to at all.
const PIECE: usize = libc::PIPE_BUF;

/// Writes lines to `file` as far as it takes them.
#[derive(Debug)]
pub struct LogWriter<F> {
    program: &'static str,
    file: F,
    lost: u64,
    /// The end of the last line is missing.
    cut: bool,
}

impl<F: AsFd + Write> LogWriter<F> {
    /// The log of `program`.
    pub fn new(program: &'static str, file: F) -> Self {
        Self { program, file, lost: 0, cut: false }
    }

    /// Whether the kernel takes a [`PIECE`] now. A pipe says so if it does without waiting; a file always
    /// does.
    fn takes_a_piece(&self) -> bool {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        // Where it cannot be asked, it can be written to.
        poll(&mut fds, PollTimeout::ZERO).map_or(true, |ready| ready > 0)
    }

    /// Whether all of `line` was written.
    fn write_line(&mut self, line: &[u8]) -> bool {
        let mut rest = line;
        while let Some(piece) = rest.split_off(..rest.len().min(PIECE)).filter(|piece| !piece.is_empty()) {
            if !self.takes_a_piece() {
                self.cut |= rest.len() + piece.len() < line.len();
                return false;
            }
            if self.file.write_all(piece).is_err() {
                self.cut = true;
                return false;
            }
        }
        true
    }

    /// Says how many lines are missing, as soon as that can be said.
    fn own_up(&mut self) {
        if self.lost == 0 || !self.takes_a_piece() {
            return;
        }
        let (end, program, lost) = (if self.cut { "\n" } else { "" }, self.program, self.lost);
        let told = format!("{end}{program}: {lost} log lines are lost: the log could not take them\n");
        if self.file.write_all(told.as_bytes()).is_ok() {
            (self.lost, self.cut) = (0, false);
        }
    }
}

impl<F: AsFd + Write> Write for LogWriter<F> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.own_up();
        if !self.write_line(line) {
            self.lost += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // What it does not take now is missed when the next line is written.
        let _ = self.file.flush();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    fn pipe() -> (File, LogWriter<File>) {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        (File::from(reader), LogWriter::new("test", File::from(writer)))
    }

    #[test]
    fn a_log_that_nobody_reads_holds_nobody_up() {
        let (mut reader, mut log) = pipe();
        let line = [b'x'; 999].iter().chain(b"\n").copied().collect::<Vec<u8>>();
        for _ in 0..1000 {
            log.write_all(&line).unwrap();
        }
        let (mut buffer, lost) = (vec![0; 64 << 10], log.lost);
        assert!((900..1000).contains(&lost), "{lost}");
        let len = reader.read(&mut buffer).unwrap();
        assert!(buffer[..len].chunks(1000).all(|read| read == line), "lines are cut");
        log.write_all(b"again\n").unwrap();
        drop(log);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert!(
            rest.ends_with(&format!("test: {lost} log lines are lost: the log could not take them\nagain\n")),
            "{rest}"
        );
    }

    #[test]
    fn a_long_line_is_written_whole_if_there_is_room() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut log = LogWriter::new("test", file.reopen().unwrap());
        log.write_all(&[b'x'; 100_000]).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), [b'x'; 100_000]);
        let (mut reader, mut log) = pipe();
        log.write_all(&[b'x'; 100_000]).unwrap();
        reader.read_exact(&mut [0; 60_000]).unwrap();
        log.write_all(b"next\n").unwrap();
        drop(log);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert!(rest.ends_with("x\ntest: 1 log lines are lost: the log could not take them\nnext\n"));
    }

    #[test]
    fn a_log_whose_reader_has_left_or_whose_disk_is_full_is_no_error() {
        let (reader, mut log) = pipe();
        drop(reader);
        log.write_all(b"to nobody\n").unwrap();
        log.write_all(b"again\n").unwrap();
        assert_eq!(log.lost, 2);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut log = LogWriter::new("test", full);
        log.write_all(b"no room\n").unwrap();
        log.flush().unwrap();
        assert_eq!(log.lost, 1);
    }
}
