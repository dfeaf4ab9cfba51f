//! A TCP relay in front of the standby that can stop in the middle of the stream.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use crate::Netns;

/// What may pass from the connecting side; the other direction is free.
#[derive(Debug)]
struct Gate {
    /// Bytes that may still pass.
    allowance: u64,
    /// Connections, to be cut.
    streams: Vec<TcpStream>,
}

/// The relay. Ends with its connections when dropped.
pub struct Proxy {
    listener: TcpListener,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

impl Proxy {
    /// Relay from `listen` to `to`, in `netns`.
    #[must_use]
    pub fn new(netns: &Netns, listen: SocketAddr, to: SocketAddr) -> Self {
        let listener = netns.run(|| TcpListener::bind(listen).expect("listen"));
        let gate = Arc::new((Mutex::new(Gate { allowance: u64::MAX, streams: Vec::new() }), Condvar::new()));
        let shared = Arc::clone(&gate);
        let connect = netns.handle();
        let accept = listener.try_clone().expect("a second handle of a socket");
        thread::spawn(move || {
            for stream in accept.incoming().map_while(Result::ok) {
                // Refused: the connecting side sees its connection close, as it would without a relay.
                let Ok(out) = connect.run(|| TcpStream::connect(to)) else { continue };
                relay(&shared, &stream, &out);
            }
        });
        Self { listener, gate }
    }

    /// Let `bytes` more pass, then hold the stream up.
    pub fn stall_after(&self, bytes: u64) {
        self.gate.0.lock().expect("gate").allowance = bytes;
        self.gate.1.notify_all();
    }

    /// Let everything pass again.
    pub fn open(&self) {
        self.gate.0.lock().expect("gate").allowance = u64::MAX;
        self.gate.1.notify_all();
    }

    /// Wait until the stream is held up.
    pub fn wait_stalled(&self) {
        let gate = self.gate.0.lock().expect("gate");
        let wait = self.gate.1.wait_timeout_while(gate, Duration::from_secs(20), |gate| gate.allowance > 0);
        assert!(!wait.expect("gate").1.timed_out(), "the stream ended before it could be held up");
    }

    /// Close both sides of all connections.
    pub fn cut(&self) {
        let mut gate = self.gate.0.lock().expect("gate");
        for stream in gate.streams.drain(..) {
            // Closed already: fine.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Wakes the accepting thread with an error. Cannot fail for a socket that is ours.
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        self.cut();
        self.open();
    }
}

fn relay(gate: &Arc<(Mutex<Gate>, Condvar)>, stream: &TcpStream, out: &TcpStream) {
    let clone = |stream: &TcpStream| stream.try_clone().expect("a second handle of a socket");
    gate.0.lock().expect("gate").streams.extend([clone(stream), clone(out)]);
    for (mut from, mut to, gate) in
        [(clone(stream), clone(out), Some(Arc::clone(gate))), (clone(out), clone(stream), None)]
    {
        thread::spawn(move || {
            let mut bytes = vec![0; 64 << 10];
            while let Ok(len) = from.read(&mut bytes)
                && len > 0
                && pass(gate.as_deref(), &bytes[..len], &mut to)
            {}
            // The other side sees the end that this one saw.
            let _ = to.shutdown(Shutdown::Write);
        });
    }
}

/// Write `bytes` as far and as soon as the gate allows; whether the connection still works.
fn pass(gate: Option<&(Mutex<Gate>, Condvar)>, mut bytes: &[u8], to: &mut TcpStream) -> bool {
    let Some((gate, changed)) = gate else { return to.write_all(bytes).is_ok() };
    while !bytes.is_empty() {
        let mut gate = changed.wait_while(gate.lock().expect("gate"), |gate| gate.allowance == 0).expect("gate");
        let len = gate.allowance.min(bytes.len() as u64);
        if gate.allowance != u64::MAX {
            gate.allowance -= len;
        }
        let (now, later) = bytes.split_at(usize::try_from(len).unwrap_or(bytes.len()));
        let written = to.write_all(now).is_ok();
        changed.notify_all();
        if !written {
            return false;
        }
        bytes = later;
    }
    true
}
