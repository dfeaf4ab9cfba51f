//! The client outside: stores values, reads them back, and remembers what it was told. A request without an
//! answer is unknown, never absent.

use std::time::Duration;

use ft_proto::Time;

use crate::guest::{Frame, KEYS, Request, Saying};
use crate::invariants::Moment;

/// A request that has no answer for so long is given up.
const PATIENCE: Duration = Duration::from_millis(50);

/// What the client knows of one key.
#[derive(Clone, Copy, Debug, Default)]
struct Key {
    /// The last value that was sent.
    sent: u64,
    /// The newest value that it was told of.
    known: u64,
    /// When to give the open request up, if there is one.
    open_until: Option<Time>,
    ticket: u64,
    /// What was known when the ticket was issued.
    floor: u64,
    put_at: Time,
}

/// Everything that the client knows.
#[derive(Debug, Default)]
pub(crate) struct Client {
    keys: [Key; KEYS],
    tickets: u64,
    /// When the newest value that was acknowledged had been sent.
    pub(crate) acknowledged: Time,
}

impl Client {
    /// A guest that boots has what is on its disk: what was only read from memory before is gone.
    pub(crate) fn forget_unstored(&mut self, blocks: &[u64]) {
        for (key, block) in self.keys.iter_mut().zip(blocks) {
            (key.known, key.ticket, key.open_until) = (key.known.min(*block), 0, None);
        }
    }

    /// Sends something about a key, unless the last request about it is still open.
    pub(crate) fn request(&mut self, at: usize, reads: bool, now: Time) -> Option<Request> {
        let key = &mut self.keys[at];
        if key.open_until.is_some_and(|until| until > now) {
            return None;
        }
        key.open_until = Some(now + PATIENCE);
        if reads {
            self.tickets += 1;
            (key.ticket, key.floor) = (self.tickets, key.known);
            Some(Request::Get { key: at, ticket: key.ticket })
        } else {
            key.sent += 1;
            key.put_at = now;
            Some(Request::Put { key: at, value: key.sent })
        }
    }

    /// An answer arrives; of a value that was asked for, what is to be checked.
    pub(crate) fn hears(&mut self, frame: Frame) -> Option<Moment> {
        match frame.saying {
            Saying::Chatter | Saying::Printed => None,
            Saying::Stored { key, value } => {
                let known = &mut self.keys[key];
                known.known = known.known.max(value);
                if value == known.sent {
                    known.open_until = None;
                    self.acknowledged = self.acknowledged.max(known.put_at);
                }
                None
            }
            Saying::Value { key, value, ticket } => {
                let known = &mut self.keys[key];
                if known.ticket != ticket {
                    return None;
                }
                known.open_until = None;
                known.ticket = 0;
                let floor = known.floor;
                known.known = known.known.max(value);
                Some(Moment::Read { key, value, floor })
            }
        }
    }
}
