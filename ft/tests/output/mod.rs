//! Whatever holds output: the console, and devices that join and leave while the VM is protected.

use ft::guest::{DeviceCaps, LinkEnd};
use ft_wire::device_ctl::{self, CTL_MAX, Command, Report};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use super::*;

#[test]
fn console_output_cuts_an_epoch_as_a_frame_does() {
    let pair = Pair::new();
    // Nothing else cuts one for a minute.
    let mut options = pair.options.clone();
    options.tuning.max_epoch_us = 60_000_000;
    pair.a().protect(Some(options)).unwrap();
    wait_state(pair.a(), State::Protected);
    let released = || pair.guest_a.0.lock().unwrap().console_released;
    for _ in 0..3 {
        let epoch = pair.guest_a.print();
        wait(|| released() >= epoch, || format!("epoch {epoch} is not released: {:?}", pair.a().status()));
    }
    let epochs = committed(&pair.a().status());
    assert!(epochs < 10, "{epochs} epochs, where four were asked for");
}

/// A device whose process seals at once, and holds what it is told to.
fn fake_device(id: &str, caps: DeviceCaps) -> (LinkEnd, thread::JoinHandle<u32>) {
    let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let serve = move || {
        let (mut buffer, mut seals, mut holds) = (vec![0; CTL_MAX], 0, false);
        // The engine's end is closed when the device has left.
        while let Ok(len @ 1..) = recv(far.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            let report = match device_ctl::decode(&buffer[..len]).unwrap() {
                Command::Seal { epoch, .. } => {
                    seals += 1;
                    let (queues, in_flight) = (Vec::new(), Vec::new());
                    Report::Sealed { epoch, queues, in_flight, held_frames: 0, held_bytes: 0, idle: !holds }
                }
                Command::Protect { hold, .. } => {
                    holds = hold.is_on();
                    continue;
                }
                _ => continue,
            };
            let report = device_ctl::encode(&report, &mut buffer).unwrap();
            send(far.as_raw_fd(), report, MsgFlags::empty()).unwrap();
        }
        assert!(holds, "its output was never held");
        seals
    };
    (LinkEnd { id: id.to_owned(), caps, socket: near }, thread::spawn(serve))
}

#[test]
fn a_device_joins_and_leaves_while_the_vm_is_protected() {
    let pair = Pair::protected();
    let net = DeviceCaps { holds_output: true, ..DeviceCaps::default() };
    for round in 0..2 {
        let (end, device) = fake_device("_net7", net);
        pair.a().device_joined(end).unwrap();
        let before = committed(&pair.a().status());
        wait(|| committed(&pair.a().status()) > before + 3, || format!("{:?}", pair.a().status()));
        pair.a().device_left("_net7").unwrap();
        let seals = device.join().unwrap();
        assert!(seals >= 3, "round {round}: sealed {seals} times");
    }
    assert!(pair.a().device_left("_net7").is_err());
    let before = committed(&pair.a().status());
    wait(|| committed(&pair.a().status()) > before + 3, || format!("{:?}", pair.a().status()));
    assert_eq!(pair.a().status().state, State::Protected);
    // A disk would have to be copied first.
    let (end, _device) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let end = LinkEnd { id: "_disk7".to_owned(), caps: toy::DISK, socket: end };
    assert!(pair.a().device_joined(end).unwrap_err().to_string().contains("_disk7"));
}
