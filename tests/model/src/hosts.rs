//! What a host does with its node: tells it what happened, performs what it decides. The shell of the model.

use std::time::Duration;

use ft_proto::witness::{Claim, DiskState, Record, Verdict};
use ft_proto::{Action, CutKind, Epoch, Input, LinkId, NodeId, OnPartition, Settings, State, Time, WitnessAnswer};

use crate::state::{Msg, Stream, Sys, Told};

/// When everything happens.
pub(crate) const T0: Time = Time(1_000_000_000_000);
/// Longer than the core's patience during the first copy, so that silence means the same in every phase.
const LIMIT: Duration = Duration::from_secs(6);
const RETRY: Duration = Duration::from_millis(200);
const NEVER: Duration = Duration::from_secs(100_000);

/// Epochs are cut only when the guest wants it, and time does nothing by itself.
pub(crate) fn settings(on_partition: Option<OnPartition>) -> Settings {
    Settings {
        silence: Some(LIMIT),
        ack_limit: NEVER,
        min_epoch: Duration::ZERO,
        max_epoch: NEVER,
        latency: Duration::ZERO,
        pause_share: 33,
        depth: 2,
        on_partition,
    }
}

impl Sys {
    /// Tells a node, and performs what it decides.
    pub(crate) fn input(&mut self, at: usize, input: Input) {
        self.input_at(at, input, T0);
    }

    fn input_at(&mut self, at: usize, input: Input, now: Time) {
        let Some(node) = &mut self.hosts[at].node else { return };
        node.handle(input, now);
        while let Some(action) = self.hosts[at].node.as_mut().and_then(|node| node.poll_action()) {
            self.perform(at, action);
        }
    }

    fn perform(&mut self, at: usize, action: Action) {
        let term = self.hosts[at].node.as_ref().map(|node| (node.id(), node.term()));
        let Some((id, term)) = term else { return };
        match action {
            Action::Cut { epoch, kind } => {
                // A guest that was stopped by its last cut holds all the more.
                self.hosts[at].holds |= kind == CutKind::Base;
                self.send_down(at, Msg::Epoch(epoch.0));
                self.input(at, Input::CutDone { epoch, paused: Duration::ZERO, pages: 1 });
            }
            Action::Release(committed) => self.released(at, committed.epoch().0),
            Action::Commit(committed) => self.send_up(at, Msg::Ack(term, committed.epoch().0)),
            Action::AskWitness(claim) => self.asks.push((id, claim)),
            Action::TakeOver { committed, .. } => {
                if let Some(session) = self.hosts[at].session.take() {
                    self.told[session].taken = Some(committed.0);
                }
                self.hosts[at].holds = false;
                self.hosts[at].disk = DiskState::Alone(term);
                self.runner = at;
                self.send_up(at, Msg::Lost);
            }
            Action::GoAlone(_) => {
                self.released(at, u64::MAX);
                self.hosts[at].holds = false;
                self.hosts[at].session = None;
                self.send_down(at, Msg::Bye(term));
            }
            Action::Yield => self.send_down(at, Msg::Yield(term)),
            Action::Dismiss => self.send_down(at, Msg::Bye(term)),
            Action::Fence { .. } => self.hosts[at].holds = true,
            Action::Reset { .. } => {
                self.send_up(at, Msg::Bye(term));
                self.hosts[at].session = None;
            }
            Action::Event(ft_proto::Event::Protected { .. }) => {
                if let Some(session) = self.hosts[at].session {
                    self.told[session].protected = true;
                }
            }
            Action::Event(_) => {}
        }
    }

    fn released(&mut self, at: usize, epoch: u64) {
        if let Some(session) = self.hosts[at].session {
            let told = &mut self.told[session];
            told.released = told.released.max(epoch);
        }
    }

    /// The stream in which this host's node is the primary.
    fn send_down(&mut self, at: usize, msg: Msg) {
        let id = self.hosts[at].node.as_ref().map(|node| node.id());
        if let Some(stream) = &mut self.stream
            && Some(stream.primary.1) == id
            && stream.down_open
            && stream.down.last() != Some(&Msg::Lost)
        {
            let ends = matches!(msg, Msg::Bye(_) | Msg::Yield(_));
            stream.down.push(msg);
            if ends {
                stream.down.push(Msg::Lost);
            }
        }
    }

    fn send_up(&mut self, at: usize, msg: Msg) {
        let id = self.hosts[at].node.as_ref().map(|node| node.id());
        if let Some(stream) = &mut self.stream
            && Some(stream.standby) == id
            && stream.up_open
            && stream.up.last() != Some(&Msg::Lost)
        {
            let ends = matches!(msg, Msg::Bye(_));
            stream.up.push(msg);
            if ends {
                stream.up.push(Msg::Lost);
            }
        }
    }

    /// The stream ends for both.
    pub(crate) fn end_stream(&mut self, truncate: bool) {
        let Some(stream) = &mut self.stream else { return };
        for (open, queue) in [(stream.down_open, &mut stream.down), (stream.up_open, &mut stream.up)] {
            if !open {
                continue;
            }
            if truncate {
                queue.clear();
            }
            if queue.last() != Some(&Msg::Lost) {
                queue.push(Msg::Lost);
            }
        }
    }

    /// The standby gets the next message.
    pub(crate) fn down(&mut self) -> Option<()> {
        let stream = self.stream.as_mut()?;
        let msg = stream.down.remove(0);
        stream.down_open &= msg != Msg::Lost;
        let at = 1 - stream.primary.0;
        if self.hosts[at].node.as_ref()?.id() != stream.standby {
            return Some(());
        }
        let reason = String::new();
        let input = match msg {
            Msg::Epoch(epoch) => Input::MemoryComplete { epoch: Epoch(epoch), idle: Vec::new() },
            Msg::Yield(term) => Input::Yielded { term },
            Msg::Bye(term) => Input::PeerLeft { term, reason },
            _ => Input::StreamLost { reason },
        };
        self.input(at, input);
        Some(())
    }

    /// The primary gets the next message.
    pub(crate) fn up(&mut self) -> Option<()> {
        let stream = self.stream.as_mut()?;
        let msg = stream.up.remove(0);
        stream.up_open &= msg != Msg::Lost;
        let (at, id) = stream.primary;
        let (session, peer, term) = (stream.session, stream.standby, stream.term);
        if self.hosts[at].node.as_ref()?.id() != id {
            return Some(());
        }
        let reason = String::new();
        let input = match msg {
            Msg::Welcome => {
                self.hosts[at].session = Some(session);
                self.hosts[at].first = false;
                self.hosts[at].node.as_mut()?.adopt_term(term);
                Input::SessionOpened { peer }
            }
            Msg::Ack(term, epoch) => Input::Acked { term, epoch: Epoch(epoch) },
            Msg::Bye(term) => Input::PeerLeft { term, reason },
            _ => Input::StreamLost { reason },
        };
        self.input(at, input);
        Some(())
    }

    /// A session is opened, if the other host accepts.
    pub(crate) fn open(&mut self, at: usize) -> Option<()> {
        let term = self.hosts[at].owned.take()?;
        let id = self.hosts[at].node.as_ref()?.id();
        let other = 1 - at;
        let peer = self.hosts[other].node.as_ref()?;
        let (standby, its_term) = (peer.id(), peer.term());
        let waits = matches!(peer.state(), State::StandbyEmpty | State::StandbySyncing | State::StandbyReady);
        let on_record = matches!(self.record, Some(Record::Solo { owner, term: t, .. }) if owner == id && t == term);
        // An answer to an old question: that term has had its session.
        let used = self.hosts[at].node.as_ref().is_none_or(|node| term <= node.term());
        if used || !waits || !on_record || term < its_term {
            return Some(());
        }
        if peer.state() != State::StandbyEmpty {
            self.input(other, Input::PeerLeft { term: its_term, reason: String::new() });
        }
        let session = self.told.len();
        self.told.push(Told::default());
        self.hosts[other].session = Some(session);
        let primary = (at, id);
        let (down_open, up_open) = (true, true);
        let (down, up) = (Vec::new(), vec![Msg::Welcome]);
        self.stream = Some(Stream { session, primary, standby, term, down_open, down, up_open, up });
        self.hosts[other].disk = DiskState::Unusable;
        self.input(other, Input::PrimaryJoined { peer: id, term, disks: 0 });
        Some(())
    }

    /// The first copy is complete; disks say that there is another one before anybody may count on it.
    pub(crate) fn synced(&mut self, at: usize) {
        let Some(node) = &self.hosts[at].node else { return };
        self.hosts[at].disk = DiskState::Protected(node.term());
        self.input(at, Input::Synced);
    }

    /// A node looks at its clock again and again without having heard anything; then its clock stands still
    /// again.
    pub(crate) fn silence(&mut self, at: usize) {
        for now in [T0 + LIMIT / 3, T0 + LIMIT * 2 / 3, T0 + LIMIT, T0 + LIMIT + Duration::from_nanos(1), T0] {
            self.input_at(at, Input::Timeout, now);
        }
    }

    pub(crate) fn retry(&mut self, at: usize) {
        self.input_at(at, Input::Timeout, T0 + RETRY);
        self.input(at, Input::Timeout);
    }

    /// A beat of this host reaches the other one.
    pub(crate) fn beat(&mut self, at: usize) -> Option<()> {
        let beat = self.hosts[at].node.as_ref()?.beat();
        self.hosts[1 - at].node.as_ref()?;
        self.input(1 - at, Input::Beat { link: LinkId::Heartbeat, at: T0, beat });
        Some(())
    }

    /// An answer of the witness reaches its node, if that still lives.
    pub(crate) fn answered(&mut self, id: NodeId, answer: WitnessAnswer) {
        let Some(at) = self.host_of(id) else { return };
        match answer {
            WitnessAnswer::Judged(Claim::Own { .. }, Verdict::Granted(record)) => {
                let alone = self.hosts[at].node.as_ref().is_some_and(|node| node.state() == State::Solo);
                self.hosts[at].owned = alone.then_some(record.term());
            }
            WitnessAnswer::Judged(claim @ Claim::Start { .. }, verdict) => self.start_judged(at, claim, verdict),
            WitnessAnswer::Unreachable(Claim::Start { .. }, _) => {}
            WitnessAnswer::Judged(Claim::Own { .. }, _) | WitnessAnswer::Unreachable(Claim::Own { .. }, _) => {}
            answer => self.input(at, Input::Witness(answer)),
        }
    }
}
