//! What a host that runs the VM has others know of that: its disks note the term, and the witness's record is looked at now and then.

use std::time::Duration;

use ft_proto::device_ctl::{Command, Report};
use ft_proto::{Input, State, Term, Time};
use serde_json::json;

use crate::devices::link::LinkError;
use crate::engine::Engine;
use crate::engine::inbox::Message;
use crate::witness::Stored;

/// How often the record is looked at while the VM runs here.
const LOOK: Duration = Duration::from_secs(5);

impl Engine {
    /// Has the disks note that this host runs the VM, before it does: afterwards they prove it.
    pub(crate) fn note_owner(&mut self) -> Result<(), LinkError> {
        if !self.node.runs() {
            return Ok(());
        }
        let (Some(vm), term) = (self.identity.vm, self.node.term()) else { return Ok(()) };
        self.ask_disks(|| Command::Own { vm, term }, &Report::Owned)
    }

    /// Has the disks note that this host runs the VM in `term`; nobody waits for it.
    pub(crate) fn tell_owner(&mut self, term: Term) {
        let Some(vm) = self.identity.vm else { return };
        for at in self.mirrored_disks() {
            // A device that is gone is noticed by its closed socket.
            let _ = self.links[at].send(&Command::Own { vm, term }, None);
        }
    }

    /// When to look at the record.
    pub(crate) fn record_due(&self) -> Option<Time> {
        let concerned = matches!(self.node.state(), State::Solo | State::Protected) && self.witness.is_some();
        self.identity.look_at.filter(|_| concerned)
    }

    /// Has the record read, if it is time for that. Who runs the VM should not find out only when it needs the witness that there
    /// is no record any more, or that it names somebody else.
    pub(crate) fn watch_record(&mut self) {
        let now = self.clock.now();
        let (Some(due), Some(witness)) = (self.record_due(), &self.witness) else { return };
        if due > now {
            return;
        }
        self.identity.look_at = Some(now + LOOK);
        let post = self.post.clone();
        witness.read(move |record| post.send(Message::RecordRead(record)));
    }

    /// The record was read.
    pub(crate) fn record_read(&mut self, record: Result<Option<Stored>, String>) {
        // A witness that does not answer is told in the status, and by whoever needs it.
        let Ok(stored) = record else { return };
        let other = stored.and_then(|stored| stored.vm).filter(|vm| Some(*vm) != self.identity.vm);
        if let Some(other) = other {
            self.lose_record(|engine| engine.note("witness-of-another-vm", json!({ "vm": other.to_string() })));
            return;
        }
        if stored.is_some() {
            self.identity.record_lost = false;
            self.input(Input::RecordRead { record: stored.map(|stored| stored.record) });
        } else if self.node.state() == State::Protected {
            self.input(Input::RecordRead { record: None });
        } else {
            self.lose_record(|engine| engine.input(Input::RecordRead { record: None }));
        }
    }

    /// Told once until there is a record again.
    fn lose_record(&mut self, tell: impl FnOnce(&mut Self)) {
        if !std::mem::replace(&mut self.identity.record_lost, true) {
            tell(self);
        }
    }
}
