//! Messages between the VMM and a device process, both directions, through the real socket.

use std::cell::RefCell;

use device_api::link::{Link, LinkError};
use ft_wire::device_ctl::{CTL_MAX, Command, Report, decode, encode};
use nix::sys::socket::{MsgFlags, send};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::fd::{AsRawFd, OwnedFd};

thread_local! {
    static SOCKETS: RefCell<(Link, OwnedFd)> = RefCell::new(Link::pair().unwrap());
}

/// Receives the input as a command and as a report.
pub fn run(input: &[u8]) {
    receive::<Command>(input);
    receive::<Report>(input);
}

fn receive<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(input: &[u8]) {
    if input.is_empty() {
        return;
    }
    let mut buffer = vec![0; CTL_MAX];
    let received = SOCKETS.with_borrow(|(link, peer)| {
        send(peer.as_raw_fd(), input, MsgFlags::MSG_DONTWAIT).ok()?;
        match link.receive::<T>(&mut buffer, "message") {
            Ok(Some((message, fd))) => {
                assert!(fd.is_none());
                Some(message)
            }
            Ok(None) => panic!("nothing arrived"),
            Err(LinkError::TooLong { .. }) => {
                assert!(input.len() > CTL_MAX);
                None
            }
            Err(_) => None,
        }
    });
    let Some(message) = received else { return };
    let mut room = vec![0; 8 * CTL_MAX];
    let again = encode(&message, &mut room).unwrap();
    assert_eq!(decode::<T>(again).unwrap(), message);
}
