//! What every part of the engine works with: the core and its queue of inputs, the VM on this host, and the
//! reports to operators.
//!
//! Parts of the engine push [`Input`]s; only the executor takes them out and has the core decide. So nothing
//! that is done in the middle of a decision is decided upon before that is performed, and nothing here calls
//! itself.

mod copies;
pub(crate) mod inbox;
pub(crate) mod machine;
mod memory_copy;
mod publish;
pub(crate) mod reporter;
pub(crate) mod witness_link;

use std::collections::VecDeque;
use std::io;

use ft_proto::witness::Claim;
use ft_proto::{Action, Event, Input, Node, NodeId, Settings, State, Term, Time};
use ft_transport::heartbeats::Heartbeats;
use pollux_api::Refused;
use pollux_api::event::EventName;
use serde_json::{Value, json};

use self::inbox::{Message, Post, Reply};
use self::machine::Machine;
pub(crate) use self::publish::Shown;
use self::reporter::Reporter;
use self::witness_link::WitnessLink;
use crate::checkpoint::epoch_image::Buffers;
use crate::devices::control::DeviceControl;
use crate::devices::{DeviceKey, Devices};
use crate::identity::Identity;
use crate::note::Note;
use crate::platform::Platform;
use crate::witness::{Stored, WitnessAddress};

/// What a call is answered.
pub(crate) type Answer = Result<(), Refused>;

/// What a context is made of: the arguments of [`Context::new`] by name.
pub(crate) struct Parts<P: Platform> {
    pub(crate) node: Node,
    pub(crate) platform: P,
    pub(crate) machine: Machine<P::Control>,
    pub(crate) identity: Identity,
    pub(crate) witness: WitnessLink<P::Witness>,
    pub(crate) beats: P::Beats,
    pub(crate) reporter: Reporter,
    pub(crate) post: Post<P>,
}

/// What every part of the engine works with.
pub(crate) struct Context<P: Platform> {
    node: Node,
    /// What the core is to be told, in this order.
    inputs: VecDeque<Input>,
    platform: P,
    machine: Machine<P::Control>,
    buffers: Buffers,
    identity: Identity,
    witness: WitnessLink<P::Witness>,
    beats: P::Beats,
    reporter: Reporter,
    /// Calls that have their answers. They leave when what they are the answers to has been done.
    answers: Vec<(Reply, Answer)>,
    post: Post<P>,
}

impl<P: Platform> Context<P> {
    pub(crate) fn new(parts: Parts<P>) -> Self {
        let Parts { node, platform, machine, identity, witness, beats, reporter, post } = parts;
        Self {
            node,
            inputs: VecDeque::new(),
            platform,
            machine,
            buffers: Buffers::default(),
            identity,
            witness,
            beats,
            reporter,
            answers: Vec::new(),
            post,
        }
    }

    /// The core is to be told.
    pub(crate) fn input(&mut self, input: Input) {
        self.inputs.push_back(input);
    }

    /// What the core is told before anything that happened meanwhile: that an epoch is on its way. Until then
    /// it goes by the standby having nothing of it.
    pub(crate) fn input_first(&mut self, input: Input) {
        self.inputs.push_front(input);
    }

    /// Tells the core what is next. Returns whether there was anything.
    pub(crate) fn feed(&mut self) -> bool {
        let Some(input) = self.inputs.pop_front() else { return false };
        self.node.handle(input, self.platform.now());
        true
    }

    /// What the core decides. What the beats say never lags behind what is done.
    pub(crate) fn next_action(&mut self) -> Option<Action> {
        let action = self.node.poll_action();
        self.beats.say(self.node.beat(), self.platform.now());
        action
    }

    /// The core.
    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    pub(crate) fn state(&self) -> State {
        self.node.state()
    }

    pub(crate) fn term(&self) -> Term {
        self.node.term()
    }

    /// The core's settings for the session that opens next.
    pub(crate) fn configure(&mut self, settings: Settings) {
        self.node.configure(self.platform.tune(settings), self.platform.now());
    }

    /// A term that the witness gave before the session opened.
    pub(crate) fn adopt_term(&mut self, term: Term) {
        self.node.adopt_term(term);
    }

    pub(crate) fn now(&self) -> Time {
        self.platform.now()
    }

    pub(crate) fn machine(&self) -> &Machine<P::Control> {
        &self.machine
    }

    pub(crate) fn machine_mut(&mut self) -> &mut Machine<P::Control> {
        &mut self.machine
    }

    /// For what needs both at once.
    pub(crate) fn platform_and_machine(&mut self) -> (&P, &mut Machine<P::Control>) {
        (&self.platform, &mut self.machine)
    }

    pub(crate) fn devices(&mut self) -> &mut Devices<P::Control> {
        self.machine.devices()
    }

    pub(crate) fn buffers(&mut self) -> &mut Buffers {
        &mut self.buffers
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn identity_mut(&mut self) -> &mut Identity {
        &mut self.identity
    }

    pub(crate) fn witness(&self) -> &WitnessLink<P::Witness> {
        &self.witness
    }

    pub(crate) fn witness_mut(&mut self) -> &mut WitnessLink<P::Witness> {
        &mut self.witness
    }

    pub(crate) fn reporter(&mut self) -> &mut Reporter {
        &mut self.reporter
    }

    pub(crate) fn beats(&self) -> &P::Beats {
        &self.beats
    }

    pub(crate) fn post(&self) -> Post<P> {
        self.post.clone()
    }

    /// Beats of the session with `peer` count from now on.
    pub(crate) fn beat_with(&self, peer: NodeId) {
        self.beats.key(self.identity.beats(self.node.id(), peer));
    }

    /// An event that the core does not know.
    pub(crate) fn note(&mut self, event: EventName, detail: Value) {
        let record = self.reporter.note(event, detail);
        self.machine.guest().told(&record);
    }

    /// If there is anything to tell.
    pub(crate) fn note_all(&mut self, notes: impl IntoIterator<Item = Note>) {
        notes.into_iter().for_each(|(event, detail)| self.note(event, detail));
    }

    /// An event of the core.
    pub(crate) fn event(&mut self, event: &Event) {
        let record = self.reporter.event(event);
        self.machine.guest().told(&record);
    }

    /// The thread of this name has met an error that it cannot repair.
    pub(crate) fn local_error(&mut self, thread: &'static str, reason: String) {
        self.note(EventName::LocalError, json!({ "thread": thread, "reason": reason }));
        self.reporter.failed(reason);
        self.reporter.publish_soon();
    }

    /// The engine's own, which may come in each of its rounds.
    pub(crate) fn local_error_once(&mut self, reason: String) {
        if !self.reporter.has_failed(&reason) {
            self.local_error("ft", reason);
        }
    }

    /// The answer to a call, which leaves when everything that has been decided is done.
    pub(crate) fn answer(&mut self, reply: Reply, answer: Answer) {
        self.answers.push((reply, answer));
    }

    /// Everything is done that has been decided.
    pub(crate) fn send_answers(&mut self) {
        for (reply, answer) in self.answers.drain(..) {
            // The caller may have given up waiting.
            let _ = reply.send(answer);
        }
    }

    /// What the engine stands on.
    pub(crate) fn platform(&self) -> &P {
        &self.platform
    }

    /// This witness is asked from now on, or nobody.
    pub(crate) fn use_witness(&mut self, address: Option<&WitnessAddress>) -> io::Result<()> {
        self.witness.use_address(address, |address| self.platform.witness(address))
    }

    /// What a stream brings is read from now on.
    pub(crate) fn watch_stream(&self, stream: &P::Connection) {
        if let Err(error) = self.platform.watch_stream(stream) {
            self.post.send(Message::LocalError("ft", format!("cannot watch the stream: {error}")));
        }
    }

    /// All devices that are there are watched.
    pub(crate) fn watch_devices(&mut self) {
        for key in self.devices().keys() {
            self.watch_device(key);
        }
    }

    pub(crate) fn watch_device(&self, key: DeviceKey) {
        let Some(control) = self.machine.control(key) else { return };
        if let Err(error) = self.platform.watch_device(key, control) {
            self.post.send(Message::LocalError("ft", format!("cannot watch device {}: {error}", control.id())));
        }
    }

    pub(crate) fn unwatch_device(&self, key: DeviceKey) {
        if let Some(control) = self.machine.control(key) {
            self.platform.unwatch_device(control);
        }
    }

    /// Performs `Action::AskWitness`.
    pub(crate) fn ask_witness(&mut self, claim: Claim) {
        if let Some(vm) = self.identity.vm() {
            self.witness.ask(vm, claim, self.platform.now(), &self.post);
        }
    }

    /// When to look at the witness's record.
    pub(crate) fn record_due(&self) -> Option<Time> {
        let concerned = matches!(self.state(), State::Solo | State::Protected);
        self.witness.check_due().filter(|_| concerned)
    }

    /// Has the record read, if it is time for that. Whoever runs the VM should not find out only when it
    /// needs the witness that there is no record any more, or that it names somebody else.
    pub(crate) fn check_record(&mut self) {
        let now = self.platform.now();
        if self.record_due().is_some_and(|due| due <= now) {
            self.witness.check(now, &self.post);
        }
    }

    /// The record was read.
    pub(crate) fn record_read(&mut self, record: Result<Option<Stored>, String>) {
        // A witness that does not answer is told in the status, and by whoever needs it.
        let Ok(stored) = record else { return };
        let other = stored.and_then(|stored| stored.vm).filter(|vm| Some(*vm) != self.identity.vm());
        if let Some(other) = other {
            if self.witness.lose_record() {
                self.note(EventName::WitnessVmMismatch, json!({ "vm": other.to_string() }));
            }
        } else if let Some(stored) = stored {
            self.witness.find_record();
            self.input(Input::RecordRead { record: Some(stored.record) });
        } else if self.state() == State::Protected || self.witness.lose_record() {
            self.input(Input::RecordRead { record: None });
        }
    }

    /// The disks note that this host runs the VM in `term`; nobody waits for it.
    pub(crate) fn tell_owner(&mut self, term: Term) {
        if let Some(vm) = self.identity.vm() {
            self.devices().tell_owner(vm, term);
        }
    }
}
