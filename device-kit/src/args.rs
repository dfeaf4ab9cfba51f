//! The arguments that all device processes have.

use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use clap::Args;
use device_api::counters::Page;
use host_kit::sandbox::Mode;
use pollux_api::limits::{QUEUE_SIZE_MIN, check_queue_size};

/// What a VMM says to any device process.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// vhost-user socket: a path to listen at, or fd=N for an inherited, listening unix socket
    #[arg(long, value_name = "PATH|fd=N", value_parser = vhost_socket)]
    pub socket: Endpoint,

    /// Fault-tolerance control of a Pollux VMM: a path to listen at, or fd=N for an inherited, connected
    /// SOCK_SEQPACKET socket. The process ends, and drops what it holds, when this link closes
    #[arg(long, value_name = "PATH|fd=N", value_parser = control_socket)]
    pub ft_ctl: Option<Endpoint>,

    /// Count here what `vm.counters` shows: a file of at least 4096 bytes, such as the VMM's shared memory
    #[arg(long, value_name = "FILE")]
    pub counters: Option<PathBuf>,

    /// What happens to a system call that no thread of this process makes: true, it ends the process; false,
    /// nothing; log, the kernel logs it; errno, it fails
    #[arg(long, value_name = "MODE", default_value = "true")]
    pub seccomp: Mode,

    /// More log, such as every malformed request; may be repeated
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// The file of `--counters` cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("--counters {}: cannot be used", path.display())]
pub struct CountersError {
    path: PathBuf,
    source: io::Error,
}

impl Common {
    /// The page to count in; without `--counters` nobody sees it.
    ///
    /// # Errors
    /// When the file is not one.
    pub fn page(&self) -> Result<Page, CountersError> {
        let page = self.counters.as_deref().map_or_else(Page::private, Page::open);
        page.map_err(|source| CountersError { path: self.counters.clone().unwrap_or_default(), source })
    }
}

/// Where a unix socket comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Endpoint {
    /// Listen here.
    Path(PathBuf),
    /// Inherited from the parent process.
    Fd(RawFd),
}

impl Endpoint {
    /// The path, if it has one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Fd(_) => None,
        }
    }

    fn parse(text: &str, inherited: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("is empty; give a path or fd=N".into());
        }
        let Some(number) = text.strip_prefix("fd=") else {
            return Ok(Self::Path(text.into()));
        };
        match number.parse() {
            Ok(fd) if fd > 2 => Ok(Self::Fd(fd)),
            _ => Err(format!("give the number, above 2, of an inherited, {inherited}, or ./fd=... for a path")),
        }
    }
}

fn vhost_socket(text: &str) -> Result<Endpoint, String> {
    Endpoint::parse(text, "listening unix socket")
}

fn control_socket(text: &str) -> Result<Endpoint, String> {
    Endpoint::parse(text, "connected SOCK_SEQPACKET socket")
}

/// Parses how many descriptors a queue usually has.
///
/// # Errors
/// When it is not a power of two from 4 to 32768.
pub fn queue_size(text: &str) -> Result<u16, String> {
    let size = text.parse().map_err(|_| "is not a number".to_owned())?;
    check_queue_size(size, QUEUE_SIZE_MIN).map(|()| size)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        common: Common,
    }

    fn parse(args: &[&str]) -> Result<Common, String> {
        let parsed = Only::try_parse_from(["x"].iter().chain(args));
        parsed.map(|only| only.common).map_err(|error| error.to_string())
    }

    #[test]
    fn sockets_are_paths_or_inherited() {
        let common = parse(&["--socket", "s", "--ft-ctl", "fd=7"]).unwrap();
        assert_eq!((common.socket, common.ft_ctl), (Endpoint::Path("s".into()), Some(Endpoint::Fd(7))));
        for value in ["fd=1", "fd=x", "fd=", ""] {
            for flag in ["--socket", "--ft-ctl"] {
                let told = parse(&["--socket", "s", flag, value]).unwrap_err();
                assert!(told.contains(flag), "{told}");
            }
        }
        assert!(parse(&["--ft-ctl", "c"]).unwrap_err().contains("--socket"));
    }

    #[test]
    fn queues_have_a_power_of_two() {
        assert_eq!(queue_size("256"), Ok(256));
        for bad in ["0", "2", "100", "65536", "x"] {
            assert!(queue_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn without_a_file_nobody_sees_the_counters() {
        assert!(parse(&["--socket", "s"]).unwrap().page().is_ok());
        let error = parse(&["--socket", "s", "--counters", "/nonexistent"]).unwrap().page().unwrap_err();
        assert!(error.to_string().contains("--counters /nonexistent"), "{error}");
    }
}
