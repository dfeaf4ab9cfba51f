//! The command line.

use std::net::Ipv4Addr;
use std::str::FromStr;

use clap::Parser;
use device_kit::args::{Common, queue_size};
use pollux_api::limits::{MTU_MAX, NET_QUEUE_PAIRS_MAX, check_interface, check_mac};

use crate::announce::Mac;
use crate::ring::FRAME_MAX;

/// Output-buffering network card: a vhost-user backend between a virtio-net device and a tap.
///
/// Without --ft-ctl it is an ordinary backend for Cloud Hypervisor, QEMU and others. With it, frames of the
/// guest are held until the VMM says that the checkpoint they belong to is safe. It serves one frontend and
/// ends with it.
#[derive(Clone, Debug, Parser)]
#[command(name = "vhost-user-net-buffer", version)]
pub struct Args {
    /// What all device processes are told.
    #[command(flatten)]
    pub common: Common,

    /// Tap to use; it is created, for the life of this process, if it does not exist. Default: a new vmtapN
    #[arg(long, value_name = "NAME")]
    pub tap: Option<TapName>,

    /// IPv4 address of the host on the tap
    #[arg(long, value_name = "ADDRESS")]
    pub ip: Option<Ipv4Addr>,

    /// Network mask of --ip
    #[arg(long, value_name = "MASK", requires = "ip")]
    pub mask: Option<Ipv4Addr>,

    /// Ethernet address of the host on the tap
    #[arg(long, value_name = "MAC", value_parser = parse_mac)]
    pub mac: Option<Mac>,

    /// Ethernet address of the guest, announced after a takeover when the VMM names none. Default: learned
    #[arg(long, value_name = "MAC", value_parser = parse_mac)]
    pub guest_mac: Option<Mac>,

    /// Largest packet on the tap in bytes
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(68..=i64::from(MTU_MAX)))]
    pub mtu: Option<u32>,

    /// Queue pairs; more than one needs VIRTIO_NET_F_MQ and a tap with multi_queue
    #[arg(long, value_name = "PAIRS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(NET_QUEUE_PAIRS_MAX)))]
    pub num_queues: u16,

    /// Descriptors in a queue, a power of two; the frontend may have any number up to 32768, whatever is said
    /// here
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = queue_size)]
    pub queue_size: u16,

    /// Most bytes of output that are held; beyond that the guest's transmission waits
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20, value_parser = parse_hold_bytes)]
    pub hold_bytes: usize,

    /// Most frames of output that are held
    #[arg(long, value_name = "N", default_value_t = 16384, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub hold_frames: u32,
}

/// A network interface name that the kernel accepts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TapName(String);

impl TapName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TapName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        check_interface(text).map(|()| Self(text.into()))
    }
}

fn parse_mac(text: &str) -> Result<Mac, String> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
        *byte = part.and_then(|p| u8::from_str_radix(p, 16).ok()).ok_or("expected six hex bytes, 12:34:56:78:90:ab")?;
    }
    if parts.next().is_some() {
        return Err("expected six hex bytes, 12:34:56:78:90:ab".into());
    }
    check_mac(mac).map(|()| mac)
}

fn parse_hold_bytes(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if (FRAME_MAX..=16 << 30).contains(&n) => Ok(n),
        _ => Err(format!("at least one frame ({FRAME_MAX} bytes) and at most 16 GiB must fit")),
    }
}

#[cfg(test)]
mod tests {
    use device_kit::args::Endpoint;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn accepts_and_refuses() {
        let parse = |extra: &[&str]| Args::try_parse_from(["x", "--socket", "s"].iter().chain(extra));
        assert_eq!(parse(&["--ft-ctl", "fd=7"]).unwrap().common.ft_ctl, Some(Endpoint::Fd(7)));
        assert_eq!(parse(&[]).unwrap().common.socket, Endpoint::Path("s".into()));
        assert_eq!(parse(&["--mac", "12:34:56:78:90:aB"]).unwrap().mac, Some([0x12, 0x34, 0x56, 0x78, 0x90, 0xab]));
        for bad in [
            ["--tap", "sixteen-bytes-ab"],
            ["--tap", "a/b"],
            ["--tap", "t%d"],
            ["--mac", "1:2:3:4:5:6"],
            ["--mac", "01:00:00:00:00:00"],
            ["--mac", "02:00:00:00:00:00:00"],
            ["--mask", "255.0.0.0"],
            ["--num-queues", "0"],
            ["--queue-size", "100"],
            ["--hold-bytes", "10"],
            ["--ft-ctl", "fd=x"],
            ["--ft-ctl", "fd=1"],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }
}
