//! The sending end of one mirror stream: the lock around its [`State`], its socket, and how its threads wait.

use std::collections::HashSet;
use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use ft_proto::Epoch;
use ft_transport::mirror::{FrameSocket, MirrorStream};
use ft_wire::device_ctl::Report;
use ft_wire::mirror::Frame;
use host_kit::sync::lock;
use tracing::warn;
use vmm_sys_util::eventfd::EventFd;

use crate::image::range::Range;
use crate::mirror::outbox::Body;
use crate::mirror::state::State;
use crate::session::Session;

/// One stream, shared by the worker and the stream's threads.
pub struct Stream {
    socket: FrameSocket,
    state: Mutex<State>,
    changed: Condvar,
    reports: Session,
    wake: Arc<EventFd>,
}

impl Stream {
    /// On a connected socket; the rest as for [`State::new`]. `wake` is signalled when the worker
    /// should try again.
    ///
    /// # Errors
    /// When the descriptor is not a socket.
    pub fn new(
        stream: MirrorStream,
        (epoch, limit, earlier): (Epoch, u64, HashSet<u64>),
        reports: Session,
        wake: Arc<EventFd>,
    ) -> io::Result<Self> {
        let state = Mutex::new(State::new(epoch, limit, earlier));
        Ok(Self { socket: FrameSocket::new(stream)?, state, changed: Condvar::new(), reports, wake })
    }

    /// For reading and writing frames.
    #[must_use]
    pub fn socket(&self) -> &FrameSocket {
        &self.socket
    }

    /// The VMM's reports on this stream.
    #[must_use]
    pub fn reports(&self) -> &Session {
        &self.reports
    }

    /// Reads the state, or changes it in a way that no thread waits for.
    pub fn with<R>(&self, how: impl FnOnce(&mut State) -> R) -> R {
        how(&mut lock(&self.state))
    }

    /// Changes the state in a way that a thread may wait for: queues frames.
    pub fn update<R>(&self, how: impl FnOnce(&mut State) -> R) -> R {
        let result = self.with(how);
        self.notify();
        result
    }

    /// Wakes the stream's threads to check the state again.
    pub fn notify(&self) {
        self.changed.notify_all();
    }

    /// Blocks until there is a frame to be sent; `None` when the stream is closed.
    #[must_use]
    pub fn next(&self) -> Option<(Frame, Body)> {
        let mut state = lock(&self.state);
        let next = loop {
            if !state.is_open() {
                return None;
            }
            if let Some(next) = state.outbox_mut().pop() {
                break next;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        let (room, copying) = (state.outbox_mut().has_room_again(), state.is_copying());
        drop(state);
        if room {
            self.wake_worker();
        }
        if copying {
            // The copy waits for room.
            self.notify();
        }
        Some(next)
    }

    /// Blocks until the copy may continue, not before `earliest`, and begins a chunk. `None` when the stream
    /// is closed.
    pub fn begin_chunk(&self, range: Range, earliest: Instant) -> Option<()> {
        let mut state = lock(&self.state);
        while state.is_open() {
            let pause = earliest.saturating_duration_since(Instant::now());
            if !pause.is_zero() {
                state = self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
            } else if state.may_copy() {
                state.begin_chunk(range);
                return Some(());
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        None
    }

    /// Closes the stream and reports the reason; only the first one counts.
    pub fn lose(&self, reason: &str) {
        if !self.update(State::close) {
            return;
        }
        warn!("mirror stream: {reason}");
        self.socket.shutdown(Shutdown::Both);
        self.reports.finish(&Report::MirrorLost { reason: reason.to_owned() });
        // Not before the report: the worker drops a lost mirror when it wakes, and that ends reports.
        self.with(State::set_lost);
        self.wake_worker();
    }

    /// Closes the stream without a report.
    pub fn close(&self) {
        self.reports.close();
        let _ = self.update(State::close);
        self.socket.shutdown(Shutdown::Both);
    }

    fn wake_worker(&self) {
        // Fails only when the counter is at its end, and then it is readable already.
        let _ = self.wake.write(1);
    }
}
