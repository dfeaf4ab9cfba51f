//! The client outside: stores values, reads them back, and remembers what it was told. A request without an answer is
//! unknown, never absent.

use ft_proto::Time;

use crate::guest::{Frame, KEYS, Request, Saying};
use crate::invariants::Moment;
use crate::world::{Event, World};

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
}

impl World {
    /// The client does something.
    pub(crate) fn client_tick(&mut self) {
        let (again, delay) = (self.rng.micros(500, 4000), self.rng.micros(20, 500));
        let (at, reads) = (self.rng.index(KEYS), self.rng.chance(400_000));
        let lost = self.rng.chance(self.plan.loss);
        self.after(again, Event::ClientTick);
        let now = self.now;
        let key = &mut self.client.keys[at];
        if key.open_until.is_some_and(|until| until > now) {
            return;
        }
        key.open_until = Some(now + std::time::Duration::from_millis(50));
        let request = if reads {
            self.client.tickets += 1;
            (key.ticket, key.floor) = (self.client.tickets, key.known);
            Request::Get { key: at, ticket: key.ticket }
        } else {
            key.sent += 1;
            key.put_at = now;
            Request::Put { key: at, value: key.sent }
        };
        if !lost {
            self.after(delay, Event::Request(request));
        }
    }

    /// An answer reaches the client.
    pub(crate) fn client_hears(&mut self, frame: Frame) {
        match frame.saying {
            Saying::Chatter => {}
            Saying::Stored { key, value } => {
                let known = &mut self.client.keys[key];
                known.known = known.known.max(value);
                if value == known.sent {
                    known.open_until = None;
                    self.client.acknowledged = self.client.acknowledged.max(known.put_at);
                }
            }
            Saying::Value { key, value, ticket } => {
                let known = &mut self.client.keys[key];
                if known.ticket != ticket {
                    return;
                }
                known.open_until = None;
                known.ticket = 0;
                let floor = known.floor;
                known.known = known.known.max(value);
                self.moment(Moment::Read { key, value, floor });
            }
        }
    }
}
