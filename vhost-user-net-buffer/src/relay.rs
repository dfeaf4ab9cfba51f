//! Lets frontends enable queues before they have acknowledged any feature, as QEMU does with network cards.
//!
//! The vhost-user library breaks the connection then, though its check is about a feature that both sides
//! have. So the library talks to this relay, which acknowledges that feature first and then passes messages
//! on, whole and with their descriptors. It is used for plain backends only and carries no data, only the
//! set-up of queues.

use std::io::{self, Read};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use host_kit::event_loop::{self, readable};
use host_kit::sandbox::Needs;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockname, listen, socket,
};
use vhost::vhost_user::message::{FrontendReq, VhostUserVirtioFeatures};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Request, flags, length of what follows.
const HEADER: usize = 12;
/// No message of the protocol is longer, header excluded.
const BODY_MAX: usize = 4096;
/// The most descriptors in one message.
const FDS_MAX: usize = 32;
/// The two ends.
const FRONTEND: u32 = 0;
const INNER: u32 = 1;
/// Version 1 of the protocol, no reply wanted.
const FLAGS: u32 = 1;

/// Starts relaying between `frontend` and the returned listening socket, which has one connection waiting.
///
/// # Errors
/// When sockets or a thread cannot be had.
pub fn start(frontend: UnixStream) -> io::Result<OwnedFd> {
    let new = || socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
    let (listener, inner) = (new()?, new()?);
    // The kernel picks an abstract name; by the time anyone could learn it our connection is first in the
    // queue.
    bind(listener.as_raw_fd(), &UnixAddr::new_unnamed())?;
    listen(&listener, Backlog::new(1)?)?;
    connect(inner.as_raw_fd(), &getsockname::<UnixAddr>(listener.as_raw_fd())?)?;
    let inner = UnixStream::from(inner);
    host_kit::thread::spawn("vhost-relay", Needs::MESSAGES, move || {
        if let Err(e) = relay(&frontend, &inner) {
            tracing::debug!("vhost-user relay: {e}");
        }
        // Either end may be gone already.
        let _ = frontend.shutdown(Shutdown::Both);
        let _ = inner.shutdown(Shutdown::Both);
    })?;
    Ok(listener)
}

fn relay(frontend: &UnixStream, inner: &UnixStream) -> io::Result<()> {
    let mut message = [0; HEADER + BODY_MAX];
    acknowledge(inner, &mut message)?;
    let mut result = Ok(());
    event_loop::run(vec![readable(frontend, FRONTEND), readable(inner, INNER)], |from| {
        let (from, to) = if from == FRONTEND { (frontend, inner) } else { (inner, frontend) };
        result = pass(from, to, &mut message);
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    result
}

/// Acknowledges the protocol features, and only them; the frontend will say what else it wants.
fn acknowledge(inner: &UnixStream, message: &mut [u8]) -> io::Result<()> {
    message[..4].copy_from_slice(&(FrontendReq::SET_FEATURES as u32).to_ne_bytes());
    message[4..8].copy_from_slice(&FLAGS.to_ne_bytes());
    message[8..12].copy_from_slice(&8_u32.to_ne_bytes());
    message[12..20].copy_from_slice(&VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits().to_ne_bytes());
    send(inner, &message[..20], &[])
}

/// Passes one message on. Descriptors come with its first byte and leave with it.
fn pass(from: &UnixStream, to: &UnixStream, message: &mut [u8; HEADER + BODY_MAX]) -> io::Result<()> {
    let mut raw = [-1; FDS_MAX];
    let mut iovecs = [libc::iovec { iov_base: message.as_mut_ptr().cast(), iov_len: HEADER }];
    // SAFETY: the one vector is valid for writes of its length through the call.
    let (n, count) = unsafe { from.recv_with_fds(&mut iovecs, &mut raw) }.map_err(io::Error::from)?;
    // SAFETY: the kernel has just made these descriptors for us; nobody else knows them.
    let owned: Vec<OwnedFd> = raw[..count].iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }).collect();
    if n == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut from = from;
    from.read_exact(&mut message[n..HEADER])?;
    let len = u32::from_ne_bytes([message[8], message[9], message[10], message[11]]) as usize;
    let body = message.get_mut(HEADER..HEADER + len).ok_or(io::ErrorKind::InvalidData)?;
    from.read_exact(body)?;
    let fds: Vec<RawFd> = owned.iter().map(AsRawFd::as_raw_fd).collect();
    send(to, &message[..HEADER + len], &fds)
}

fn send(to: &UnixStream, mut bytes: &[u8], mut fds: &[RawFd]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = to.send_with_fds(&[bytes], fds).map_err(io::Error::from)?;
        bytes = &bytes[n..];
        fds = &[];
    }
    Ok(())
}
