//! What operators have the engine do with a VM that runs here: end its protection, for good or for a while, hand it over, move
//! it, see it fail over. Calls are answered when the core has decided, and that has been done.

use ft_proto::witness::Claim;
use ft_proto::{Input, State};
use host_kit::error::chain;

use super::protection::Protection;
use crate::context::inbox::Reply;
use crate::context::{Answer, Context};
use crate::options::ProtectOptions;
use crate::platform::Platform;
use crate::transport::heartbeats::Heartbeats;

/// Calls that wait for what becomes of the VM.
#[derive(Default)]
pub(super) struct OperatorCommands {
    /// They are answered when this node is alone, or fenced.
    ending: Vec<Reply>,
    /// They are answered when the VM has left, or stays.
    moving: Vec<Reply>,
}

impl OperatorCommands {
    /// Ends protection for good.
    pub(super) fn stop<P: Platform>(&mut self, cx: &mut Context<P>, protection: &mut Protection, reply: Reply) {
        let ends_something = protection.stop();
        if cx.machine_mut().take_base().is_some() && cx.node().runs() {
            cx.machine_mut().guest().stop_tracking();
            cx.reporter().publish_soon();
        }
        if !matches!(cx.state(), State::Syncing | State::Protected) {
            // Perhaps there is nothing to end but the search, or a suspension.
            let ended = ends_something && cx.state() == State::Solo;
            let answer = if ended { Ok(()) } else { Err(not_protected(cx, protection)) };
            return cx.answer(reply, answer);
        }
        self.ending.push(reply);
        cx.input(Input::StopRequested);
    }

    /// As `stop`, but memory goes on to be tracked, and the standby keeps its copy. `session`: how it came about.
    pub(super) fn suspend<P: Platform>(
        &mut self,
        cx: &mut Context<P>,
        protection: &mut Protection,
        session: Option<ProtectOptions>,
        reply: Reply,
    ) {
        let Some(options) = session else {
            let reasons = not_protected(cx, protection);
            return cx.answer(reply, Err(reasons));
        };
        protection.suspend(options);
        self.ending.push(reply);
        cx.input(Input::StopRequested);
        cx.reporter().publish_soon();
    }

    /// Lets the standby go on with the VM at once.
    pub(super) fn hand_over<P: Platform>(
        &self,
        cx: &mut Context<P>,
        protection: &Protection,
        reason: String,
        reply: Reply,
    ) {
        let answer = if cx.state() == State::Protected {
            // Needs nobody's consent: when the core has been told, this node has stopped and said so.
            cx.input(Input::YieldRequested { reason });
            Ok(())
        } else {
            Err(not_protected(cx, protection))
        };
        cx.answer(reply, answer);
    }

    /// Moves the VM to its standby. Answered when it has left, or stays.
    pub(super) fn switchover<P: Platform>(&mut self, cx: &mut Context<P>, protection: &Protection, reply: Reply) {
        if !cx.node().has_a_successor() {
            let reasons = not_protected(cx, protection);
            return cx.answer(reply, Err(reasons));
        }
        self.moving.push(reply);
        cx.input(Input::SwitchoverRequested);
    }

    /// Is to the standby as if this host had died: nothing leaves it any more, beats and goodbyes included. Returns the
    /// call, which is to be answered when the session is broken off, too.
    pub(super) fn test_failover<P: Platform>(
        &self,
        cx: &mut Context<P>,
        protection: &Protection,
        reply: Reply,
    ) -> Option<Reply> {
        if !cx.node().has_a_successor() {
            let reasons = not_protected(cx, protection);
            cx.answer(reply, Err(reasons));
            return None;
        }
        cx.beats().route(Default::default(), None);
        cx.input(Input::CeaseRequested);
        Some(reply)
    }

    /// The VM is shut down: whoever has its newest disks may start it.
    pub(super) fn vm_ended<P: Platform>(&self, cx: &mut Context<P>, reply: Reply) {
        if cx.node().runs() && cx.witness().client().is_some() {
            let (node, term) = (cx.node().id(), cx.term());
            match cx.devices().note_end(term) {
                Ok(disks) => cx.ask_witness(Claim::Stop { node, term, disks }),
                // Then nobody could tell which disks are the newest.
                Err(error) => {
                    tracing::warn!(target: "ft", "the witness goes on to say that this VM runs: {}", chain(&error));
                }
            }
        }
        // The witness is asked before the engine ends, if it answers in time.
        cx.answer(reply, Ok(()));
    }

    /// This node is alone, or fenced.
    pub(super) fn ended<P: Platform>(&mut self, cx: &mut Context<P>, answer: &Answer) {
        self.ending.drain(..).for_each(|reply| cx.answer(reply, answer.clone()));
    }

    /// The VM has left, or stays.
    pub(super) fn moved<P: Platform>(&mut self, cx: &mut Context<P>, answer: &Answer) {
        self.moving.drain(..).for_each(|reply| cx.answer(reply, answer.clone()));
    }
}

fn not_protected<P: Platform>(cx: &mut Context<P>, protection: &Protection) -> Vec<String> {
    let state = match cx.state() {
        State::Protected => "about to go on alone",
        _ => cx.state_name(protection.is_suspended(cx)),
    };
    vec![format!("this VM is not protected, it is {state}")]
}
