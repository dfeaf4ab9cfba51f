//! What operators have the engine do with a VM that runs here: end its protection, hand it over, move it, see it fail over.

use std::time::Instant;

use ft_proto::witness::Claim;
use ft_proto::{Input, State};

use crate::engine::{Engine, Session};
use crate::inbox::Reply;

impl Engine {
    pub(crate) fn stop(&mut self, reply: Reply) {
        let looked = self.search.due().is_some();
        self.search.switch(false);
        if !matches!(self.node.state(), State::Syncing | State::Protected) {
            // Perhaps there is nothing to end but the search.
            let only_looked = looked && self.node.state() == State::Solo;
            let _ = reply.send(if only_looked { Ok(()) } else { Err(self.not_protected()) });
            return;
        }
        self.waiting.push(reply);
        self.input(Input::StopRequested);
    }

    pub(crate) fn hand_over(&mut self, reason: String, reply: &Reply) {
        let result = if self.node.state() == State::Protected {
            // Needs nobody's consent: when the core has been told, this node has stopped and said so.
            self.input(Input::YieldRequested { reason });
            Ok(())
        } else {
            Err(self.not_protected())
        };
        let _ = reply.send(result);
    }

    /// Moves the VM to its standby. Answered when it has left, or stays.
    pub(crate) fn switchover(&mut self, reply: Reply) {
        if !self.node.has_a_successor() {
            let _ = reply.send(Err(self.not_protected()));
            return;
        }
        self.moving.push(reply);
        self.input(Input::SwitchoverRequested);
    }

    /// Is to the standby as if this host had died: nothing leaves it any more, beats and goodbyes included.
    pub(crate) fn test_failover(&mut self, reply: &Reply) {
        if !self.node.has_a_successor() {
            let _ = reply.send(Err(self.not_protected()));
            return;
        }
        self.beats.route(Vec::new(), None);
        self.input(Input::CeaseRequested);
        self.unwatch_stream();
        // Dropping it breaks the stream, with whatever is on its way.
        self.session = Session::None;
        self.publish();
        let _ = reply.send(Ok(()));
    }

    /// The VM is shut down: whoever comes next may start it anywhere.
    pub(crate) fn vm_ended(&mut self, reply: &Reply) {
        if self.node.runs() {
            self.ask_witness(Claim::Stop { node: self.node.id(), term: self.node.term() });
        }
        // The witness is asked before the engine ends, if it answers in time.
        let _ = reply.send(Ok(()));
    }

    /// Those who wait for the VM to leave, or to stay.
    pub(crate) fn answer_moving(&mut self, result: Result<(), Vec<String>>) {
        for reply in self.moving.drain(..) {
            let _ = reply.send(result.clone());
        }
    }

    /// The guest stands still for good, or until `GoAlone`.
    pub(crate) fn guest_stopped(&mut self) {
        self.stopped.get_or_insert_with(Instant::now);
    }

    fn not_protected(&self) -> Vec<String> {
        let state = match self.node.state() {
            State::Protected => "about to go on alone",
            _ => self.state_name(),
        };
        vec![format!("this VM is not protected, it is {state}")]
    }
}
