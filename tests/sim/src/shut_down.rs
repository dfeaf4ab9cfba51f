//! An operator shuts the VM down, as the VMM does it: its guest stops, the standby is told not to take over,
//! the disks and the witness note the end, the process ends. Follows `Ft::vm_ended`.

use std::time::Duration;

use ft::sim::Message;
use ft_proto::{State, Time};

use crate::operators::nobody;
use crate::process::Address;
use crate::world::{Event, World};

/// How long the end of the protection is waited for.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Between two looks.
const AGAIN: Duration = Duration::from_millis(1);

impl World {
    /// The VM ends. Its host is back when it has been away from now until then.
    pub(crate) fn shut_vm_down(&mut self, host: usize, until: Time) {
        let (now, address) = (self.now, self.address(host));
        let Some(process) = self.process(address).filter(|process| process.is_awake(now)) else { return };
        let stopped = process.body().guest.stopped;
        if !matches!(process.state(), State::Solo | State::Syncing | State::Protected) || stopped {
            return;
        }
        process.body().guest.running = false;
        process.ending = true;
        self.note(host, || "operator shuts the VM down".to_owned());
        self.say_to(address, Message::Stop(nobody()));
        let back = until.since(now);
        self.after(AGAIN, Event::Ending { address, limit: now + LAST_WORD, back });
    }

    /// It ends as soon as nobody is to be told any more.
    pub(crate) fn ending(&mut self, address: Address, limit: Time, back: Duration) {
        let now = self.now;
        let Some(process) = self.process(address) else { return };
        let alone = !matches!(process.state(), State::Syncing | State::Protected);
        if (!alone && now < limit) || !process.is_awake(now) {
            return self.after(AGAIN, Event::Ending { address, limit, back });
        }
        self.say_to(address, Message::VmEnded(nobody()));
        // The witness may have answered by then.
        let soon = self.rng.micros(0, 100_000);
        self.after(soon, Event::Ended(address, back));
    }

    /// The process ends. Its host starts another one so much later.
    pub(crate) fn ended(&mut self, address: Address, back: Duration) {
        if self.process(address).is_some() {
            self.note(address.0, || "ends".to_owned());
            self.kill(address.0, true);
            self.after(back, Event::Restart(address.0));
        }
    }
}
