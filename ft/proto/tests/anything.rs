//! Whatever peers, witnesses, guests and operators say, in any order and at any time: no assertion of the
//! core fires, nothing is released that was not cut, and nothing is committed twice.

use std::time::Duration;

use ft_proto::witness::{Claim, DiskState, Record, Replicas, judge};
use ft_proto::{
    Action, Beat, CutKind, Epoch, Input, LinkId, Node, NodeId, OnPartition, Settings, State, Term, Time, WitnessAnswer,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

const US: NodeId = NodeId::numbered(1, 1);
const NODES: [NodeId; 4] = [US, NodeId::numbered(2, 1), NodeId::numbered(2, 2), NodeId::numbered(3, 1)];

/// Something happens to the node.
#[derive(Clone, Debug)]
enum Step {
    /// Somebody says something.
    Told(Input),
    /// What was to be cut is: or not.
    Cut { done: bool },
    /// The standby acknowledges what was cut last.
    Acked,
    /// The next epoch is complete here.
    Complete,
    /// A beat of the peer, in this term or the next one.
    Beat { next: bool, runs: bool },
    /// The witness answers its oldest question by this record, or not at all.
    Answer { record: Option<Record>, reached: bool },
    /// Time passes.
    Pass(Duration),
    /// A term is given for the next session.
    Term(Term),
}

fn node() -> impl Strategy<Value = NodeId> {
    prop::sample::select(&NODES[..])
}

fn term() -> impl Strategy<Value = Term> {
    prop_oneof![8 => Just(Term(1)), 8 => (0..6_u64).prop_map(Term), 1 => Just(Term::MAX)]
}

fn epoch() -> impl Strategy<Value = Epoch> {
    prop_oneof![8 => (0..8_u64).prop_map(Epoch), 1 => Just(Epoch::MAX)]
}

fn replicas() -> impl Strategy<Value = Replicas> {
    (node(), option::of(node())).prop_map(|(one, other)| {
        let one = Replicas::one(one);
        other.and_then(|other| one.and(other)).unwrap_or(one)
    })
}

fn record() -> impl Strategy<Value = Option<Record>> {
    option::of(prop_oneof![
        (node(), replicas(), term()).prop_map(|(primary, in_sync, term)| Record::Protected { primary, in_sync, term }),
        (node(), term(), term()).prop_map(|(owner, term, since)| Record::Solo { owner, term, since }),
        (term(), term()).prop_map(|(term, disks)| Record::Stopped { term, disks }),
    ])
}

fn claim() -> impl Strategy<Value = Claim> {
    (node(), node(), replicas(), term(), 0..8).prop_map(|(primary, standby, in_sync, term, kind)| match kind {
        0 => Claim::Own { node: primary, term, first: false },
        1 => Claim::Start { node: primary, disks: DiskState::Ended(term), waited: true },
        2 => Claim::Register { primary, standby, term },
        3 => Claim::Restore { primary, in_sync, term },
        4 => Claim::GoAlone { primary, in_sync, term },
        5 => Claim::TakeOver { primary, standby, term },
        6 => Claim::Withdraw { primary, standby, term },
        _ => Claim::Stop { node: primary, term, disks: term },
    })
}

fn input() -> impl Strategy<Value = Input> {
    let reason = String::new;
    let link = prop::sample::select(&LinkId::ALL[..]);
    let beat = (node(), term(), any::<bool>()).prop_map(|(from, term, runs)| Beat { from, term, runs });
    prop_oneof![
        2 => node().prop_map(|peer| Input::SessionOpened { peer }),
        3 => Just(Input::Synced),
        3 => Just(Input::CutWanted),
        1 => (epoch(), 0..3_u64).prop_map(|(epoch, pages)| Input::CutDone { epoch, paused: Duration::ZERO, pages }),
        1 => epoch().prop_map(move |epoch| Input::CutFailed { epoch, reason: reason() }),
        9 => (term(), epoch()).prop_map(|(term, epoch)| Input::Acked { term, epoch }),
        1 => Just(Input::StopRequested),
        1 => Just(Input::YieldRequested { reason: reason() }),
        1 => Just(Input::SwitchoverRequested),
        1 => Just(Input::SimulateCrash),
        3 => (node(), term(), 0..3_u16).prop_map(|(peer, term, disks)| Input::PrimaryJoined { peer, term, disks }),
        9 => (epoch(), vec(0..3_u16, 0..3)).prop_map(|(epoch, idle)| Input::MemoryComplete { epoch, idle }),
        9 => (epoch(), 0..3_u16).prop_map(|(epoch, disk)| Input::DiskComplete { epoch, disk }),
        1 => term().prop_map(|term| Input::Yielded { term }),
        1 => term().prop_map(move |term| Input::PeerLeft { term, reason: reason() }),
        1 => Just(Input::StreamLost { reason: reason() }),
        9 => (link, 0..500_u64, beat).prop_map(|(link, at, beat)| Input::Beat { link, at: Time(at), beat }),
        2 => (claim(), record())
            .prop_map(|(claim, record)| Input::Witness(WitnessAnswer::Judged(claim, judge(record, claim)))),
        2 => record().prop_map(|record| Input::RecordRead { record }),
        1 => Just(Input::TakeOverFailed { reason: reason() }),
        2 => Just(Input::Timeout),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => input().prop_map(Step::Told),
        4 => prop::bool::weighted(0.95).prop_map(|done| Step::Cut { done }),
        3 => Just(Step::Acked),
        3 => Just(Step::Complete),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(next, runs)| Step::Beat { next, runs }),
        3 => (prop_oneof![2 => Just(None), 1 => record()], prop::bool::weighted(0.7)).prop_map(|(record, reached)| Step::Answer { record, reached }),
        2 => (0..400_u64).prop_map(|ms| Step::Pass(Duration::from_millis(ms))),
        1 => term().prop_map(Step::Term),
    ]
}

/// A node, and what it has decided.
struct Run {
    node: Node,
    now: Time,
    cutting: Option<(Epoch, CutKind)>,
    asked: Vec<Claim>,
    /// The last epoch that was cut, released and committed in this session.
    last: [Epoch; 3],
}

impl Run {
    fn step(&mut self, step: Step) {
        match step {
            Step::Told(Input::Beat { link, at, beat }) => {
                // It arrived so many milliseconds ago.
                let at = self.now - Duration::from_millis(at.0);
                self.tell(Input::Beat { link, at, beat });
            }
            Step::Told(input) => self.tell(input),
            Step::Cut { done } => {
                let Some((epoch, _)) = self.cutting.take() else { return };
                if done {
                    self.last[0] = epoch;
                    self.tell(Input::CutDone { epoch, paused: Duration::ZERO, pages: 1 });
                } else {
                    self.tell(Input::CutFailed { epoch, reason: String::new() });
                }
            }
            Step::Acked => self.tell(Input::Acked { term: self.node.term(), epoch: self.last[0] }),
            Step::Complete => {
                let epoch = self.last[2].next();
                self.tell(Input::MemoryComplete { epoch, idle: Vec::new() });
                self.tell(Input::DiskComplete { epoch, disk: 0 });
            }
            Step::Beat { next, runs } => {
                let Some(from) = self.node.peer() else { return };
                let term = if next { self.node.term().next() } else { self.node.term() };
                let beat = Beat { from, term, runs };
                self.tell(Input::Beat { link: LinkId::Replication, at: self.now, beat });
            }
            Step::Answer { record, reached } => {
                let Some(claim) = self.asked.pop() else { return };
                let answer = if reached {
                    WitnessAnswer::Judged(claim, judge(record.or(registered(claim)), claim))
                } else {
                    WitnessAnswer::Unreachable(claim, String::new())
                };
                self.tell(Input::Witness(answer));
            }
            Step::Pass(span) => {
                self.now = self.now + span;
                self.tell(Input::Timeout);
            }
            Step::Term(term) => self.node.adopt_term(term),
        }
    }

    fn tell(&mut self, input: Input) {
        // Of what was never cut only the engine could say that it was.
        if matches!(input, Input::CutDone { epoch, .. } if self.last[0] < epoch) {
            return;
        }
        let (term, state) = (self.node.term(), self.node.state());
        let opens = matches!(input, Input::SessionOpened { .. } | Input::PrimaryJoined { .. });
        if opens {
            // It may be the same session still: then nothing of it is forgotten by the node.
            let joins = matches!(state, State::StandbyEmpty | State::StandbySyncing | State::StandbyReady);
            if state == State::Solo || joins && matches!(input, Input::PrimaryJoined { term: its, .. } if its >= term) {
                self.last = Default::default();
                self.cutting = None;
            }
        }
        self.node.handle(input, self.now);
        assert!(self.node.term() >= term, "terms never go back");
        while let Some(action) = self.node.poll_action() {
            self.perform(action);
        }
        assert!(self.node.poll_timeout().is_none_or(|at| at >= Time(0)));
    }

    fn perform(&mut self, action: Action) {
        let [cut, released, committed] = &mut self.last;
        match action {
            Action::Cut { epoch, kind } => {
                assert_eq!((self.cutting, epoch), (None, cut.next()));
                self.cutting = Some((epoch, kind));
            }
            Action::Release(proof) => {
                assert!(proof.epoch() > *released && proof.epoch() <= *cut, "{proof:?} after {released}, cut {cut}");
                *released = proof.epoch();
            }
            Action::Commit(proof) => {
                assert_eq!(proof.epoch(), committed.next());
                *committed = proof.epoch();
            }
            Action::TakeOver { committed: from, term } => {
                assert_eq!((from, term), (*committed, self.node.term()));
            }
            Action::AskWitness(claim) => self.asked.push(claim),
            _ => {}
        }
    }
}

/// The record by which a claim is granted.
fn registered(claim: Claim) -> Option<Record> {
    match claim {
        Claim::Register { primary: owner, term, .. } => Some(Record::Solo { owner, term, since: term }),
        Claim::GoAlone { primary, in_sync, term } => Some(Record::Protected { primary, in_sync, term }),
        Claim::TakeOver { primary, standby, term } | Claim::Withdraw { primary, standby, term } => {
            Some(Record::Protected { primary, in_sync: Replicas::one(standby), term })
        }
        _ => None,
    }
}

fn settings() -> impl Strategy<Value = Settings> {
    let policy = prop::sample::select(
        &[None, Some(OnPartition::Primary), Some(OnPartition::Standby), Some(OnPartition::Both)][..],
    );
    (policy, any::<bool>(), 1..4_usize).prop_map(|(on_partition, silence, depth)| Settings {
        on_partition,
        silence: silence.then_some(Duration::from_millis(300)),
        depth,
        ..Settings::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]
    #[test]
    fn nothing_that_others_say_violates_what_always_holds(
        settings in settings(), runs in any::<bool>(), opens in prop::bool::weighted(0.9), steps in vec(step(), 1..120),
    ) {
        let now = Time(1_000_000_000_000);
        let node = if runs { Node::solo(US, Term(1), settings, now) } else { Node::standby(US, settings, now) };
        let mut run = Run { node, now, cutting: None, asked: Vec::new(), last: Default::default() };
        // Most sessions begin as they should.
        let opened = if runs {
            vec![Step::Told(Input::SessionOpened { peer: NODES[1] }), Step::Told(Input::Synced), Step::Cut { done: true }]
        } else {
            vec![Step::Told(Input::PrimaryJoined { peer: NODES[1], term: Term(1), disks: 1 })]
        };
        opened.into_iter().filter(|_| opens).chain(steps).for_each(|step| run.step(step));
    }
}
