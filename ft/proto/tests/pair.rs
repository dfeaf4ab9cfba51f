//! Two nodes, a witness and virtual time in memory: the life of a session, one step a line.

use std::time::Duration;

use ft_proto::witness::{Claim, Record, Replicas, Verdict, judge};
use ft_proto::{
    Action, Beat, CutKind, Epoch, Event, Input, LinkId, Node, NodeId, OnPartition, Settings, State, Term, Time,
    WitnessAnswer,
};

#[path = "pair/acknowledgements.rs"]
mod acknowledgements;
#[path = "pair/identity.rs"]
mod identity;
#[path = "pair/stopped.rs"]
mod stopped;
#[path = "pair/withdrawal.rs"]
mod withdrawal;

const A: NodeId = NodeId::numbered(0xa, 1);
const B: NodeId = NodeId::numbered(0xb, 1);
const STEP: Duration = Duration::from_millis(10);

struct Pair {
    now: Time,
    a: Node,
    b: Node,
    record: Option<Record>,
    witness_up: bool,
    /// Claims take effect, but their answers are lost.
    witness_mute: bool,
    /// Whether beats and the stream work between the two.
    connected: bool,
    released: Vec<Epoch>,
    committed: Vec<Epoch>,
    fenced: Vec<NodeId>,
    events: Vec<(NodeId, Event)>,
    takeover: Option<(Epoch, Term)>,
    /// The guest is paused after its last cut.
    stopped: bool,
}

impl Pair {
    fn new(settings: Settings) -> Self {
        let now = Time(1_000_000_000);
        Self {
            now,
            a: Node::solo(A, Term(1), settings, now),
            b: Node::standby(B, settings, now),
            record: Some(Record::Solo { owner: A, term: Term(1), since: Term(1) }),
            witness_up: true,
            witness_mute: false,
            connected: true,
            released: Vec::new(),
            committed: Vec::new(),
            fenced: Vec::new(),
            events: Vec::new(),
            takeover: None,
            stopped: false,
        }
    }

    /// Joined, copied, base acknowledged and registered.
    fn protected(settings: Settings) -> Self {
        let mut pair = Self::new(settings);
        pair.b.handle(Input::PrimaryJoined { peer: A, term: Term(1), disks: 1 }, pair.now);
        pair.a.handle(Input::SessionOpened { peer: B }, pair.now);
        pair.settle();
        assert_eq!(pair.a.state(), State::Syncing);
        pair.a.handle(Input::Synced, pair.now);
        pair.settle();
        assert_eq!((pair.a.state(), pair.b.state()), (State::Protected, State::StandbyReady));
        pair
    }

    /// Performs actions of both sides until there are none.
    fn settle(&mut self) {
        loop {
            let action = self.a.poll_action().map(|action| (A, action));
            let Some((on, action)) = action.or_else(|| self.b.poll_action().map(|action| (B, action))) else { return };
            self.perform(on, action);
        }
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        if id == A { &mut self.a } else { &mut self.b }
    }

    fn perform(&mut self, on: NodeId, action: Action) {
        let now = self.now;
        match action {
            Action::Cut { epoch, kind } => {
                self.stopped |= kind == CutKind::Last;
                self.a.handle(Input::CutDone { epoch, paused: Duration::ZERO, pages: 1 }, now);
                if self.connected {
                    self.b.handle(Input::DiskComplete { epoch, disk: 0 }, now);
                    self.b.handle(Input::MemoryComplete { epoch, idle: Vec::new() }, now);
                }
            }
            Action::Release(committed) => self.released.push(committed.epoch()),
            Action::Commit(committed) => {
                self.committed.push(committed.epoch());
                if self.connected {
                    let term = self.b.term();
                    self.a.handle(Input::Acked { term, epoch: committed.epoch() }, now);
                }
            }
            Action::AskWitness(claim) => {
                let answer = self.ask(claim);
                self.node(on).handle(Input::Witness(answer), now);
            }
            Action::TakeOver { committed, term } => self.takeover = Some((committed, term)),
            Action::Fence { .. } => self.fenced.push(on),
            Action::Yield => {
                let term = self.a.term();
                self.b.handle(Input::Yielded { term }, now);
            }
            Action::Event(event) => self.events.push((on, event)),
            Action::GoAlone(_) => self.stopped = false,
            Action::Dismiss if self.connected => {
                let (term, reason) = (self.a.term(), "stopped by request".to_owned());
                self.b.handle(Input::PeerLeft { term, reason }, now);
            }
            Action::Dismiss => {}
            Action::Reset { .. } => {}
        }
    }

    fn ask(&mut self, claim: Claim) -> WitnessAnswer {
        if !self.witness_up {
            return WitnessAnswer::Unreachable(claim, "down".to_owned());
        }
        let verdict = judge(self.record, claim);
        if let Verdict::Granted(record) = verdict {
            self.record = Some(record);
        }
        if self.witness_mute {
            return WitnessAnswer::Unreachable(claim, "mute".to_owned());
        }
        WitnessAnswer::Judged(claim, verdict)
    }

    /// Lets time pass; nodes that are alive beat and look at the clock.
    fn pass(&mut self, span: Duration, alive: &[NodeId]) {
        let end = self.now + span;
        while self.now < end {
            self.now = self.now + STEP;
            let now = self.now;
            if self.connected && alive.len() == 2 {
                let (from_a, from_b) = (self.a.beat(), self.b.beat());
                for link in LinkId::ALL {
                    self.a.handle(Input::Beat { link, at: now, beat: from_b }, now);
                    self.b.handle(Input::Beat { link, at: now, beat: from_a }, now);
                }
            }
            for id in alive {
                self.node(*id).handle(Input::Timeout, now);
            }
            self.settle();
        }
    }

    fn runners(&self) -> usize {
        usize::from(self.a.runs()) + usize::from(self.b.runs())
    }
}

fn no_witness(on_partition: OnPartition) -> Settings {
    Settings { on_partition: Some(on_partition), ..Settings::default() }
}

#[test]
fn epochs_are_released_in_order_and_only_after_the_standby_committed_them() {
    let mut pair = Pair::protected(Settings::default());
    pair.pass(Duration::from_millis(500), &[A, B]);
    assert!(pair.released.len() > 10);
    assert_eq!(pair.released, pair.committed);
    assert!(pair.released.windows(2).all(|pair| pair[1] == pair[0].next()));
}

#[test]
fn output_cuts_the_epoch_after_the_shortest_time() {
    let settings = Settings { min_epoch: STEP, max_epoch: Duration::from_secs(10), ..Settings::default() };
    let mut pair = Pair::protected(settings);
    let before = pair.released.len();
    pair.pass(Duration::from_millis(100), &[A, B]);
    assert_eq!(pair.released.len(), before, "nothing asks for a cut");
    pair.a.handle(Input::CutWanted, pair.now);
    pair.settle();
    assert_eq!(pair.released.len(), before + 1);
    pair.a.handle(Input::CutWanted, pair.now);
    pair.settle();
    assert_eq!(pair.released.len(), before + 1, "too early");
    pair.pass(STEP, &[A, B]);
    assert_eq!(pair.released.len(), before + 2);
}

#[test]
fn a_frozen_standby_stops_the_pipeline_at_its_depth() {
    let mut pair = Pair::protected(Settings { silence: None, ..Settings::default() });
    pair.connected = false;
    let released = pair.released.len();
    let running = pair.a.epoch();
    pair.pass(Duration::from_secs(2), &[A]);
    assert_eq!(pair.released.len(), released);
    assert_eq!(pair.a.epoch().0, running.0 + 2);
    assert!(pair.a.runs());
}

#[test]
fn the_standby_takes_over_from_the_last_committed_epoch() {
    let mut pair = Pair::protected(Settings::default());
    pair.pass(Duration::from_millis(200), &[A, B]);
    let last = *pair.committed.last().unwrap();
    pair.connected = false;
    pair.pass(Duration::from_millis(600), &[B]);
    assert_eq!(pair.takeover, Some((last, Term(2))));
    assert_eq!(pair.b.state(), State::Solo);
    assert_eq!(pair.record, Some(Record::Solo { owner: B, term: Term(2), since: Term(2) }));
}

#[test]
fn a_partition_leaves_exactly_one_runner() {
    let mut pair = Pair::protected(Settings::default());
    pair.connected = false;
    pair.pass(Duration::from_secs(2), &[A, B]);
    assert_eq!(pair.runners(), 1, "{:?}", pair.events);
    let losers = if pair.a.runs() { vec![] } else { vec![A] };
    assert_eq!(pair.fenced, losers);
}

#[test]
fn a_stop_is_no_partition_although_the_standby_is_to_go_on_in_one() {
    let mut pair = Pair::protected(no_witness(OnPartition::Standby));
    pair.a.handle(Input::StopRequested, pair.now);
    pair.settle();
    assert_eq!((pair.a.state(), pair.b.state()), (State::Protected, State::StandbyEmpty), "until it is sure");
    pair.a.handle(Input::PeerLeft { term: pair.b.term(), reason: "it has dropped its copy".to_owned() }, pair.now);
    pair.settle();
    assert_eq!((pair.a.state(), pair.b.state()), (State::Solo, State::StandbyEmpty));
    assert!(pair.a.term() > Term(1) && pair.fenced.is_empty());
}

#[test]
fn a_first_checkpoint_that_was_never_sent_gives_the_standby_no_right() {
    let lost = [
        Input::CutFailed { epoch: Epoch(1), reason: "no memory".to_owned() },
        Input::YieldRequested { reason: "a device has died".to_owned() },
        Input::StreamLost { reason: "cut".to_owned() },
    ];
    for input in lost {
        let mut node = Node::solo(A, Term(1), no_witness(OnPartition::Standby), Time::default());
        node.handle(Input::SessionOpened { peer: B }, Time::default());
        node.handle(Input::Synced, Time::default());
        let cut = |action| matches!(action, Action::Cut { epoch: Epoch(1), kind: CutKind::Base });
        assert!(std::iter::from_fn(|| node.poll_action()).any(cut));
        node.handle(input, Time::default());
        assert_eq!(node.state(), State::Solo, "nobody else has the VM");
    }
}

#[test]
fn a_stop_that_the_standby_never_confirms_is_a_partition() {
    let mut pair = Pair::protected(no_witness(OnPartition::Standby));
    pair.connected = false;
    pair.a.handle(Input::StopRequested, pair.now);
    pair.pass(Duration::from_secs(2), &[A, B]);
    assert_eq!((pair.a.runs(), pair.b.runs()), (false, true));
    let mut pair = Pair::protected(no_witness(OnPartition::Standby));
    pair.a.handle(Input::StopRequested, pair.now);
    pair.settle();
    pair.a.handle(Input::StreamLost { reason: "cut".to_owned() }, pair.now);
    pair.settle();
    assert_eq!(pair.a.state(), State::Fenced, "nobody knows whether it was heard");
}

#[test]
fn policies_without_a_witness() {
    for (policy, a_runs, b_runs) in
        [(OnPartition::Primary, true, false), (OnPartition::Standby, false, true), (OnPartition::Both, true, true)]
    {
        let mut pair = Pair::protected(no_witness(policy));
        pair.connected = false;
        pair.pass(Duration::from_secs(2), &[A, B]);
        assert_eq!((pair.a.runs(), pair.b.runs()), (a_runs, b_runs), "{policy:?}");
    }
}

#[test]
fn without_the_witness_nobody_moves_until_it_is_back() {
    let mut pair = Pair::protected(Settings::default());
    (pair.connected, pair.witness_up) = (false, false);
    let released = pair.released.len();
    pair.pass(Duration::from_secs(2), &[A, B]);
    assert_eq!((pair.takeover, pair.released.len()), (None, released));
    assert_eq!(pair.a.state(), State::Protected);
    pair.witness_up = true;
    pair.pass(Duration::from_secs(1), &[A, B]);
    assert_eq!(pair.runners(), 1);
}

#[test]
fn a_primary_that_lost_its_standby_goes_on_and_the_stale_standby_never_runs() {
    let mut pair = Pair::protected(Settings::default());
    pair.connected = false;
    pair.pass(Duration::from_secs(1), &[A]);
    assert_eq!((pair.a.state(), pair.a.term()), (State::Solo, Term(2)));
    pair.pass(Duration::from_secs(1), &[B]);
    assert_eq!(pair.b.state(), State::StandbyEmpty);
    assert_eq!(pair.takeover, None);
}

#[test]
fn a_returning_ex_primary_is_fenced_by_the_first_beat() {
    let mut pair = Pair::protected(no_witness(OnPartition::Both));
    pair.connected = false;
    pair.pass(Duration::from_secs(1), &[B]);
    assert_eq!(pair.b.term(), Term(2));
    let beat = Beat { from: B, term: Term(2), runs: true };
    pair.a.handle(Input::Beat { link: LinkId::Heartbeat, at: pair.now, beat }, pair.now);
    pair.settle();
    assert_eq!(pair.a.state(), State::Fenced);
    assert_eq!(pair.fenced, [A]);
}

#[test]
fn a_yielding_primary_hands_over_without_waiting_for_silence() {
    let mut pair = Pair::protected(Settings::default());
    pair.a.handle(Input::YieldRequested { reason: "disk process died".to_owned() }, pair.now);
    pair.settle();
    assert_eq!((pair.a.state(), pair.b.state()), (State::Fenced, State::Solo));
    assert_eq!(pair.takeover, Some((*pair.committed.last().unwrap(), Term(2))));
}

#[test]
fn a_planned_move_waits_until_everything_is_committed_and_released() {
    let mut pair = Pair::protected(Settings::default());
    pair.connected = false;
    pair.a.handle(Input::CutWanted, pair.now + STEP);
    pair.settle();
    pair.a.handle(Input::SwitchoverRequested, pair.now + STEP);
    pair.settle();
    assert!(pair.stopped && pair.fenced.is_empty(), "the last cut is made, and nobody has it yet");
    let last = Epoch(pair.a.epoch().0 - 1);
    for epoch in [Epoch(last.0 - 1), last] {
        assert_ne!(pair.a.state(), State::Fenced, "before {epoch}");
        pair.b.handle(Input::DiskComplete { epoch, disk: 0 }, pair.now + STEP);
        pair.b.handle(Input::MemoryComplete { epoch, idle: Vec::new() }, pair.now + STEP);
        pair.connected = true;
        pair.settle();
        pair.connected = epoch == last;
    }
    assert_eq!((pair.a.state(), pair.b.state()), (State::Fenced, State::Solo));
    assert_eq!((pair.released.last(), pair.takeover), (Some(&last), Some((last, Term(2)))));
}

#[test]
fn a_move_whose_standby_is_lost_leaves_the_vm_here() {
    let mut pair = Pair::protected(Settings::default());
    pair.connected = false;
    pair.a.handle(Input::SwitchoverRequested, pair.now + STEP);
    pair.settle();
    assert!(pair.stopped);
    pair.a.handle(Input::StreamLost { reason: "closed".to_owned() }, pair.now + STEP);
    pair.settle();
    assert_eq!((pair.a.state(), pair.stopped), (State::Solo, false));
    assert!(pair.fenced.is_empty());
}

#[test]
fn a_failover_is_not_tested_while_the_standby_is_being_left() {
    let mut pair = Pair::protected(Settings::default());
    pair.witness_up = false;
    pair.a.handle(Input::StreamLost { reason: "closed".to_owned() }, pair.now);
    assert!(!pair.a.can_fail_over());
    pair.a.handle(Input::SimulateCrash, pair.now);
    pair.settle();
    assert!(pair.a.runs(), "the witness may give the VM to nobody else any more");
}

#[test]
fn a_standby_without_a_whole_checkpoint_never_takes_over() {
    let mut pair = Pair::new(Settings::default());
    pair.b.handle(Input::PrimaryJoined { peer: A, term: Term(1), disks: 1 }, pair.now);
    pair.b.handle(Input::MemoryComplete { epoch: Epoch(1), idle: Vec::new() }, pair.now);
    pair.pass(Duration::from_secs(2), &[B]);
    assert_eq!(pair.b.state(), State::StandbySyncing, "a slow start is not a death");
    pair.pass(Duration::from_secs(4), &[B]);
    assert_eq!((pair.takeover, pair.b.state()), (None, State::StandbyEmpty));
}

#[test]
fn acks_of_another_term_or_of_the_future_release_nothing() {
    let mut pair = Pair::protected(Settings::default());
    let released = pair.released.len();
    let running = pair.a.epoch();
    for (term, epoch) in [(Term(0), Epoch(1)), (Term(1), running), (Term(1), Epoch(u64::MAX)), (Term(9), running)] {
        pair.a.handle(Input::Acked { term, epoch }, pair.now);
        pair.settle();
    }
    assert_eq!(pair.released.len(), released);
}

#[test]
fn an_answer_to_a_claim_that_was_given_up_changes_nothing() {
    let mut pair = Pair::new(Settings::default());
    pair.b.handle(Input::PrimaryJoined { peer: A, term: Term(1), disks: 1 }, pair.now);
    pair.a.handle(Input::SessionOpened { peer: B }, pair.now);
    pair.witness_up = false;
    pair.a.handle(Input::Synced, pair.now);
    pair.settle();
    // The standby is complete, the registration unanswered. Now the standby is lost; the claim to be alone
    // takes effect, but its answer is lost too, and only then comes the witness's view of the registration.
    pair.connected = false;
    pair.a.handle(Input::StreamLost { reason: "reset".to_owned() }, pair.now);
    let alone = Claim::GoAlone { primary: A, in_sync: Replicas::one(B), term: Term(1) };
    let register = Claim::Register { primary: A, standby: B, term: Term(1) };
    let Verdict::Granted(record) = judge(pair.record, alone) else { panic!("not granted") };
    pair.settle();
    let late = WitnessAnswer::Judged(register, judge(Some(record), register));
    pair.a.handle(Input::Witness(late), pair.now);
    pair.settle();
    assert_eq!(pair.fenced, []);
    (pair.record, pair.witness_up) = (Some(record), true);
    pair.pass(Duration::from_millis(300), &[A]);
    assert_eq!((pair.a.state(), pair.a.term()), (State::Solo, Term(2)));
}

#[test]
fn only_the_claim_to_be_alone_is_repeated_once_the_standby_is_left() {
    let mut pair = Pair::new(Settings::default());
    pair.b.handle(Input::PrimaryJoined { peer: A, term: Term(1), disks: 1 }, pair.now);
    pair.a.handle(Input::SessionOpened { peer: B }, pair.now);
    pair.witness_up = false;
    pair.a.handle(Input::Synced, pair.now);
    pair.settle();
    pair.connected = false;
    pair.a.handle(Input::StreamLost { reason: "reset".to_owned() }, pair.now);
    pair.settle();
    // Its answer came after that of the claim to be alone: two askers, or a slow one.
    let register = Claim::Register { primary: A, standby: B, term: Term(1) };
    pair.a.handle(Input::Witness(WitnessAnswer::Unreachable(register, "down".to_owned())), pair.now);
    pair.witness_up = true;
    pair.pass(Duration::from_millis(300), &[A]);
    assert_eq!(pair.a.state(), State::Solo);
}

#[test]
fn a_standby_ignores_answers_about_an_earlier_session() {
    let mut pair = Pair::protected(Settings::default());
    (pair.connected, pair.witness_up) = (false, false);
    pair.pass(Duration::from_millis(600), &[B]);
    // The primary comes back in a later term, fills the standby again, and fails for good.
    let record = Record::Protected { primary: A, in_sync: Replicas::one(B), term: Term(3) };
    pair.b.handle(Input::PrimaryJoined { peer: A, term: Term(3), disks: 0 }, pair.now);
    pair.b.handle(Input::MemoryComplete { epoch: Epoch(1), idle: Vec::new() }, pair.now);
    pair.pass(Duration::from_millis(600), &[B]);
    let early = Claim::TakeOver { primary: A, standby: B, term: Term(1) };
    pair.b.handle(Input::Witness(WitnessAnswer::Judged(early, Verdict::Refused(Some(record)))), pair.now);
    pair.settle();
    assert_eq!(pair.b.state(), State::StandbyReady);
    (pair.record, pair.witness_up) = (Some(record), true);
    pair.pass(Duration::from_millis(300), &[B]);
    assert_eq!(pair.takeover, Some((Epoch(1), Term(4))));
}

fn hear(pair: &mut Pair, beat: Beat) {
    pair.a.handle(Input::Beat { link: LinkId::Heartbeat, at: pair.now, beat }, pair.now);
    pair.settle();
}

#[test]
fn a_primary_cut_off_from_witness_and_standby_invites_the_standby_over_the_other_link() {
    let mut pair = Pair::protected(Settings::default());
    pair.connected = false;
    pair.witness_up = false;
    for _ in 0..150 {
        pair.now = pair.now + STEP;
        let (now, beat) = (pair.now, pair.a.beat());
        // Its card is dead: only the second link works, in both directions.
        let heard = pair.b.beat();
        pair.a.handle(Input::Beat { link: LinkId::Heartbeat, at: now, beat: heard }, now);
        pair.a.handle(Input::Timeout, now);
        while let Some(action) = pair.a.poll_action() {
            pair.perform(A, action);
        }
        // The standby reaches the witness.
        pair.witness_up = true;
        pair.b.handle(Input::Beat { link: LinkId::Heartbeat, at: now, beat }, now);
        pair.b.handle(Input::Timeout, now);
        while let Some(action) = pair.b.poll_action() {
            pair.perform(B, action);
        }
        pair.witness_up = false;
    }
    assert_eq!((pair.b.state(), pair.b.term()), (State::Solo, Term(2)));
    // What the standby's beats say is no reason to stop for good; it says nothing until the witness is back.
    assert_eq!((pair.released.len(), pair.fenced.as_slice()), (1, [].as_slice()));
    pair.witness_up = true;
    pair.pass(Duration::from_secs(1), &[A]);
    assert_eq!((pair.a.state(), pair.fenced.as_slice()), (State::Fenced, [A].as_slice()));
}

#[test]
fn an_operator_who_stops_protection_does_not_move_the_vm() {
    let mut pair = Pair::protected(Settings::default());
    pair.witness_up = false;
    pair.a.handle(Input::StopRequested, pair.now);
    pair.pass(Duration::from_secs(2), &[A, B]);
    assert!(pair.a.beat().runs);
    pair.witness_up = true;
    pair.pass(Duration::from_millis(300), &[A, B]);
    assert_eq!((pair.a.state(), pair.takeover), (State::Solo, None));
}

#[test]
fn a_device_that_dies_while_the_standby_is_registered_moves_the_vm_there() {
    let mut pair = Pair::new(Settings::default());
    pair.b.handle(Input::PrimaryJoined { peer: A, term: Term(1), disks: 1 }, pair.now);
    pair.a.handle(Input::SessionOpened { peer: B }, pair.now);
    pair.witness_up = false;
    pair.a.handle(Input::Synced, pair.now);
    pair.settle();
    pair.a.handle(Input::YieldRequested { reason: "disk process died".to_owned() }, pair.now);
    pair.settle();
    assert!(pair.a.runs());
    pair.witness_up = true;
    pair.pass(Duration::from_millis(300), &[A, B]);
    assert_eq!((pair.a.state(), pair.b.state()), (State::Fenced, State::Solo));
}

#[test]
fn a_standby_that_asks_before_it_is_registered_keeps_its_copy() {
    let mut pair = Pair::new(Settings::default());
    pair.b.handle(Input::PrimaryJoined { peer: A, term: Term(1), disks: 1 }, pair.now);
    pair.a.handle(Input::SessionOpened { peer: B }, pair.now);
    pair.witness_up = false;
    pair.a.handle(Input::Synced, pair.now);
    pair.settle();
    assert_eq!(pair.b.state(), State::StandbyReady);
    // The standby hears nothing and asks, an instant before the registration reaches the witness. An epoch
    // arrives while it waits for its answer.
    pair.witness_up = true;
    pair.pass(Duration::from_millis(290), &[B]);
    pair.now = pair.now + STEP + STEP;
    pair.b.handle(Input::Timeout, pair.now);
    let claim = Claim::TakeOver { primary: A, standby: B, term: Term(1) };
    let early = judge(pair.record, claim);
    assert_eq!(early, Verdict::Refused(pair.record));
    while let Some(action) = pair.b.poll_action() {
        assert!(!matches!(action, Action::Reset { .. }), "{action:?}");
    }
    pair.b.handle(Input::DiskComplete { epoch: Epoch(2), disk: 0 }, pair.now);
    pair.b.handle(Input::MemoryComplete { epoch: Epoch(2), idle: Vec::new() }, pair.now);
    pair.settle();
    assert_eq!(pair.committed, [Epoch(1)], "nothing is acknowledged while a claim is open");
    pair.record = Some(Record::Protected { primary: A, in_sync: Replicas::one(B), term: Term(1) });
    pair.b.handle(Input::Witness(WitnessAnswer::Judged(claim, early)), pair.now);
    pair.settle();
    assert_eq!((pair.b.state(), pair.committed.as_slice()), (State::StandbyReady, [Epoch(1), Epoch(2)].as_slice()));
    pair.pass(Duration::from_secs(1), &[B]);
    assert_eq!(pair.takeover, Some((Epoch(2), Term(2))));
}

#[test]
fn silence_during_the_copy_does_not_count_when_the_copy_is_complete() {
    let mut pair = Pair::new(Settings::default());
    pair.b.handle(Input::PrimaryJoined { peer: A, term: Term(1), disks: 0 }, pair.now);
    pair.record = Some(Record::Protected { primary: A, in_sync: Replicas::one(B), term: Term(1) });
    pair.pass(Duration::from_secs(2), &[B]);
    pair.b.handle(Input::MemoryComplete { epoch: Epoch(1), idle: Vec::new() }, pair.now);
    pair.pass(Duration::from_millis(250), &[B]);
    assert_eq!(pair.takeover, None);
    pair.pass(Duration::from_millis(250), &[B]);
    assert_eq!(pair.takeover, Some((Epoch(1), Term(2))));
}
