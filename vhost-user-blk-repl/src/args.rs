//! Flags, checked as far as possible before anything is opened.

use std::convert::Infallible;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Parser;

use crate::serve::SERIAL_LEN;

/// A disk for virtual machines: serves a raw image over vhost-user, and replicates it under a Pollux VMM.
#[derive(Clone, Debug, Parser)]
#[command(
    version,
    about,
    after_help = "Works with any vhost-user frontend (Pollux, Cloud Hypervisor, QEMU). Ends when \
    the frontend disconnects, or when the ft-ctl link closes. `vhost-user-blk-repl record IMAGE` tells what is on record about an image."
)]
pub struct Args {
    /// vhost-user socket: a path to listen at, or fd=N for an inherited listening socket.
    #[arg(long, value_name = "PATH|fd=N")]
    pub socket: Endpoint,
    /// Raw disk image, a file or a block device. It is locked while it is served.
    #[arg(long, value_name = "IMAGE")]
    pub path: PathBuf,
    /// The guest may not write.
    #[arg(long)]
    pub readonly: bool,
    /// Serial number, at most 20 characters: /dev/disk/by-id in the guest.
    #[arg(long, default_value = "", value_parser = serial)]
    pub serial: String,
    /// Number of queues, usually one per virtual CPU.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=32))]
    pub num_queues: u16,
    /// Entries that a queue usually has, a power of two: the guest is told to use no more segments in a request. The frontend may
    /// use other sizes, up to 32768.
    #[arg(long, value_name = "N", default_value = "256", value_parser = queue_size)]
    pub queue_size: u16,
    /// Bypass the host's page cache (O_DIRECT).
    #[arg(long)]
    pub direct: bool,
    /// Fault-tolerance control link of a Pollux VMM: a path to listen at, or fd=N for an inherited SOCK_SEQPACKET socket.
    #[arg(long, value_name = "PATH|fd=N")]
    pub ft_ctl: Option<Endpoint>,
    /// Where the record of the image is kept: which copy is current, and where it may differ from its peer. Written once
    /// the disk is protected. [default: IMAGE.pollux; for a block device /var/lib/pollux/NAME.pollux]
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// The image is a standby's: the guest is served only after a takeover.
    #[arg(long, conflicts_with_all = ["readonly", "force"])]
    pub standby: bool,
    /// Who decides where the VM runs says that it is here: refuse only a copy that is no whole disk.
    #[arg(long)]
    pub elected: bool,
    /// Serve the image even if its record says that it is half-synchronised or that another copy may be newer.
    #[arg(long)]
    pub force: bool,
    /// Count here what `vm.counters` shows: a file of at least 4096 bytes, such as the VMM's shared memory.
    #[arg(long, value_name = "FILE")]
    pub counters: Option<PathBuf>,
    /// Log every malformed request too.
    #[arg(short, long)]
    pub verbose: bool,
}

/// Where a socket is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Endpoint {
    /// To be bound.
    Path(PathBuf),
    /// Inherited.
    Fd(RawFd),
}

impl FromStr for Endpoint {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.strip_prefix("fd=").and_then(|fd| fd.parse().ok()) {
            Some(fd) => Self::Fd(fd),
            None => Self::Path(text.into()),
        })
    }
}

fn serial(text: &str) -> Result<String, String> {
    if text.len() > SERIAL_LEN {
        return Err(format!("is {} bytes long, at most {SERIAL_LEN} fit", text.len()));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        return Err("must be printable ASCII".to_owned());
    }
    Ok(text.to_owned())
}

fn queue_size(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(size) if size.is_power_of_two() && (4..=32768).contains(&size) => Ok(size),
        _ => Err("need a power of two from 4 to 32768".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: &[&str]) -> Result<Args, String> {
        let base = ["vhost-user-blk-repl", "--socket", "/tmp/s", "--path", "/tmp/i"];
        Args::try_parse_from(base.iter().chain(extra)).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults() {
        let args = parse(&[]).unwrap();
        assert_eq!((args.num_queues, args.queue_size, args.readonly), (1, 256, false));
        assert_eq!(args.socket, Endpoint::Path("/tmp/s".into()));
        assert!(args.ft_ctl.is_none());
    }

    #[test]
    fn endpoints() {
        assert_eq!(parse(&["--ft-ctl", "fd=7"]).unwrap().ft_ctl, Some(Endpoint::Fd(7)));
        assert_eq!("fd=x".parse(), Ok(Endpoint::Path("fd=x".into())));
    }

    #[test]
    fn bad_values_name_the_flag() {
        for (flag, value) in [
            ("--serial", "123456789012345678901"),
            ("--serial", "a\tb"),
            ("--num-queues", "0"),
            ("--num-queues", "33"),
            ("--queue-size", "100"),
            ("--queue-size", "2"),
        ] {
            assert!(parse(&[flag, value]).unwrap_err().contains(flag), "{flag} {value}");
        }
    }
}
