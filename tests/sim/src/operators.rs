//! Operators who look after the hosts: they ask for protection, and start again what has ended.

use std::time::Duration;

use crossbeam_channel::bounded;
use ft::sim::{Message, Reply};
use ft_proto::State;

use crate::platform::Sim;
use crate::world::{Event, World};

/// Where an answer goes that nobody reads.
pub(crate) fn nobody() -> Reply {
    bounded(1).0
}

impl World {
    /// Looks after a host.
    pub(crate) fn operator(&mut self, host: usize) {
        let again = self.rng.micros(10_000, 60_000);
        self.after(again, Event::Operator(host));
        self.look_after_vm();
        let now = self.now;
        let target = (host + 1 + self.rng.index(self.plan.hosts - 1)) % self.plan.hosts;
        let address = self.address(host);
        let Some(process) = self.process(address) else { return };
        if !process.is_awake(now) || process.ending {
            return;
        }
        match process.state() {
            // Nobody restarts a VM that runs; one that lost a device waits to be taken over.
            State::Solo if process.opening.is_none() && !process.is_broken() => {
                let options = self.plan.protect_by(target);
                let resumes = self.rng.chance(500_000);
                // Refused, unless protection is suspended.
                let resume = resumes.then(|| Message::Resume(nobody()));
                self.say_to(address, resume.unwrap_or_else(|| Message::Protect(Some(options), nobody())));
            }
            State::Solo if process.is_broken() => self.restart_soon(host, Self::restart),
            // These are built anew without a question.
            State::Fenced => self.restart_soon(host, Self::start_standby),
            State::StandbyEmpty | State::StandbySyncing | State::StandbyReady if process.is_broken() => {
                self.restart_soon(host, Self::start_standby);
            }
            _ => {}
        }
    }

    /// An operator has the engine of a host do something.
    pub(crate) fn order(&mut self, host: usize, what: &str, message: Message<Sim>) {
        self.note(host, || format!("operator {what}"));
        self.after(Duration::ZERO, Event::Tell(self.address(host), Box::new(message)));
    }

    fn restart_soon(&mut self, host: usize, start: fn(&mut Self, usize)) {
        if self.rng.chance(100_000) {
            self.note(host, || "is restarted by its operator".to_owned());
            self.kill(host, true);
            start(self, host);
        }
    }
}
