//! Tells the network, after a takeover, that the guest's addresses now live behind this tap.
//!
//! In: the addresses. Out: RARP frames, the first at once, repeated with growing distance since a switch may
//! still be learning. Never: a claim about IP addresses, which this process does not know.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// Distance of each repetition from the one before.
const REPEAT_AFTER: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(400)];

/// Length of an announcement without virtio-net header: the shortest Ethernet frame.
pub const RARP_LEN: usize = 60;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A reverse ARP request (RFC 903) for `mac`, sent to everyone: switches learn the port from its source
/// address.
#[must_use]
pub fn rarp(mac: Mac) -> [u8; RARP_LEN] {
    let mut frame = [0; RARP_LEN];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&0x8035_u16.to_be_bytes());
    frame[14..16].copy_from_slice(&1_u16.to_be_bytes()); // hardware: Ethernet
    frame[16..18].copy_from_slice(&0x0800_u16.to_be_bytes()); // protocol: IPv4
    frame[18] = 6;
    frame[19] = 4;
    frame[20..22].copy_from_slice(&3_u16.to_be_bytes()); // request reverse
    frame[22..28].copy_from_slice(&mac);
    frame[32..38].copy_from_slice(&mac);
    frame
}

/// Which addresses are still to be announced, and when.
pub struct Announcer {
    timer: TimerFd,
    macs: Vec<Mac>,
    /// How many rounds are out.
    round: usize,
    /// No address was known at the takeover: the first frame of the guest tells it.
    waiting: bool,
    /// The guest's address, if it was given or is learned.
    guest: Option<Mac>,
}

impl Announcer {
    /// An announcer with nothing to say, of a guest whose address is `guest`, if that is known.
    ///
    /// # Errors
    /// When there is no timer to be had.
    pub fn new(guest: Option<Mac>) -> io::Result<Self> {
        // Not blocking: a timer that was armed again since the event loop saw it fire has nothing to read.
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        Ok(Self { timer, macs: Vec::new(), round: 0, waiting: false, guest })
    }

    /// Starts with `macs`; without any, with the guest's own address, as soon as that is known. The caller
    /// sends the first round at once.
    pub fn start(&mut self, macs: Vec<Mac>) {
        self.macs = if macs.is_empty() { self.guest.into_iter().collect() } else { macs };
        self.waiting = self.macs.is_empty();
        self.round = 0;
        self.rearm();
    }

    /// Stops: the VM does not run here any more, and where it runs it is announced too.
    pub fn stop(&mut self) {
        self.macs.clear();
        self.waiting = false;
        self.rearm();
    }

    /// Whether the guest's address is still to be learned from its frames.
    #[must_use]
    pub fn wants_address(&self) -> bool {
        self.guest.is_none()
    }

    /// The guest has sent a frame from `mac`. True: that was waited for, and the first round is to be sent.
    pub fn seen(&mut self, mac: Mac) -> bool {
        self.guest.get_or_insert(mac);
        let waiting = self.waiting;
        if waiting {
            self.start(vec![mac]);
        }
        waiting
    }

    /// Whether the timer has fired; arms the next round, if there is one.
    pub fn expired(&mut self) -> bool {
        if self.timer.wait().is_err() {
            return false;
        }
        self.round += 1;
        self.rearm();
        true
    }

    /// The addresses of this round.
    #[must_use]
    pub fn macs(&self) -> &[Mac] {
        &self.macs
    }

    fn rearm(&mut self) {
        let armed = match REPEAT_AFTER.get(self.round) {
            Some(after) if !self.macs.is_empty() => {
                self.timer.set(Expiration::OneShot((*after).into()), TimerSetTimeFlags::empty())
            }
            _ => self.timer.unset(),
        };
        if let Err(e) = armed {
            tracing::warn!("announcements are not repeated: {e}");
        }
    }
}

impl AsFd for Announcer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rarp_is_as_in_the_rfc() {
        let mac = [0x12, 0x34, 0x56, 0x78, 0x90, 0xab];
        let mut expected = vec![0xff; 6];
        expected.extend(mac);
        expected.extend([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        expected.extend(mac);
        expected.extend([0; 4]);
        expected.extend(mac);
        expected.extend([0; 4 + 18]);
        assert_eq!(rarp(mac).as_slice(), expected);
    }

    #[test]
    fn five_rounds_then_silence() {
        let mut announcer = Announcer::new(None).unwrap();
        announcer.start(vec![[2, 0, 0, 0, 0, 1]]);
        assert!(!announcer.expired());
        for _ in 0..REPEAT_AFTER.len() {
            assert!(announcer.timer.get().unwrap().is_some());
            announcer.round += 1;
            announcer.rearm();
        }
        assert!(announcer.timer.get().unwrap().is_none());
    }

    #[test]
    fn without_address_it_waits_for_the_first_frame() {
        let mut announcer = Announcer::new(None).unwrap();
        announcer.start(Vec::new());
        assert!(announcer.wants_address() && announcer.timer.get().unwrap().is_none());
        assert!(announcer.seen([2, 0, 0, 0, 0, 1]));
        assert!(!announcer.wants_address() && announcer.timer.get().unwrap().is_some());
        assert!(!announcer.seen([2, 0, 0, 0, 0, 2]));
        assert_eq!(announcer.macs(), [[2, 0, 0, 0, 0, 1]]);
    }

    #[test]
    fn whoever_has_left_is_not_announced_nor_waited_for() {
        for macs in [vec![[2, 0, 0, 0, 0, 1]], vec![]] {
            let mut announcer = Announcer::new(None).unwrap();
            announcer.start(macs);
            announcer.stop();
            assert!(announcer.timer.get().unwrap().is_none() && announcer.macs().is_empty());
            assert!(!announcer.seen([2, 0, 0, 0, 0, 1]) && announcer.timer.get().unwrap().is_none());
            announcer.start(vec![[2, 0, 0, 0, 0, 1]]);
            assert!(announcer.timer.get().unwrap().is_some());
        }
    }
}
