//! The network of a run: a LAN with two hosts, a client and a witness on it, and two separate links from host
//! to host.
//!
//! ```text
//!   client --- [ LAN: bridge in namespace sw ] --- host A: bridge br0 --- tap0 (VM)
//!  witness ---           |                             |        |
//!                        |                        replication  heartbeat      (veth pairs, host to host)
//!                        |                             |        |
//!                        +------------------------- host B: bridge br0 --- tap0 (VM, standing by)
//! ```

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::namespace::Namespace;
use crate::{Error, Result};

/// Address of the guest on the LAN.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 70, 0, 2);
/// Bits of the LAN's mask.
pub const LAN_BITS: u8 = 24;
/// The guest's hardware address.
pub const GUEST_MAC: &str = "52:54:00:70:00:02";
/// Name of the VM's tap device on both hosts.
pub const TAP: &str = "tap0";

/// A link from host to host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Link {
    /// Carries the epochs.
    Replication,
    /// Carries heartbeats only.
    Heartbeat,
}

/// Where nobody listens: a connection there is refused after one round trip.
const CLOSED_PORT: u16 = 9;
/// Address of the witness on the LAN.
pub const WITNESS: Ipv4Addr = Ipv4Addr::new(10, 70, 0, 101);

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 70, 0, 100);
const LINKS: [(&str, u8); 2] = [("repl", 71), ("beat", 72)];

/// Namespaces and links of one run; all gone on drop.
#[derive(Debug)]
pub struct Topology {
    /// Where the measuring client lives.
    pub client: Namespace,
    /// Where a witness that is no file lives.
    pub witness: Namespace,
    /// The two hosts, A first.
    pub hosts: [Namespace; 2],
    // Last: the LAN goes after its members.
    _lan: Namespace,
}

impl Topology {
    /// Builds the network with names no other run has.
    ///
    /// # Errors
    /// When iproute2 fails; nothing is left behind.
    pub fn new() -> Result<Self> {
        static RUN: AtomicU32 = AtomicU32::new(0);
        let run = RUN.fetch_add(1, Ordering::Relaxed);
        let name = |role: &str| format!("pollux-{}-{run}-{role}", process::id());
        let lan = Namespace::new(name("lan"))?;
        let hosts = [Namespace::new(name("a"))?, Namespace::new(name("b"))?];
        let client = Namespace::new(name("client"))?;
        let witness = Namespace::new(name("witness"))?;
        lan.ip("link add lan type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set lan up\n")?;
        let members =
            [("a", &hosts[0], "up0"), ("b", &hosts[1], "up0"), ("c", &client, "eth0"), ("w", &witness, "eth0")];
        for (port, member, inside) in members {
            lan.ip(&format!(
                "link add to-{port} type veth peer name {inside} netns {}\nlink set to-{port} master lan up\n",
                member.name()
            ))?;
        }
        client.ip(&format!("link set eth0 up\naddr add {CLIENT}/{LAN_BITS} dev eth0\n"))?;
        witness.ip(&format!("link set eth0 up\naddr add {WITNESS}/{LAN_BITS} dev eth0\n"))?;
        for (host, last) in hosts.iter().zip(201..) {
            host.ip(&format!(
                "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set up0 master br0 up\n\
                 tuntap add dev {TAP} mode tap vnet_hdr\nlink set {TAP} master br0 up\nlink set br0 up\n\
                 addr add 10.70.0.{last}/{LAN_BITS} dev br0\n"
            ))?;
        }
        for (link, net) in LINKS {
            hosts[0].ip(&format!(
                "link add {link} type veth peer name {link} netns {}\naddr add 10.{net}.0.1/30 dev {link}\nlink set {link} up\n",
                hosts[1].name()
            ))?;
            hosts[1].ip(&format!("addr add 10.{net}.0.2/30 dev {link}\nlink set {link} up\n"))?;
        }
        Ok(Self { client, witness, hosts, _lan: lan })
    }

    /// Address of a host (0 or 1) on the replication link.
    #[must_use]
    pub fn replication(host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, LINKS[0].1, 0, host + 1)
    }

    /// Address of a host (0 or 1) on the heartbeat link.
    #[must_use]
    pub fn heartbeat(host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, LINKS[1].1, 0, host + 1)
    }

    /// Frames that came out of the VM's tap on a host (0 or 1) so far.
    ///
    /// # Errors
    /// When the kernel's table cannot be read.
    pub fn frames_from_vm(&self, host: u8) -> Result<u64> {
        let path = Path::new("/proc/thread-self/net/dev");
        let table =
            self.hosts[usize::from(host)].run(|| fs::read_to_string(path).map_err(Error::file("read", path)))?;
        let row = table.lines().find_map(|line| line.trim_start().strip_prefix(&format!("{TAP}:")));
        // Receive side of the tap: bytes, then packets.
        let frames = row.and_then(|row| row.split_whitespace().nth(1)?.parse().ok());
        frames.ok_or(Error::Protocol { from: "/proc/net/dev".into(), answer: table })
    }

    /// Cuts both host-to-host links; the LAN stays.
    ///
    /// # Errors
    /// When iproute2 fails.
    pub fn cut_links(&self) -> Result<()> {
        self.hosts[0].ip(&LINKS.map(|(link, _)| format!("link set {link} down\n")).concat())
    }

    /// Takes one link down or up again.
    ///
    /// # Errors
    /// When iproute2 fails.
    pub fn set_link(&self, link: Link, up: bool) -> Result<()> {
        self.hosts[0].ip(&format!("link set {} {}\n", link.name(), if up { "up" } else { "down" }))
    }

    /// Makes one link slow and lossy in both directions, with what `tc` understands after `netem`; `None`: as
    /// it was.
    ///
    /// # Errors
    /// When iproute2 fails, or the kernel has no netem.
    pub fn impair(&self, link: Link, netem: Option<&str>) -> Result<()> {
        for host in &self.hosts {
            match netem {
                Some(netem) => host.tc(&format!("qdisc replace dev {} root netem {netem}\n", link.name()))?,
                None => host.tc(&format!("qdisc del dev {} root\n", link.name()))?,
            }
        }
        Ok(())
    }

    /// One round trip from host A to host B over a link; `None`: nothing came back within `limit`.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn round_trip(&self, link: Link, limit: Duration) -> Result<Option<Duration>> {
        let address = match link {
            Link::Replication => Self::replication(1),
            Link::Heartbeat => Self::heartbeat(1),
        };
        self.hosts[0].run(|| {
            let start = Instant::now();
            let answer = TcpStream::connect_timeout(&SocketAddr::from((address, CLOSED_PORT)), limit);
            let refused = answer.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
            Ok(refused.then(|| start.elapsed()))
        })
    }
}

impl Link {
    fn name(self) -> &'static str {
        match self {
            Self::Replication => LINKS[0].0,
            Self::Heartbeat => LINKS[1].0,
        }
    }
}
