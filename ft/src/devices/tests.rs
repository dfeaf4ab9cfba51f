//! Devices are treated by their capabilities, wherever they stand in the list.
#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

use std::os::fd::{AsRawFd, OwnedFd};

use ft_wire::device_ctl::{CTL_MAX, decode, encode};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use super::socket::ControlSocket;
use super::*;

const DISK: DeviceCaps = DeviceCaps { mirrors: true, holds_output: false, in_flight: true };
const CDROM: DeviceCaps = DeviceCaps { mirrors: false, ..DISK };
const NET: DeviceCaps = DeviceCaps { mirrors: false, holds_output: true, in_flight: false };
const RNG: DeviceCaps = DeviceCaps { mirrors: false, holds_output: false, in_flight: false };

struct Fake(OwnedFd);

impl Fake {
    /// What it was told, by name.
    fn told(&self) -> Vec<String> {
        let mut buffer = vec![0; CTL_MAX];
        let mut told = Vec::new();
        while let Ok(len @ 1..) = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            let command: Command = decode(&buffer[..len]).unwrap();
            let name = format!("{command:?}");
            told.push(name.split([' ', '(']).next().unwrap().to_owned());
        }
        told
    }

    fn say(&self, report: &Report) {
        let mut buffer = [0; 256];
        send(self.0.as_raw_fd(), encode(report, &mut buffer).unwrap(), MsgFlags::empty()).unwrap();
    }

    fn seals(&self, epoch: Epoch, held_bytes: u64) {
        let report = Report::Sealed {
            epoch,
            queues: Vec::new(),
            in_flight: Vec::new(),
            held_frames: 0,
            held_bytes,
            idle: held_bytes == 0,
        };
        self.say(&report);
    }
}

fn end(id: &str, caps: DeviceCaps) -> (DeviceEnd<ControlSocket>, Fake) {
    let (ours, device) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    (DeviceEnd { caps, control: ControlSocket::new(id.to_owned(), ours) }, Fake(device))
}

fn devices<const N: usize>(those: [(&str, DeviceCaps); N]) -> (Devices<ControlSocket>, [Fake; N]) {
    let (mut ends, mut fakes) = (Vec::new(), Vec::new());
    for (id, caps) in those {
        let (end, fake) = end(id, caps);
        ends.push(end);
        fakes.push(fake);
    }
    (Devices::new(ends, &Shape::default()), fakes.try_into().unwrap_or_else(|_| unreachable!()))
}

#[test]
fn the_base_holds_the_output_of_whoever_can_wherever_it_stands() {
    let (mut devices, [net, disk, rng, other]) = devices([("n", NET), ("d", DISK), ("r", RNG), ("m", NET)]);
    devices.resume(Some(Epoch(2)));
    let told = [&net, &disk, &rng, &other].map(Fake::told);
    assert_eq!(told, [vec!["Protect", "Resume"], vec!["Resume"], vec!["Resume"], vec!["Protect", "Resume"]]);
    devices.resume(None);
    assert_eq!([net.told(), disk.told()], [["Resume"], ["Resume"]]);
}

#[test]
fn a_position_is_that_of_its_device_and_who_joins_or_leaves_changes_no_other() {
    let (mut devices, [disk, net]) = devices([("d", DISK), ("n", NET)]);
    let (late, rng) = end("r", RNG);
    let key = devices.add(late, &Shape::default());
    for (epoch, gone) in [(Epoch(3), false), (Epoch(4), true)] {
        if gone {
            devices.remove(devices.by_id("d").unwrap());
        } else {
            disk.seals(epoch, 0);
        }
        net.seals(epoch, 9);
        rng.seals(epoch, 0);
        let mut positions = Vec::new();
        let held = devices.seal(epoch, None, &mut positions, &DeviceWait::default()).unwrap();
        assert_eq!((held.frames(), held.bytes()), (0, 9));
        let ids: Vec<_> = positions.iter().map(|position| position.id.as_str()).collect();
        assert_eq!(ids, if gone { vec!["n", "r"] } else { vec!["d", "n", "r"] });
    }
    assert_eq!((devices.id(key), devices.by_id("d"), devices.caps(key)), ("r", None, RNG));
    assert_eq!(disk.told(), ["Seal"], "it was not there the second time");
}

#[test]
fn whoever_follows_checkpoints_is_rolled_back_and_nobody_else() {
    let (mut devices, [rng, disk, net, cdrom]) = devices([("r", RNG), ("d", DISK), ("n", NET), ("c", CDROM)]);
    devices.roll_back(|_| Epoch(7)).unwrap();
    disk.say(&Report::Discarded);
    cdrom.say(&Report::Discarded);
    devices.rolled_back().unwrap();
    assert_eq!([rng.told().len(), net.told().len()], [0, 0]);
    assert_eq!([disk.told(), cdrom.told()], [["Discard"], ["Discard"]]);
    // Only what is written by the guest has an owner to note.
    disk.say(&Report::Owned);
    devices.note_owner(VmId(1), Term(2)).unwrap();
    assert_eq!((disk.told(), cdrom.told().len()), (vec!["Own".to_owned()], 0));
}

#[test]
fn reports_that_came_too_early_are_told_afterwards() {
    let (mut devices, [disk, net]) = devices([("d", DISK), ("n", NET)]);
    net.say(&Report::Held { epoch: Epoch(2) });
    disk.seals(Epoch(1), 0);
    net.seals(Epoch(1), 0);
    devices.seal(Epoch(1), None, &mut Vec::new(), &DeviceWait::default()).unwrap();
    let (key, report) = devices.early_report().unwrap();
    assert_eq!((devices.id(key), report), ("n", Report::Held { epoch: Epoch(2) }));
    assert_eq!(devices.early_report(), None);
}

#[test]
fn a_device_that_a_vcpu_waits_for_has_more_time_to_seal() {
    let (mut devices, [disk]) = devices([("d", DISK)]);
    let answered = std::thread::scope(|scope| {
        let disk = &disk;
        // Each time that the limit is over it is asked once.
        let (asked, again) = std::sync::mpsc::channel();
        let device_wait = DeviceWait::new(move || asked.send(()).is_ok());
        scope.spawn(move || {
            again.recv().unwrap();
            again.recv().unwrap();
            disk.seals(Epoch(1), 5);
        });
        devices.seal(Epoch(1), None, &mut Vec::new(), &device_wait).map(Held::bytes)
    });
    assert_eq!(answered.unwrap(), 5);
    let silent = devices.seal(Epoch(2), None, &mut Vec::new(), &DeviceWait::default());
    assert!(matches!(silent, Err(LinkError::Silent { .. })), "{silent:?}");
}
