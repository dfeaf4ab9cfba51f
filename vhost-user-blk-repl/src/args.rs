//! Flags, checked as far as possible before anything is opened.

use std::path::PathBuf;

use clap::Parser;
use device_kit::args::{Common, queue_size};

use pollux_api::limits::{DISK_QUEUES_MAX, check_disk_serial};

/// A disk for virtual machines: serves a raw image over vhost-user, and replicates it under a Pollux VMM.
#[derive(Clone, Debug, Parser)]
#[command(
    version,
    after_help = "Works with any vhost-user frontend (Pollux, Cloud Hypervisor, QEMU). Ends when \
    the frontend disconnects, or when the ft-ctl link closes. `vhost-user-blk-repl record IMAGE` shows the record of an image."
)]
pub struct Args {
    /// What all device processes are told.
    #[command(flatten)]
    pub common: Common,
    /// Raw disk image, a file or a block device. It is locked while it is served.
    #[arg(long, value_name = "IMAGE")]
    pub path: PathBuf,
    /// The guest may not write.
    #[arg(long)]
    pub readonly: bool,
    /// Serial number, at most 20 bytes: /dev/disk/by-id in the guest.
    #[arg(long, default_value = "", value_parser = serial)]
    pub serial: String,
    /// Number of queues, usually one per virtual CPU.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(DISK_QUEUES_MAX)))]
    pub num_queues: u16,
    /// Entries that a queue usually has, a power of two: the guest is told to use no more segments in a
    /// request. The frontend may use other sizes, up to 32768.
    #[arg(long, value_name = "N", default_value = "256", value_parser = queue_size)]
    pub queue_size: u16,
    /// Bypass the host's page cache (O_DIRECT).
    #[arg(long)]
    pub direct: bool,
    /// Where the record of the image is kept: which copy is current, and where it may differ from its peer.
    /// Written once the disk is protected. [default: IMAGE.pollux; for a block device
    /// /var/lib/pollux/NAME.pollux]
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// The image is a standby's: the guest is served only after a takeover.
    #[arg(long, conflicts_with_all = ["readonly", "force"])]
    pub standby: bool,
    /// The witness gave the VM to this host: refuse only an incomplete copy.
    #[arg(long)]
    pub elected: bool,
    /// Serve the image even if its record says that it is half-synchronised or that another copy may be
    /// newer.
    #[arg(long)]
    pub force: bool,
}

fn serial(text: &str) -> Result<String, String> {
    check_disk_serial(text).map(|()| text.to_owned())
}

#[cfg(test)]
mod tests {
    use device_kit::args::Endpoint;

    use super::*;

    fn parse(extra: &[&str]) -> Result<Args, String> {
        let base = ["vhost-user-blk-repl", "--socket", "/tmp/s", "--path", "/tmp/i"];
        Args::try_parse_from(base.iter().chain(extra)).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults() {
        let args = parse(&[]).unwrap();
        assert_eq!((args.num_queues, args.queue_size, args.readonly), (1, 256, false));
        assert_eq!(args.common.socket, Endpoint::Path("/tmp/s".into()));
        assert!(args.common.ft_ctl.is_none());
    }

    #[test]
    fn endpoints() {
        assert_eq!(parse(&["--ft-ctl", "fd=7"]).unwrap().common.ft_ctl, Some(Endpoint::Fd(7)));
        assert_eq!(parse(&["--ft-ctl", "./fd=x"]).unwrap().common.ft_ctl, Some(Endpoint::Path("./fd=x".into())));
        assert!(parse(&["--ft-ctl", "fd=x"]).is_err());
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
