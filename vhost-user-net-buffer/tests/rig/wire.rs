//! The tap as the outside sees it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::{PATIENCE_MS, TAP, readable};

/// The outside end of the tap.
pub struct Wire(OwnedFd);

impl Wire {
    pub fn on(tap: &str) -> Self {
        let name = std::ffi::CString::new(tap).unwrap();
        // SAFETY: a terminated name.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        assert!(index > 0, "no interface {tap}");
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: plain system calls on a descriptor that is checked.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol)) };
        assert!(fd >= 0);
        // SAFETY: just made.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: plain data.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        (address.sll_family, address.sll_protocol, address.sll_ifindex) =
            (libc::AF_PACKET as u16, protocol, index as i32);
        // SAFETY: a sockaddr_ll of its own size.
        let bound = unsafe {
            libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
        };
        assert_eq!(bound, 0);
        Self(fd)
    }

    /// Sends a frame towards the guest.
    pub fn send(&self, frame: &[u8]) {
        // SAFETY: reads `frame`.
        let n = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(n, frame.len() as isize, "{}", io::Error::last_os_error());
    }

    fn recv(&self, flags: i32) -> Option<Vec<u8>> {
        loop {
            let mut buf = vec![0; 70_000];
            // SAFETY: plain data.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            // SAFETY: writes into `buf` and `from`, whose lengths are given.
            let n = unsafe {
                let to = buf.as_mut_ptr().cast();
                libc::recvfrom(self.0.as_raw_fd(), to, buf.len(), flags, (&raw mut from).cast(), &raw mut len)
            };
            if n < 0 {
                return None;
            }
            // What the host itself sends on the tap is not from the guest.
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                buf.truncate(n as usize);
                return Some(buf);
            }
        }
    }

    /// The next frame from the guest.
    pub fn next(&self) -> Vec<u8> {
        self.within(PATIENCE_MS).expect("a frame on the wire")
    }

    /// The next frame from the guest if it comes within `ms`.
    pub fn within(&self, ms: i32) -> Option<Vec<u8>> {
        loop {
            if !readable(self.0.as_raw_fd(), ms) {
                return None;
            }
            if let Some(frame) = self.recv(libc::MSG_DONTWAIT) {
                return Some(frame);
            }
        }
    }

    /// Nothing from the guest is waiting.
    pub fn is_silent(&self) -> bool {
        self.recv(libc::MSG_DONTWAIT).is_none()
    }
}

/// Makes a tap that stays, so that the wire can be watched after the device's end.
pub fn persistent_tap() -> std::fs::File {
    let tun = std::fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = [0_u8; 40];
    request[..TAP.len()].copy_from_slice(TAP.as_bytes());
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: an ifreq is 40 bytes; TUNSETPERSIST takes its argument by value.
    unsafe {
        assert_eq!(libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()), 0);
        assert_eq!(libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 1), 0);
    }
    tun
}

/// Frames towards the guest that the device has taken from the tap, or that the tap has dropped.
pub fn taken() -> u64 {
    let list = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = list.lines().find_map(|line| line.trim().strip_prefix(&format!("{TAP}:"))).expect("the tap");
    let numbers: Vec<u64> = line.split_whitespace().map(|number| number.parse().unwrap()).collect();
    // Received: 8 numbers; sent: bytes, packets, errors, dropped.
    numbers[9] + numbers[11]
}
