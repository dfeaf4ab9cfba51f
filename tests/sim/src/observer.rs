//! The client in the world: when it sends requests, and what it makes of the answers.

use crate::guest::{Frame, KEYS};
use crate::world::{Event, World};

impl World {
    /// The client does something.
    pub(crate) fn client_tick(&mut self) {
        let (again, delay) = (self.rng.micros(500, 4000), self.rng.micros(20, 500));
        let (at, reads) = (self.rng.index(KEYS), self.rng.chance(400_000));
        let lost = self.rng.chance(self.plan.loss);
        self.after(again, Event::ClientTick);
        if let Some(request) = self.client.request(at, reads, self.now)
            && !lost
        {
            self.after(delay, Event::Request(request));
        }
    }

    /// An answer reaches the client.
    pub(crate) fn client_hears(&mut self, frame: Frame) {
        if let Some(moment) = self.client.hears(frame) {
            self.moment(moment);
        }
    }
}
