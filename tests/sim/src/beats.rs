//! The heartbeat threads of the processes: what they send, where, and what counts of what arrives.

use std::time::Duration;

use ft_proto::LinkId;
use ft_wire::beat::encode;

use crate::invariants::Moment;
use crate::mutation::Mutation;
use crate::process::{Address, Beats, Delivery};
use crate::world::{Event, World};

impl World {
    pub(crate) fn beats_of(&mut self, address: Address, change: impl FnOnce(&mut Beats)) {
        if let Some(process) = self.process(address) {
            change(&mut process.beats);
        }
    }

    /// What is said goes out on both links.
    pub(crate) fn send_beats(&mut self, address: Address) {
        let Some(process) = self.process(address) else { return };
        let (Some(to), Some(key)) = (process.beats.route, process.beats.key) else { return };
        let (term, runs) = process.beats.said;
        process.beats.sent += 1;
        let number = process.beats.sent;
        if !runs {
            // Its standby has been told.
            let until = self.now;
            self.truth.disturb(address.0, to, until);
        }
        for link in LinkId::ALL {
            if self.network.is_blocked(address.0, to, link, self.now) || self.rng.chance(self.plan.loss) {
                continue;
            }
            let bytes = encode(&key, link, number, term, runs).to_vec();
            for _ in 0..=u32::from(self.rng.chance(self.plan.duplicates)) {
                let (low, high) = self.plan.delay_us;
                let delay = self.rng.micros(low, high);
                self.after(delay, Event::Beat { to, link, bytes: bytes.clone() });
            }
        }
    }

    /// The thread's own clock.
    pub(crate) fn beat_tick(&mut self, address: Address, generation: u64) {
        let now = self.now;
        let Some(process) = self.process(address).filter(|process| process.beats.generation == generation) else {
            return;
        };
        let (paused, interval) = (process.paused_until, process.beats.interval);
        if paused > now {
            return self.at(paused, Event::BeatTick(address, generation));
        }
        self.send_beats(address);
        self.after(interval, Event::BeatTick(address, generation));
    }

    /// Beats go to that host from now on, or nowhere.
    pub(crate) fn route_beats(&mut self, address: Address, to: Option<usize>, interval: Duration) {
        let Some(process) = self.process(address) else { return };
        process.beats.route = to;
        process.beats.interval = interval;
        process.beats.generation += 1;
        let generation = process.beats.generation;
        self.at(self.now, Event::BeatTick(address, generation));
    }

    /// What is not of this session is dropped before anybody looks at it.
    pub(crate) fn beat_arrives(&mut self, to: usize, link: LinkId, bytes: &[u8]) {
        let (address, at) = (self.address(to), self.local(to));
        let fences = self.mutation == Some(Mutation::BeatFences);
        let Some(process) = self.process(address) else { return };
        process.beats.filter.set_key(process.beats.key);
        let Ok(beat) = process.beats.filter.pass(bytes, link) else {
            if fences && process.runs() {
                let node = process.id();
                return self.moment(Moment::Fenced { node, reason: "a beat of somebody else".to_owned() });
            }
            return;
        };
        self.tell(address, Delivery::Beat { link, at, beat });
    }
}
