//! The executor: tells the core what has happened, and performs what the core decides, in that order, until
//! there is nothing left.
//!
//! ```text
//!  message, report, frame, timer --> session, checkpointer, protection ... --> inputs --> core
//!                                                   ^------- perform <-------- actions ----'
//! ```
//!
//! [`Executor::settle`] is the one loop. What is performed may add inputs, which are handled when the actions
//! of the one before are done; nothing that is performed calls the loop.

use std::ops::ControlFlow;

#[cfg(feature = "sim")]
use ft_proto::Node;
use ft_proto::{Action, Alone, CutKind, Epoch, Event, Input, State, Term, Time};
use ft_wire::device_ctl::Report;
#[cfg(feature = "sim")]
use ft_wire::session::Standing;
use host_kit::error::chain;
use pollux_api::event::EventName;
use pollux_api::status::Takeover;
use pollux_api::{Blocker, Refused};
use serde_json::json;

#[cfg(feature = "sim")]
use super::admission;
use super::admission::{Admission, Admitted};
use super::checkpointer::Checkpointer;
use super::operator_commands::OperatorCommands;
use super::protection::Protection;
use crate::checkpoint::capture::CaptureError;
use crate::context::inbox::{Message, Reply};
use crate::context::{Context, Shown};
use crate::devices::control::{DeviceControl, LinkError};
use crate::devices::{DeviceEnd, DeviceKey};
use crate::peers::application::Unopened;
use crate::platform::{OpenedOn, Platform};
use crate::session::Session;
use crate::session::primary::{FRAMES_PER_LOOK, PrimarySession};
use crate::session::standby::StandbySession;
use crate::stream::ends::Job;

/// Everything that the engine's thread owns but what it waits with.
pub struct Executor<P: Platform> {
    cx: Context<P>,
    session: Session<P>,
    /// Sessions so far.
    sessions: u64,
    checkpointer: Checkpointer,
    protection: Protection,
    commands: OperatorCommands,
    admission: Admission,
}

impl<P: Platform> Executor<P> {
    pub(super) fn new(cx: Context<P>, protection: Protection, admission: Admission) -> Self {
        Self {
            cx,
            session: Session::None,
            sessions: 0,
            checkpointer: Checkpointer::new(None),
            protection,
            commands: OperatorCommands::default(),
            admission,
        }
    }

    /// Has the disks note that this host runs the VM, before it does: afterwards they prove it.
    pub fn note_owner(&mut self) -> Result<(), LinkError> {
        let (Some(vm), term) = (self.cx.identity().vm(), self.cx.term()) else { return Ok(()) };
        if self.cx.node().runs() { self.cx.devices().note_owner(vm, term) } else { Ok(()) }
    }

    /// Before anything happens.
    pub fn begin(&mut self) {
        if !self.cx.node().runs() {
            self.cx.devices().stand_by();
        }
        self.settle();
    }

    /// The engine ends.
    pub fn end(&self) {
        self.cx.witness().finish();
    }

    /// The core.
    #[cfg(feature = "sim")]
    pub fn node(&self) -> &Node {
        self.cx.node()
    }

    /// What this host says of itself to one that asks.
    #[cfg(feature = "sim")]
    pub fn standing(&self) -> Standing {
        admission::standing(&self.cx, &self.session)
    }

    /// Whether a checkpoint is kept for the next session.
    #[cfg(feature = "sim")]
    pub fn keeps_base(&self) -> bool {
        self.cx.machine().base().is_some()
    }

    pub(crate) fn context(&mut self) -> &mut Context<P> {
        &mut self.cx
    }

    /// Whether epochs are being made: somebody may wait for one.
    pub(crate) fn is_urgent(&self) -> bool {
        matches!(self.cx.state(), State::Protected | State::StandbyReady)
    }

    /// What is to be done from time to time.
    pub fn look_around(&mut self) {
        self.protection.look_for_standby(&mut self.cx);
        self.cx.check_record();
        self.settle();
    }

    /// When to call [`Self::timer_fired`] if nothing else happens.
    pub fn due(&mut self) -> Option<Time> {
        let status = (!self.session.is_none()).then_some(self.cx.reporter().due());
        let (copy, cut) = match &self.session {
            Session::Primary(session) => (session.copy_due(), self.checkpointer.due()),
            _ => (None, None),
        };
        let others = [copy, cut, status, self.protection.due(&self.cx), self.cx.record_due()];
        self.cx.node().poll_timeout().into_iter().chain(others.into_iter().flatten()).min()
    }

    /// Time has passed.
    pub fn timer_fired(&mut self) {
        let now = self.cx.now();
        if let Some((epoch, kind)) = self.checkpointer.take_due(now) {
            self.cut(epoch, kind);
            self.settle();
        }
        self.cx.input(Input::Timeout);
        self.settle();
        if let Some(session) = self.session.primary() {
            session.pump(&mut self.cx);
        }
        self.settle();
    }

    /// The standby's side of the stream has something.
    pub fn read_stream(&mut self) {
        // A standby that talks without end must not have all of this thread.
        for _ in 0..FRAMES_PER_LOOK {
            let Some(session) = self.session.primary() else { return };
            let more = session.read_frame(&mut self.cx);
            self.settle();
            if !more {
                return;
            }
        }
        // What has been read from the socket already does not wake us.
        self.cx.post().send(Message::ReadOn);
    }

    /// A device has something.
    pub fn read_device(&mut self, key: DeviceKey) {
        loop {
            match self.cx.devices().report(key) {
                Ok(Some(report)) => self.report(key, report),
                Ok(None) => return,
                Err(error) => {
                    self.cx.unwatch_device(key);
                    self.device_failed(key, &chain(&error));
                    return self.settle();
                }
            }
            self.settle();
        }
    }

    fn report(&mut self, key: DeviceKey, report: Report) {
        let mirrors = self.cx.devices().caps(key).mirrors;
        match report {
            Report::Held { epoch } | Report::Full { epoch } => self.output_held(epoch),
            Report::Failed { reason } => self.device_failed(key, &reason),
            Report::Complete { epoch } => {
                if let Some(session) = self.session.standby() {
                    session.disk_complete(&mut self.cx, key, epoch);
                }
            }
            report @ (Report::Resync { .. } | Report::InSync | Report::MirrorLost { .. }) if mirrors => {
                match (&mut self.session, report) {
                    (Session::Primary(session), report) => session.disk_report(&mut self.cx, key, report),
                    (Session::Standby(_), Report::MirrorLost { reason }) => self.cx.mirror_lost(key, &reason),
                    _ => {}
                }
            }
            // Answers that nobody waits for any more.
            _ => {}
        }
    }

    /// Output is held. Of an epoch that is sealed already the cut was made.
    fn output_held(&mut self, epoch: Epoch) {
        if epoch == self.cx.node().epoch() {
            self.cx.input(Input::CutWanted);
        }
    }

    fn device_failed(&mut self, key: DeviceKey, reason: &str) {
        let id = self.cx.devices().id(key).to_owned();
        self.cx.note(EventName::DeviceFailed, json!({ "device": id, "reason": reason }));
        self.cx.reporter().failed(reason.to_owned());
        self.cx.machine_mut().device_failed(reason);
        let (term, reason) = (self.cx.term(), reason.to_owned());
        match self.session {
            Session::None => {}
            Session::Primary(_) => self.cx.input(Input::YieldRequested { reason }),
            Session::Standby(_) => self.cx.input(Input::PeerLeft { term, reason }),
        }
    }

    /// Tells the core everything that there is to tell, performs what it decides, and says what came of it.
    /// Called when something has happened, and by nothing that is performed.
    fn settle(&mut self) {
        loop {
            while self.cx.feed() {
                while let Some(action) = self.cx.next_action() {
                    self.perform(action);
                }
                if self.cx.state() == State::Fenced {
                    // Those that waited for a move that succeeded have been answered.
                    let reason = self.cx.reporter().last_error().unwrap_or_default().to_owned();
                    self.commands.moved(&mut self.cx, &Err(Refused::Fenced(reason)));
                }
            }
            // Those that came while a device was waited for do not show up in epoll.
            let Some((key, report)) = self.cx.devices().early_report() else { break };
            self.report(key, report);
        }
        if self.cx.state() == State::StandbyEmpty {
            self.cx.machine_mut().stand_by();
        }
        if self.cx.reporter().is_stale() {
            self.publish();
        }
        self.cx.send_answers();
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Cut { epoch, kind } => self.cut(epoch, kind),
            Action::Release(committed) => {
                self.cx.machine_mut().release(&committed);
                if let Some(session) = self.session.primary() {
                    session.committed(&mut self.cx, &committed);
                }
            }
            Action::Commit(committed) => {
                if let Some(session) = self.session.standby() {
                    session.commit(&mut self.cx, &committed);
                }
            }
            Action::AskWitness(claim) => self.cx.ask_witness(claim),
            Action::TakeOver { committed, term } => self.take_over(committed, term),
            Action::GoAlone(alone) => self.go_alone(&alone),
            Action::Yield => self.yield_to_standby(),
            Action::Dismiss => {
                if let Some(session) = self.session.primary() {
                    session.dismiss();
                }
            }
            Action::Fence { reason } => self.fence(reason),
            Action::Reset { reason } => self.reset(reason),
            Action::Event(event) => self.event(&event),
        }
    }

    /// Captures an epoch and hands it to the session that receives it.
    fn cut(&mut self, epoch: Epoch, kind: CutKind) {
        let Some(session) = self.session.primary() else { return };
        let input = match self.checkpointer.cut(&mut self.cx, epoch, kind) {
            Ok(Some(checkpoint)) => {
                let (image, begun) = checkpoint.image();
                session.send_epoch(&self.cx, image, begun, checkpoint.carriers());
                let (paused, pages) = (checkpoint.paused(), checkpoint.pages());
                if kind == CutKind::Last {
                    let now = self.cx.now();
                    self.cx.machine_mut().stopped(Some(now - paused));
                }
                Input::CutDone { epoch, paused, pages }
            }
            Ok(None) => return,
            // Before the first checkpoint there is nobody to yield to.
            Err(CaptureError::Device(error)) if kind != CutKind::Base => {
                Input::YieldRequested { reason: chain(&error) }
            }
            Err(error) => Input::CutFailed { epoch, reason: chain(&error) },
        };
        let done = matches!(input, Input::CutDone { .. });
        if kind != CutKind::Last || !done {
            // After the epoch is on its way: somebody may wait for it.
            self.cx.machine_mut().resume_devices(kind == CutKind::Base && done, epoch.next());
        }
        self.cx.input_first(input);
    }

    fn take_over(&mut self, committed: Epoch, term: Term) {
        // Clients wait. The threads that it starts may run anywhere.
        self.cx.platform().pin_to_cpu(None);
        self.cx.platform().set_realtime(true);
        let Some(session) = self.session.take_standby() else {
            return self.cx.input(Input::TakeOverFailed { reason: "there is no session".to_owned() });
        };
        match session.take_over(&mut self.cx, committed) {
            Ok(takeover) => {
                self.cx.reporter().took_over(takeover);
                let Takeover { total_us, gap_us, .. } = takeover;
                let mut detail = json!({ "epoch": committed.0, "term": term.0, "us": total_us });
                if let Some(gap_us) = gap_us {
                    detail["gap_us"] = gap_us.into();
                }
                self.cx.note(EventName::TakeoverCompleted, detail);
                // They have noted the next term by themselves; nobody waits for the answer.
                self.cx.tell_owner(term);
                self.cx.reporter().publish_soon();
            }
            Err(error) => self.cx.input(Input::TakeOverFailed { reason: chain(&error) }),
        }
    }

    fn go_alone(&mut self, alone: &Alone) {
        let vm = self.cx.identity().vm();
        self.cx.machine_mut().go_alone(alone, vm);
        let kept = match &self.session {
            Session::Primary(session) if self.protection.goes_on() => session.keep_base(&mut self.cx),
            _ => false,
        };
        if !kept {
            self.cx.machine_mut().guest().stop_tracking();
        }
        if self.protection.will_resume() {
            let kept = self.cx.machine().base().is_some();
            self.cx.note(EventName::ProtectionSuspended, json!({ "memory_kept": kept }));
        }
        self.end_primary(Job::Bye("the primary goes on alone".to_owned()));
        self.commands.ended(&mut self.cx, &Ok(()));
        self.commands.moved(&mut self.cx, &Err(Refused::StandbyLost));
    }

    /// The fence before it has noted why.
    fn yield_to_standby(&mut self) {
        let reason = self.cx.reporter().last_error().unwrap_or_default().to_owned();
        let stopped = self.cx.machine().stopped_since().unwrap_or_else(|| self.cx.now());
        self.end_primary(Job::Yield(reason, stopped));
        self.commands.moved(&mut self.cx, &Ok(()));
    }

    fn end_primary(&mut self, last: Job) {
        if let Some(session) = self.session.take_primary() {
            session.end(&mut self.cx, last);
        }
        self.checkpointer = Checkpointer::new(self.cx.platform().cpu_load());
    }

    fn fence(&mut self, reason: String) {
        let now = self.cx.now();
        self.cx.machine_mut().fence(&reason, now);
        self.cx.reporter().failed(reason.clone());
        self.commands.ended(&mut self.cx, &Err(Refused::Fenced(reason)));
    }

    fn reset(&mut self, reason: String) {
        if let Some(session) = self.session.take_standby() {
            session.reset(&mut self.cx, &reason);
        }
        self.cx.devices().drop_session();
        self.cx.reporter().failed(reason);
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::PeerSuspected { silence_ms } => {
                let now = self.cx.now();
                self.cx.reporter().suspect(Some((*silence_ms, now)));
            }
            Event::Protected { .. } => self.protection.found(),
            Event::ProtectionLost { reason, .. } => self.protection.session_ended(&mut self.cx, reason),
            // With a claim at the witness it is still why this host may take over.
            Event::LinkRestored { .. } if !self.cx.node().awaits_witness() => self.cx.reporter().suspect(None),
            _ => {}
        }
        self.cx.event(event);
        self.cx.reporter().publish_soon();
    }

    /// Another thread has something to say, or somebody calls.
    pub fn message(&mut self, message: Message<P>) -> ControlFlow<()> {
        let (cx, protection) = (&mut self.cx, &mut self.protection);
        match message {
            Message::VmStarted => protection.vm_started(),
            Message::Protect(options, reply) => protection.protect(cx, options, reply),
            Message::Resume(reply) => protection.resume(cx, reply),
            Message::Stop(reply) => self.commands.stop(cx, protection, reply),
            Message::Suspend(reply) => {
                let options = self.session.primary().map(|session| session.options().clone());
                self.commands.suspend(cx, protection, options, reply);
            }
            Message::HandOver(reason, reply) => self.commands.hand_over(cx, protection, reason, reply),
            Message::Switchover(reply) => self.commands.switchover(cx, protection, reply),
            Message::TestFailover(reply) => self.test_failover(reply),
            Message::VmEnded(reply) => {
                protection.vm_ended();
                self.commands.vm_ended(cx, reply);
            }
            Message::Quit => return ControlFlow::Break(()),
            Message::Opened(opened, reply) => self.opened(opened, reply),
            Message::Incoming(incoming) => {
                let admitted = self.admission.connected(cx, &self.session, *incoming);
                self.admit(admitted);
            }
            Message::WitnessRead(incoming, since, record) => {
                let admitted = self.admission.witness_read(cx, &self.session, *incoming, since, record);
                self.admit(admitted);
            }
            Message::RecordRead(record) => cx.record_read(record),
            Message::Received(number, received) => {
                if let Some(session) = self.session.standby().filter(|session| session.is(number)) {
                    session.received(cx, received);
                }
            }
            Message::Sent(number, sent) => {
                if let Some(session) = self.session.primary().filter(|session| session.is(number)) {
                    session.sent(cx, sent);
                }
            }
            Message::Witness(answer) => {
                cx.witness_mut().answered(&answer);
                cx.input(Input::Witness(answer));
            }
            Message::ReadOn => self.read_stream(),
            Message::LocalError(thread, reason) => cx.local_error(thread, reason),
            Message::Beat(link, at, beat) => cx.input(Input::Beat { link, at, beat }),
            Message::OutputHeld(epoch) => {
                self.checkpointer.console_output(epoch);
                self.output_held(epoch);
            }
            Message::DeviceJoined(end, reply) => self.device_joined(end, reply),
            Message::DeviceLeft(id, reply) => self.device_left(&id, reply),
        }
        self.settle();
        ControlFlow::Continue(())
    }

    /// The connecting thread is through.
    fn opened(&mut self, opened: Result<Box<OpenedOn<P>>, Unopened>, reply: Option<Reply>) {
        let wanted = self.protection.opened(reply.is_some());
        let result = match opened {
            Ok(_) if self.cx.state() != State::Solo => {
                let state = self.cx.state_name(false);
                Err(Unopened::from(Blocker::StateChanged(state)))
            }
            Ok(_) if !wanted => Err(Blocker::NotWanted.into()),
            Ok(opened) => self.begin_primary(*opened).map_err(|reason| Blocker::SessionFailed { reason }.into()),
            Err(why) => Err(why),
        };
        if let Err(why) = &result {
            if reply.is_some() {
                self.cx.reporter().failed(why.sentences().join("; "));
            }
            if wanted {
                self.protection.not_found(&mut self.cx, why);
            }
        }
        self.cx.reporter().publish_soon();
        if let Some(reply) = reply {
            self.cx.answer(reply, result.map_err(|why| Refused::Preflight(why.blockers)));
        }
    }

    fn begin_primary(&mut self, opened: OpenedOn<P>) -> Result<(), String> {
        let (peer, kept) = (opened.peer, opened.base.is_some());
        self.sessions += 1;
        let session = PrimarySession::begin(&mut self.cx, self.sessions, opened)?;
        self.checkpointer = Checkpointer::new(self.cx.platform().cpu_load());
        self.session = Session::Primary(Box::new(session));
        self.protection.begun();
        self.cx.input(Input::SessionOpened { peer });
        self.settle();
        self.cx.begin_memory_copy(kept);
        self.count_copies();
        Ok(())
    }

    /// Somebody is let in.
    fn admit(&mut self, admitted: Option<Admitted<P::Connection>>) {
        match admitted {
            None => {}
            Some(Admitted::Disk(incoming, number)) => match &self.session {
                Session::Standby(session) => session.disk_stream(&mut self.cx, *incoming, number),
                _ => incoming.refuse(vec!["there is no session that this disk belongs to".to_owned()]),
            },
            Some(Admitted::Session(join, joined)) => {
                if !self.session.is_none() {
                    // What is held of the former session is gone from here on: the core must not count on it.
                    let (term, reason) = (self.cx.term(), "a new session begins".to_owned());
                    self.cx.input(Input::PeerLeft { term, reason });
                    self.settle();
                }
                self.sessions += 1;
                if let Some(session) = StandbySession::join(&mut self.cx, self.sessions, *join) {
                    self.session = Session::Standby(Box::new(session));
                    self.settle();
                }
                if self.cx.state() == State::StandbySyncing {
                    self.cx.note(EventName::PrimaryJoined, joined);
                }
            }
        }
    }

    fn test_failover(&mut self, reply: Reply) {
        if let Some(reply) = self.commands.test_failover(&mut self.cx, &self.protection, reply) {
            self.settle();
            if let Some(session) = self.session.take_primary() {
                // Dropping it breaks the stream, with whatever is on its way.
                session.break_off(&mut self.cx);
            }
            self.cx.reporter().publish_soon();
            self.cx.answer(reply, Ok(()));
        }
    }

    /// A device joins the VM. One that would have to be copied first has to wait until no session is open.
    fn device_joined(&mut self, end: DeviceEnd<P::Control>, reply: Reply) {
        if end.caps.rolls_back() && !self.session.is_none() {
            return self.cx.answer(reply, Err(Refused::DeviceNeedsCopy(end.control.id().to_owned())));
        }
        let key = self.cx.machine_mut().add_device(end);
        self.cx.watch_device(key);
        let epoch = self.cx.node().epoch();
        if self.session.primary().is_some() && epoch > Epoch(1) {
            // The base has been cut: no output leaves any more that the standby does not know of.
            self.cx.devices().hold(key, epoch);
        }
        self.cx.answer(reply, Ok(()));
    }

    /// A device leaves the VM. What it held goes with it.
    fn device_left(&mut self, id: &str, reply: Reply) {
        let Some(key) = self.cx.devices().by_id(id) else {
            return self.cx.answer(reply, Err(Refused::NoDevice(id.to_owned())));
        };
        self.cx.unwatch_device(key);
        self.cx.devices().remove(key);
        self.cx.answer(reply, Ok(()));
    }

    fn count_copies(&mut self) {
        if let Some(session) = self.session.primary() {
            session.report_copies(&mut self.cx);
        }
    }

    /// Brings the status up to date if it is time for that.
    pub fn publish_if_due(&mut self) {
        if self.cx.now() >= self.cx.reporter().due() {
            self.count_copies();
            self.publish();
        }
    }

    /// Makes the status on the board current.
    pub(crate) fn publish(&mut self) {
        let compression = match &self.session {
            Session::Primary(session) => Some(session.compression(&mut self.cx)),
            _ => None,
        };
        let shown = Shown {
            peer: self.session.peer().cloned(),
            compression,
            search: self.protection.status(),
            suspended: self.protection.is_suspended(&self.cx),
        };
        self.cx.publish(shown);
    }
}
