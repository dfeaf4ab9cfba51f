//! The tap device: opened or created, configured, brought up; one file per queue pair.
//!
//! In: what the command line says. Out: queues that carry frames, each after a 12-byte virtio-net header.
//! Never: a tap that outlives this process unless it was there before.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO,
};

use crate::announce::{Mac, RARP_LEN, rarp};
use crate::args::Args;
use crate::ring::HEADER_LEN;

/// Why there is no tap. Every message says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The driver is missing.
    #[error("/dev/net/tun cannot be opened; load the tun module and check the permissions of the device")]
    NoDriver(#[source] io::Error),
    /// Neither root nor the owner of the tap.
    #[error("tap {name}: not permitted; run as root, or let root do: ip tuntap add {name} mode tap user $USER")]
    NotPermitted {
        /// The tap.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Someone else holds it.
    #[error("tap {name} is in use; end the process that has it, or give another --tap")]
    InUse {
        /// The tap.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It exists with a number of queues that does not fit.
    #[error(
        "tap {name} was not created for {queues} queue pairs, or is not a tap; give another --tap, or other --num-queues"
    )]
    WrongKind {
        /// The tap.
        name: String,
        /// Queue pairs asked for.
        queues: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// A setting was refused.
    #[error("tap {name}: {setting} cannot be set")]
    Setting {
        /// The tap.
        name: String,
        /// The flag or the property.
        setting: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An open tap.
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<TapQueue>,
    mtu: u16,
}

/// One queue of a tap; reads and writes whole frames and never blocks.
#[derive(Debug)]
pub struct TapQueue(File);

impl Tap {
    /// Opens, or creates, the tap that `args` names, sets what `args` sets, and brings it up.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(args: &Args) -> Result<Self, TapError> {
        let wanted = args.tap.as_ref().map_or("vmtap%d", |name| name.as_str());
        let (first, name) = open_queue(wanted, args.num_queues)?;
        let mut queues = vec![first];
        while queues.len() < usize::from(args.num_queues) {
            queues.push(open_queue(&name, args.num_queues)?.0);
        }
        let mut tap = Self { name, queues, mtu: 0 };
        for queue in &tap.queues {
            let len = HEADER_LEN as libc::c_int;
            // SAFETY: TUNSETVNETHDRSZ reads one int.
            unsafe { ioctl(queue, libc::TUNSETVNETHDRSZ, &raw const len) }
                .map_err(|e| tap.setting("the virtio-net header", e))?;
        }
        tap.set_offloads(0).map_err(|e| tap.setting("offloads", e))?;
        tap.configure(args)?;
        Ok(tap)
    }

    /// Of descriptors that carry whole frames as a tap does: for the fuzz target.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn of_sockets(sockets: Vec<OwnedFd>) -> Self {
        let queues = sockets.into_iter().map(|socket| TapQueue(socket.into())).collect();
        Self { name: "socket".to_owned(), queues, mtu: 1500 }
    }

    /// Name of the interface.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Largest packet in bytes, without the Ethernet header.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// The queues, in order of the queue pairs.
    #[must_use]
    pub fn queues(&self) -> &[TapQueue] {
        &self.queues
    }

    /// Lets the kernel hand over what the guest can take: frames without checksum, large TCP segments.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_offloads(&self, features: u64) -> io::Result<()> {
        let flags = offloads(features);
        let set = |flags: libc::c_uint| {
            // SAFETY: TUNSETOFFLOAD takes its argument by value.
            unsafe { ioctl(&self.queues[0], libc::TUNSETOFFLOAD, flags as usize as *const libc::c_void) }
        };
        // Kernels without UFO refuse the flag; nothing is lost, since then they make no such frames.
        set(flags).or_else(|e| if flags & libc::TUN_F_UFO == 0 { Err(e) } else { set(flags & !libc::TUN_F_UFO) })
    }

    /// Announces addresses. That reveals nothing of the guest's state, so no epoch holds it.
    pub fn announce(&self, macs: &[Mac]) {
        for mac in macs {
            let mut frame = [0; HEADER_LEN + RARP_LEN];
            frame[HEADER_LEN..].copy_from_slice(&rarp(*mac));
            if let Err(e) = self.queues[0].write(&frame) {
                tracing::warn!("tap {}: announcement not sent: {e}", self.name);
            }
        }
    }

    fn setting(&self, setting: &'static str, source: io::Error) -> TapError {
        TapError::Setting { name: self.name.clone(), setting, source }
    }

    fn configure(&mut self, args: &Args) -> Result<(), TapError> {
        // SAFETY: a plain system call; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(self.setting("interface settings", io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was just created and is owned by nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        if let Some(mac) = args.mac {
            self.set(&socket, "--mac", libc::SIOCSIFHWADDR, |r| r.ifr_ifru.ifru_hwaddr = hardware_address(mac))?;
        }
        if let Some(mtu) = args.mtu {
            self.set(&socket, "--mtu", libc::SIOCSIFMTU, |r| r.ifr_ifru.ifru_mtu = mtu as libc::c_int)?;
        }
        self.mtu = self.read_mtu(&socket).map_err(|e| self.setting("--mtu", e))?;
        if let Some(ip) = args.ip {
            self.set(&socket, "--ip", libc::SIOCSIFADDR, |r| r.ifr_ifru.ifru_addr = inet_address(ip))?;
        }
        if let Some(mask) = args.mask {
            self.set(&socket, "--mask", libc::SIOCSIFNETMASK, |r| r.ifr_ifru.ifru_netmask = inet_address(mask))?;
        }
        self.bring_up(&socket)
    }

    fn read_mtu(&self, socket: &OwnedFd) -> io::Result<u16> {
        let mut request = interface(&self.name);
        // SAFETY: SIOCGIFMTU reads the name and fills in the MTU of an ifreq.
        unsafe { ioctl(socket, libc::SIOCGIFMTU, &raw mut request) }?;
        // SAFETY: the kernel has just filled in this member of the union.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        u16::try_from(mtu).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Only asks for what is not so yet: an owner who is not root may use a tap that root has brought up.
    fn bring_up(&self, socket: &OwnedFd) -> Result<(), TapError> {
        let mut request = interface(&self.name);
        // SAFETY: SIOCGIFFLAGS reads the name and fills in the flags of an ifreq.
        unsafe { ioctl(socket, libc::SIOCGIFFLAGS, &raw mut request) }.map_err(|e| self.setting("up", e))?;
        // SAFETY: the kernel has just filled in this member of the union.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        let up = libc::IFF_UP as libc::c_short;
        if flags & up == 0 {
            self.set(socket, "up", libc::SIOCSIFFLAGS, |r| r.ifr_ifru.ifru_flags = flags | up)?;
        }
        Ok(())
    }

    fn set(
        &self,
        socket: &OwnedFd,
        setting: &'static str,
        code: libc::Ioctl,
        fill: impl FnOnce(&mut libc::ifreq),
    ) -> Result<(), TapError> {
        let mut request = interface(&self.name);
        fill(&mut request);
        // SAFETY: the SIOCSIF* calls read one ifreq.
        unsafe { ioctl(socket, code, &raw const request) }.map_err(|e| self.setting(setting, e))
    }
}

impl TapQueue {
    /// Reads one frame with its header into `buf`. `WouldBlock` when there is none.
    ///
    /// # Errors
    /// As `read`.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buf)
    }

    /// Writes one frame with its header.
    ///
    /// # Errors
    /// As `write`; a frame with a header that the kernel finds wrong is `InvalidInput`.
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        (&self.0).write(frame).map(drop)
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for TapQueue {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// One more queue of the tap `wanted` (which may be a pattern), with the name that the kernel chose.
fn open_queue(wanted: &str, pairs: u16) -> Result<(TapQueue, String), TapError> {
    let attach = |flags: libc::c_int| -> io::Result<(TapQueue, String)> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        let mut request = interface(wanted);
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF reads an ifreq and writes the name back into it.
        unsafe { ioctl(&file, libc::TUNSETIFF, &raw mut request) }?;
        let name = request.ifr_name.iter().take_while(|c| **c != 0).map(|c| char::from(*c as u8)).collect();
        Ok((TapQueue(file), name))
    };
    OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(TapError::NoDriver)?;
    let single = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let multi = single | libc::IFF_MULTI_QUEUE;
    let result = match attach(if pairs > 1 { multi } else { single }) {
        // A tap that was made with multi_queue can also be used with one queue.
        Err(e) if pairs == 1 && e.raw_os_error() == Some(libc::EINVAL) => attach(multi),
        other => other,
    };
    result.map_err(|source| {
        let name = wanted.to_owned();
        match source.raw_os_error() {
            Some(libc::EBUSY) => TapError::InUse { name, source },
            Some(libc::EPERM | libc::EACCES) => TapError::NotPermitted { name, source },
            Some(libc::EINVAL) => TapError::WrongKind { name, queues: pairs, source },
            _ => TapError::Setting { name, setting: "a queue", source },
        }
    })
}

/// The kernel's flags for what the guest has agreed to receive.
fn offloads(features: u64) -> libc::c_uint {
    let has = |bit: u32| features & (1 << bit) != 0;
    if !has(VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let mut flags = libc::TUN_F_CSUM;
    let tso = [
        (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
        (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
        (VIRTIO_NET_F_GUEST_UFO, libc::TUN_F_UFO),
    ];
    for (_, flag) in tso.iter().filter(|(bit, _)| has(*bit)) {
        flags |= flag;
    }
    // ECN is a property of TCP segmentation: the kernel refuses it alone.
    if has(VIRTIO_NET_F_GUEST_ECN) && flags & (libc::TUN_F_TSO4 | libc::TUN_F_TSO6) != 0 {
        flags |= libc::TUN_F_TSO_ECN;
    }
    flags
}

/// An `ifreq` for the interface `name`, all else zero.
fn interface(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq is plain data, valid when zero.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // One byte less than there is room for: the name stays terminated.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn hardware_address(mac: Mac) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data.iter_mut().zip(mac) {
        *to = from as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: data }
}

fn inet_address(ip: Ipv4Addr) -> libc::sockaddr {
    // A sockaddr_in in the clothes of a sockaddr: two bytes of port, then the address.
    let mut data = [0; 14];
    for (to, from) in data[2..].iter_mut().zip(ip.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

/// # Safety
/// `argument` must be what the kernel expects for `code`, and writable if `code` writes.
unsafe fn ioctl<T>(fd: &impl AsRawFd, code: libc::Ioctl, argument: *const T) -> io::Result<()> {
    // SAFETY: the caller vouches for the pair of code and argument; the descriptor is open while borrowed.
    if unsafe { libc::ioctl(fd.as_raw_fd(), code, argument) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_follow_the_features() {
        let bits = |list: &[u32]| list.iter().fold(0, |f, bit| f | 1_u64 << bit);
        assert_eq!(offloads(0), 0);
        // Without checksum offload nothing else makes sense.
        assert_eq!(offloads(bits(&[VIRTIO_NET_F_GUEST_TSO4])), 0);
        assert_eq!(offloads(bits(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN])), libc::TUN_F_CSUM);
        assert_eq!(
            offloads(bits(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_ECN])),
            libc::TUN_F_CSUM | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN
        );
    }
}
