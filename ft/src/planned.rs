//! What operators have the engine do with a VM that runs here: end its protection, for good or for a while, hand it over, move
//! it, see it fail over.

use std::time::{Duration, Instant};

use ft_proto::device_ctl::{Command, Report};
use ft_proto::witness::Claim;
use ft_proto::{Input, State, Term};
use host_kit::error::chain;

use crate::device_link::LinkError;
use crate::engine::{Engine, Session};
use crate::inbox::Reply;

/// A disk has one small write to do.
const NOTE_LIMIT: Duration = Duration::from_secs(5);

impl Engine {
    pub(crate) fn stop(&mut self, reply: Reply) {
        let ends_something = self.suspended.take().is_some() || self.search.due().is_some();
        self.search.switch(false);
        if self.memory_base.take().is_some() && self.node.runs() {
            self.guest.stop_tracking();
            self.publish();
        }
        if !matches!(self.node.state(), State::Syncing | State::Protected) {
            // Perhaps there is nothing to end but the search, or a suspension.
            let ended = ends_something && self.node.state() == State::Solo;
            let _ = reply.send(if ended { Ok(()) } else { Err(self.not_protected()) });
            return;
        }
        self.waiting.push(reply);
        self.input(Input::StopRequested);
    }

    /// As `stop`, but memory goes on to be tracked, and the standby keeps its copy.
    pub(crate) fn suspend(&mut self, reply: Reply) {
        let Session::Primary(side) = &self.session else {
            let _ = reply.send(Err(self.not_protected()));
            return;
        };
        self.suspended = Some(side.options().clone());
        self.search.switch(false);
        self.waiting.push(reply);
        self.input(Input::StopRequested);
        self.publish();
    }

    /// Asks the standby that was there before, then the configured ones.
    pub(crate) fn resume(&mut self, reply: Reply) {
        let Some(first) = self.suspended.clone().filter(|_| self.is_alone()) else {
            let _ = reply.send(Err(vec![format!("protection is not suspended, this VM is {}", self.state_name())]));
            return;
        };
        let others = self.search.peers().iter().filter(|other| other.peer != first.peer).cloned();
        let peers = std::iter::once(first.clone()).chain(others).collect();
        self.ask_peers(peers, reply);
    }

    /// Whether the VM runs alone because an operator wants it to, for a while.
    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended.is_some() && self.node.state() == State::Solo
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

    /// The VM is shut down: whoever has its newest disks may start it.
    pub(crate) fn vm_ended(&mut self, reply: &Reply) {
        if self.node.runs() && self.witness.is_some() {
            match self.end_disks() {
                Ok(disks) => {
                    self.ask_witness(Claim::Stop { node: self.node.id(), term: self.node.term(), disks });
                }
                // Then nobody could tell which disks are the newest.
                Err(error) => {
                    tracing::warn!(target: "ft", "the witness goes on to say that this VM runs: {}", chain(&error));
                }
            }
        }
        // The witness is asked before the engine ends, if it answers in time.
        let _ = reply.send(Ok(()));
    }

    /// Has the disks note that they are the newest; what they say from now on.
    fn end_disks(&mut self) -> Result<Term, LinkError> {
        let term = self.node.term();
        self.ask_disks(|| Command::End(term), &Report::Ended)?;
        Ok(if self.mirrored_disks().is_empty() { Term(0) } else { term })
    }

    /// Has all disks that the guest writes do something small, and waits for their answers.
    pub(crate) fn ask_disks(&mut self, command: impl Fn() -> Command, answer: &Report) -> Result<(), LinkError> {
        let disks = self.mirrored_disks();
        for &at in &disks {
            self.links[at].send(&command(), None)?;
        }
        for &at in &disks {
            self.links[at].wait_for(NOTE_LIMIT, |report| if report == *answer { Ok(()) } else { Err(report) })?;
        }
        Ok(())
    }

    /// Where their links are.
    pub(crate) fn mirrored_disks(&self) -> Vec<usize> {
        self.guest.shape().mirrored().map(usize::from).collect()
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
