//! The host's side of the card: one port for each tap queue, with the frame that was read from it last.
//!
//! A port is polled only while its frames can go somewhere. Otherwise it is *parked*, and they stay in the
//! tap.

use std::io;

use device_kit::events::Events;

use crate::output::CHUNK;
use crate::ring::{FRAME_MAX, HEADER_LEN};
use crate::tap::{Tap, TapQueue};

/// One tap queue.
#[derive(Debug)]
struct Port {
    /// A frame read from the tap that waits for guest buffers.
    frame: Box<[u8]>,
    /// Its length; 0 when there is none.
    frame_len: usize,
    /// The tap is not polled: sealed, or the guest has no buffers.
    parked: bool,
    /// The tap has failed for good.
    dead: bool,
}

/// All tap queues.
pub struct Ports {
    tap: Tap,
    ports: Vec<Port>,
    /// Where they are polled, and the number of the first one's event.
    events: Option<(Events, usize)>,
    /// Why one of them is dead, until somebody has asked.
    trouble: Option<String>,
}

impl Ports {
    /// Of a tap; none is polled yet.
    #[must_use]
    pub fn new(tap: Tap) -> Self {
        let port = |_: &TapQueue| Port {
            frame: vec![0; FRAME_MAX].into_boxed_slice(),
            frame_len: 0,
            parked: true,
            dead: false,
        };
        Self { ports: tap.queues().iter().map(port).collect(), tap, events: None, trouble: None }
    }

    /// The tap.
    #[must_use]
    pub fn tap(&self) -> &Tap {
        &self.tap
    }

    /// Their number.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ports.len()
    }

    /// Polls all of them from now on. Their events are `first` and those that follow.
    pub fn attach(&mut self, events: &Events, first: usize) {
        self.events = Some((events.clone(), first));
        (0..self.count()).for_each(|port| self.unpark(port));
    }

    /// Stops polling a tap; its frames stay in it.
    pub fn park(&mut self, port: usize) {
        if !std::mem::replace(&mut self.ports[port].parked, true)
            && let Some((events, _)) = &self.events
        {
            events.unwatch(&self.tap.queues()[port]);
        }
    }

    /// Polls a tap again.
    fn unpark(&mut self, port: usize) {
        if self.ports[port].dead || !self.ports[port].parked {
            return;
        }
        let Some((events, first)) = &self.events else { return };
        match events.watch(&self.tap.queues()[port], first + port) {
            Ok(()) => self.ports[port].parked = false,
            Err(e) => host_kit::log_limited!(error, "tap {}: cannot be polled: {e}", self.tap.name()),
        }
    }

    /// Whether a port has failed for good.
    #[must_use]
    pub fn is_dead(&self, port: usize) -> bool {
        self.ports[port].dead
    }

    /// Why a port has failed for good, if that was not asked before.
    pub fn take_trouble(&mut self) -> Option<String> {
        self.trouble.take()
    }

    /// Reads the next frame of a port, if there is none that waits. False: there is none, and the port is
    /// polled again.
    pub fn fetch(&mut self, port: usize) -> bool {
        if self.ports[port].frame_len > 0 {
            return true;
        }
        match self.tap.queues()[port].read(&mut self.ports[port].frame) {
            Ok(len) if len > HEADER_LEN => {
                self.ports[port].frame_len = len;
                true
            }
            Ok(_) => false,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                self.unpark(port);
                false
            }
            Err(e) => {
                // The interface was deleted, or is down for good.
                let reason = format!("tap {}: cannot be read: {e}", self.tap.name());
                tracing::error!("{reason}");
                self.park(port);
                self.ports[port].dead = true;
                self.trouble = Some(reason);
                false
            }
        }
    }

    /// The frame that waits, with its header.
    pub fn frame(&mut self, port: usize) -> &mut [u8] {
        let Port { frame, frame_len, .. } = &mut self.ports[port];
        &mut frame[..*frame_len]
    }

    /// The frame that waits does so no more.
    pub fn drop_frame(&mut self, port: usize) {
        self.ports[port].frame_len = 0;
    }

    /// As [`Ports::drop_frame`], for all.
    pub fn drop_frames(&mut self) {
        self.ports.iter_mut().for_each(|port| port.frame_len = 0);
    }

    /// Reads some frames and drops them. Returns how many, and whether there may be more.
    pub fn drain(&mut self, port: usize) -> (usize, bool) {
        for frames in 0..CHUNK {
            if !self.fetch(port) {
                return (frames, false);
            }
            self.drop_frame(port);
        }
        (CHUNK, true)
    }
}
