//! Commands of operators for a VM that runs here: stop or suspend protection, hand the VM over, switch over,
//! test a failover. A call is answered when the core has decided and the decision has been performed.

use ft_proto::witness::Claim;
use ft_proto::{Input, State};
use ft_transport::heartbeats::Heartbeats;
use host_kit::error::chain;
use pollux_api::Refused;

use super::protection::Protection;
use crate::context::inbox::Reply;
use crate::context::{Answer, Context};
use crate::options::ProtectOptions;
use crate::platform::Platform;

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

    /// As `stop`, but memory goes on to be tracked, and the standby keeps its copy. `session`: how it came
    /// about.
    pub(super) fn suspend<P: Platform>(
        &mut self,
        cx: &mut Context<P>,
        protection: &mut Protection,
        session: Option<ProtectOptions>,
        reply: Reply,
    ) {
        let Some(options) = session else {
            let why = not_protected(cx, protection);
            return cx.answer(reply, Err(why));
        };
        protection.suspend(options);
        self.ending.push(reply);
        cx.input(Input::StopRequested);
        cx.reporter().publish_soon();
    }

    /// Lets the standby go on with the VM at once. Answered with success only if it does: not if it is being
    /// left.
    pub(super) fn hand_over<P: Platform>(
        &self,
        cx: &mut Context<P>,
        protection: &Protection,
        reason: String,
        reply: Reply,
    ) {
        let answer = if cx.node().can_fail_over() {
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
        if !cx.node().can_fail_over() {
            let why = not_protected(cx, protection);
            return cx.answer(reply, Err(why));
        }
        self.moving.push(reply);
        cx.input(Input::SwitchoverRequested);
    }

    /// Is to the standby as if this host had died: nothing leaves it any more, beats and goodbyes included.
    /// Returns the call, which is to be answered when the session is broken off, too.
    pub(super) fn test_failover<P: Platform>(
        &self,
        cx: &mut Context<P>,
        protection: &Protection,
        reply: Reply,
    ) -> Option<Reply> {
        if !cx.node().can_fail_over() {
            let why = not_protected(cx, protection);
            cx.answer(reply, Err(why));
            return None;
        }
        cx.beats().route(Default::default(), None);
        cx.input(Input::SimulateCrash);
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
                    tracing::warn!(target: "ft", "the witness still says that this VM runs: {}", chain(&error));
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

fn not_protected<P: Platform>(cx: &mut Context<P>, protection: &Protection) -> Refused {
    match cx.state() {
        State::Protected => Refused::AboutToGoAlone,
        _ => Refused::NotProtected(cx.state_name(protection.is_suspended(cx))),
    }
}
