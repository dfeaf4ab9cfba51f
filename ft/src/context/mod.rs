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
pub(crate) mod poller;
mod publish;
pub(crate) mod reporter;
pub(crate) mod witness_link;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use ft_proto::witness::Claim;
use ft_proto::{Action, Event, Input, Node, NodeId, Settings, State, Term, Time};
use pollux_api::Refused;
use serde_json::{Value, json};

use self::inbox::{Message, Post, Reply};
use self::machine::Machine;
use self::poller::{Poller, Token};
pub(crate) use self::publish::Shown;
use self::reporter::Reporter;
use self::witness_link::WitnessLink;
use crate::checkpoint::epoch_image::Buffers;
use crate::clock::Clock;
use crate::devices::{DeviceKey, Devices};
use crate::identity::Identity;
use crate::note::Note;
use crate::transport::beats::Beats;
use crate::witness::Stored;

/// What a call is answered.
pub(crate) type Answer = Result<(), Refused>;

/// What a context is made of: the arguments of [`Context::new`] by name.
pub(crate) struct Parts {
    pub(crate) node: Node,
    pub(crate) clock: Clock,
    pub(crate) machine: Machine,
    pub(crate) identity: Identity,
    pub(crate) witness: WitnessLink,
    pub(crate) beats: Beats,
    pub(crate) reporter: Reporter,
    pub(crate) poller: Poller,
    pub(crate) post: Post,
}

/// What every part of the engine works with.
pub(crate) struct Context {
    node: Node,
    /// What the core is to be told, in this order.
    inputs: VecDeque<Input>,
    clock: Clock,
    machine: Machine,
    buffers: Buffers,
    identity: Identity,
    witness: WitnessLink,
    beats: Beats,
    reporter: Reporter,
    /// Calls that have their answers. They leave when what they are the answers to has been done.
    answers: Vec<(Reply, Answer)>,
    poller: Poller,
    post: Post,
}

impl Context {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { node, clock, machine, identity, witness, beats, reporter, poller, post } = parts;
        Self {
            node,
            inputs: VecDeque::new(),
            clock,
            machine,
            buffers: Buffers::default(),
            identity,
            witness,
            beats,
            reporter,
            answers: Vec::new(),
            poller,
            post,
        }
    }

    /// The core is to be told.
    pub(crate) fn input(&mut self, input: Input) {
        self.inputs.push_back(input);
    }

    /// Tells the core what is next. Returns whether there was anything.
    pub(crate) fn feed(&mut self) -> bool {
        let Some(input) = self.inputs.pop_front() else { return false };
        self.node.handle(input, self.clock.now());
        true
    }

    /// What the core decides. What the beats say never lags behind what is done.
    pub(crate) fn next_action(&mut self) -> Option<Action> {
        let action = self.node.poll_action();
        self.beats.say(self.node.beat(), self.clock.now());
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
        self.node.configure(settings, self.clock.now());
    }

    /// A term that the witness gave before the session opened.
    pub(crate) fn adopt_term(&mut self, term: Term) {
        self.node.adopt_term(term);
    }

    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    pub(crate) fn machine_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }

    pub(crate) fn devices(&mut self) -> &mut Devices {
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

    pub(crate) fn witness(&self) -> &WitnessLink {
        &self.witness
    }

    pub(crate) fn witness_mut(&mut self) -> &mut WitnessLink {
        &mut self.witness
    }

    pub(crate) fn reporter(&mut self) -> &mut Reporter {
        &mut self.reporter
    }

    pub(crate) fn beats(&self) -> &Beats {
        &self.beats
    }

    pub(crate) fn post(&self) -> Post {
        self.post.clone()
    }

    /// Beats of the session with `peer` count from now on.
    pub(crate) fn beat_with(&self, peer: NodeId) {
        self.beats.key(self.identity.beats(self.node.id(), peer));
    }

    /// An event that the core does not know.
    pub(crate) fn note(&mut self, event: &str, detail: Value) {
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

    /// The thread of this name has met something that it cannot help.
    pub(crate) fn trouble(&mut self, thread: &'static str, reason: String) {
        self.note("trouble", json!({ "thread": thread, "reason": reason }));
        self.reporter.failed(reason);
        self.reporter.publish_soon();
    }

    /// The engine's own, which may come in each of its rounds.
    pub(crate) fn trouble_once(&mut self, reason: String) {
        if !self.reporter.has_failed(&reason) {
            self.trouble("ft", reason);
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

    /// Reports of this kind wake the engine from now on.
    pub(crate) fn watch(&self, token: Token, fd: BorrowedFd<'_>) {
        if let Err(error) = self.poller.watch(token, fd) {
            self.post.send(Message::Trouble("ft", format!("cannot watch {token:?}: {error}")));
        }
    }

    /// And no more. One that was not watched is none.
    pub(crate) fn unwatch(&self, fd: BorrowedFd<'_>) {
        self.poller.unwatch(fd);
    }

    /// All devices that are there are watched.
    pub(crate) fn watch_devices(&mut self) {
        for key in self.devices().keys() {
            self.watch_device(key);
        }
    }

    pub(crate) fn watch_device(&self, key: DeviceKey) {
        if let Some(fd) = self.machine.device_fd(key) {
            self.watch(Token::Device(key), fd);
        }
    }

    pub(crate) fn unwatch_device(&self, key: DeviceKey) {
        if let Some(fd) = self.machine.device_fd(key) {
            self.unwatch(fd);
        }
    }

    /// Performs `Action::AskWitness`.
    pub(crate) fn ask_witness(&mut self, claim: Claim) {
        if let Some(vm) = self.identity.vm() {
            self.witness.ask(vm, claim, self.clock.now(), &self.post);
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
        let now = self.clock.now();
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
                self.note("witness-of-another-vm", json!({ "vm": other.to_string() }));
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
