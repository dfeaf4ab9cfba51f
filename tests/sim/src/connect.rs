//! How the model shell opens a session: own the VM at the witness, greet a standby, connect its disk. Follows
//! `ft/src/peers/connect.rs` and the standby's door. An operator asks for it whenever a VM runs alone.

use std::time::Duration;

use ft_proto::witness::{Claim, Record, Verdict};
use ft_proto::{Epoch, Input, NodeId, State, Term, WitnessAnswer};

use crate::devices::Mirror;
use crate::network::{Payload, Segment, StreamId};
use crate::process::{Address, FirstCopy, Message, Opening, PrimarySide, Session, StandbySide};
use crate::standby_side::empty_image;
use crate::witness::OPENER;
use crate::world::{Event, World};

/// A peer that takes longer to greet is given up.
const PATIENCE: Duration = Duration::from_millis(400);

impl World {
    /// Looks after a host: asks for protection, and starts again what has ended.
    pub(crate) fn operator(&mut self, host: usize) {
        let again = self.rng.micros(10_000, 60_000);
        self.after(again, Event::Operator(host));
        let now = self.now;
        let target = (host + 1 + self.rng.index(self.plan.hosts - 1)) % self.plan.hosts;
        let address = self.address(host);
        let Some(process) = self.process(address) else { return };
        if !process.is_awake(now) {
            return;
        }
        match process.node.state() {
            // Nobody restarts a VM that runs; one that lost a device waits to be taken over.
            State::Solo if process.opening.is_none() && !process.broken => self.open(address, target),
            State::Solo if process.broken => self.restart_soon(host),
            State::Fenced => self.restart_soon(host),
            State::StandbyEmpty | State::StandbySyncing | State::StandbyReady if process.broken => {
                self.restart_soon(host);
            }
            _ => {}
        }
    }

    fn restart_soon(&mut self, host: usize) {
        if self.rng.chance(100_000) {
            self.note(host, || "is restarted by its operator".to_owned());
            self.kill(host, true);
            self.start_standby(host);
        }
    }

    fn open(&mut self, address: Address, target: usize) {
        let Some(process) = self.process(address) else { return };
        process.opened += 1;
        let number = process.opened;
        let (node, term) = (process.node.id(), process.node.term());
        process.opening =
            Some(Opening { number, target, term, stream: None, disk_stream: None, peer: None, record: None });
        self.after(PATIENCE, Event::Tell(address, Message::OpeningTimeout(number)));
        self.ask_witness(address, OPENER, Claim::Own { node, term, first: term == Term(1) });
    }

    pub(crate) fn opening_timeout(&mut self, address: Address, number: u64) {
        let open = |process: &crate::process::Process| process.opening.as_ref().is_some_and(|o| o.number == number);
        if self.process(address).is_some_and(|process| open(process)) {
            self.give_up_opening(address);
        }
    }

    fn give_up_opening(&mut self, address: Address) {
        let Some(opening) = self.process(address).and_then(|process| process.opening.take()) else { return };
        for stream in opening.stream.into_iter().chain(opening.disk_stream) {
            self.close(address.0, stream);
        }
    }

    /// The witness has answered the claim to own the VM.
    pub(crate) fn owned(&mut self, address: Address, answer: WitnessAnswer) {
        let Some(process) = self.process(address) else { return };
        let node = process.node.id();
        let Some(opening) = process.opening.as_mut().filter(|opening| opening.stream.is_none()) else { return };
        let record = match answer {
            // An older one answers an old question: that term has had its session.
            WitnessAnswer::Judged(_, Verdict::Granted(record)) if record.term() > opening.term => record,
            _ => return self.give_up_opening(address),
        };
        opening.term = record.term();
        let (term, target) = (opening.term, opening.target);
        let callee = self.address(target);
        let stream = self.network.connect(address, callee);
        if let Some(opening) = self.process(address).and_then(|process| process.opening.as_mut()) {
            opening.stream = Some(stream);
        }
        self.send(address.0, stream, Payload::Hello { node, term, from: address.0 });
    }

    /// A stream brought something: find out whom it is for.
    pub(crate) fn stream_segment(&mut self, address: Address, stream: StreamId, segment: Segment) {
        let Some(process) = self.process(address) else { return };
        let opening = process.opening.as_ref();
        if opening.is_some_and(|opening| opening.stream == Some(stream) || opening.disk_stream == Some(stream)) {
            return self.greeted(address, stream, segment);
        }
        match (&process.session, segment) {
            (Session::Primary(side), segment) if side.stream == stream => self.primary_stream(address, segment),
            (Session::Standby(side), segment) if side.stream == Some(stream) => self.standby_stream(address, segment),
            (_, Segment::Data(Payload::Hello { node, term, from })) => {
                self.caller(address, stream, node, term, from);
            }
            (_, Segment::Data(Payload::DiskHello { node, session })) => {
                self.disk_caller(address, stream, node, session);
            }
            _ => {}
        }
    }

    /// The standby answered a greeting.
    fn greeted(&mut self, address: Address, stream: StreamId, segment: Segment) {
        let Some(process) = self.process(address) else { return };
        let me = process.node.id();
        let Some(opening) = &mut process.opening else { return };
        if let (Some(disk), Segment::Data(Payload::DiskWelcome { record })) = (opening.disk_stream, &segment)
            && disk == stream
        {
            opening.record = Some(*record);
            return self.begin_session(address);
        }
        let Segment::Data(Payload::Welcome { node, session }) = segment else {
            return self.give_up_opening(address);
        };
        if opening.stream == Some(stream) {
            opening.peer = Some((node, session));
            let callee =
                self.network.streams.get(&stream).map(|stream| (stream.ends[1].host, stream.ends[1].incarnation));
            let Some(callee) = callee else { return self.give_up_opening(address) };
            let disk = self.network.connect(address, callee);
            if let Some(opening) = self.process(address).and_then(|process| process.opening.as_mut()) {
                opening.disk_stream = Some(disk);
            }
            self.send(address.0, disk, Payload::DiskHello { node: me, session });
        }
    }

    fn begin_session(&mut self, address: Address) {
        let (local, settings) = (self.local(address.0), self.plan.settings);
        let Some(process) = self.process(address) else { return };
        let Some(Opening {
            target,
            term,
            stream: Some(stream),
            disk_stream: Some(disk),
            peer: Some((peer, session)),
            record: Some(record),
            ..
        }) = process.opening.take()
        else {
            return;
        };
        process.asker += 1;
        process.guest.dirty.clear();
        process.node.configure(settings, local);
        process.node.adopt_term(term);
        process.disk.epoch = Epoch(1);
        let copy = Some(FirstCopy::default());
        process.key = session;
        process.session = Session::Primary(PrimarySide { stream, session, copy, disk_in_sync: false });
        self.route_beats(address, target, settings.silence.map(|limit| limit / 6));
        self.hosts[address.0].image.record.run_alone(term);
        self.begin_mirror(address, disk, &record, term);
        self.after(Duration::from_micros(50), Event::CopyTick(address, disk));
        self.after(Duration::from_micros(50), Event::Tell(address, Message::Pump(session)));
        self.input(address, Input::SessionOpened { peer });
    }

    /// The two records say what may differ.
    fn begin_mirror(&mut self, address: Address, stream: StreamId, standby: &crate::record::Record, term: Term) {
        let base = self.rng.word();
        let host = &mut self.hosts[address.0];
        let ours = host.image.record.marks;
        let (todo, common) = host.image.record.plan(standby);
        let incremental = common.is_some();
        if let Some(process) = &mut host.process {
            let (todo, written) = (Some(todo), Default::default());
            process.disk.mirror = Some(Mirror { stream, todo, base, written, touched: true });
        }
        self.resyncs += u64::from(incremental);
        self.note(address.0, || format!("-> disk: incremental {incremental}, {todo:?}"));
        self.send(address.0, stream, Payload::Begin { term, common, marks: ours });
    }

    /// A primary said hello.
    fn caller(&mut self, address: Address, stream: StreamId, node: NodeId, term: Term, from: usize) {
        if self.hosts[address.0].full_until > self.now {
            // It waits in the kernel, and is gone when somebody looks.
            return;
        }
        if let Some(reason) = self.objection(address, node, term) {
            self.note(address.0, || format!("refuses {node}: {reason}"));
            self.send(address.0, stream, Payload::Refuse);
            return self.close(address.0, stream);
        }
        self.drop_former_session(address);
        let (local, settings) = (self.local(address.0), self.plan.settings);
        let session = self.truth.new_session();
        let Some(process) = self.process(address) else { return };
        let me = process.node.id();
        process.node.configure(settings, local);
        process.guest.pages = Default::default();
        process.key = session;
        process.session = Session::Standby(Box::new(StandbySide {
            primary: node,
            primary_host: from,
            session,
            stream: Some(stream),
            arriving: empty_image(),
            state_seen: false,
            whole: Default::default(),
            latest: None,
            disk_epoch: Epoch(1),
            claimed_at: None,
            withdrawn: false,
        }));
        self.send(address.0, stream, Payload::Welcome { node: me, session });
        self.route_beats(address, from, settings.silence.map(|limit| limit / 6));
        self.input(address, Input::PrimaryJoined { peer: node, term, disks: self.disks_to_wait_for() });
    }

    /// What is held of a former session is gone: the core must not count on it.
    fn drop_former_session(&mut self, address: Address) {
        let Some(process) = self.process(address) else { return };
        if matches!(process.session, Session::Standby(_)) {
            let (term, reason) = (process.node.term(), "a new session begins".to_owned());
            self.input(address, Input::PeerLeft { term, reason });
        }
    }

    fn disks_to_wait_for(&self) -> u16 {
        u16::from(self.mutation != Some(crate::mutation::Mutation::AckBeforeDisk))
    }

    /// What speaks against a caller, as in `Engine::objections`.
    fn objection(&mut self, address: Address, node: NodeId, term: Term) -> Option<String> {
        let record = self.witness_reachable(address.0).then_some(self.witness.record);
        let process = self.process(address)?;
        if process.broken {
            return Some("a device process is dead".to_owned());
        }
        if !matches!(process.node.state(), State::StandbyEmpty | State::StandbySyncing | State::StandbyReady) {
            return Some("this node is no standby".to_owned());
        }
        if term < process.node.term() {
            return Some("the caller's term is older than this node's".to_owned());
        }
        match record {
            Some(Some(Record::Solo { owner, term: t, .. })) if owner == node && t == term => None,
            Some(_) => Some("the witness does not show the primary's record".to_owned()),
            None => Some("the witness cannot be reached".to_owned()),
        }
    }

    fn disk_caller(&mut self, address: Address, stream: StreamId, node: NodeId, session: u64) {
        // What was given to the image before is in it.
        if self.hosts[address.0].full_until > self.now {
            return;
        }
        self.settled_blocks(address);
        let record = self.hosts[address.0].image.record;
        let Some(process) = self.process(address) else { return };
        match &process.session {
            Session::Standby(side) if side.primary == node && side.session == session => {
                process.disk.receive_from(stream);
                self.send(address.0, stream, Payload::DiskWelcome { record });
            }
            _ => {
                self.send(address.0, stream, Payload::Refuse);
                self.close(address.0, stream);
            }
        }
    }
}
