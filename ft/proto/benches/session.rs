//! What the core itself costs an epoch: a cut, its acknowledgement, its release, on a protected pair.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use ft_proto::witness::{Claim, Record, Replicas, Verdict};
use ft_proto::{Action, Epoch, Input, Node, NodeId, Settings, State, Term, Time, WitnessAnswer};

const A: NodeId = NodeId::numbered(1, 1);
const B: NodeId = NodeId::numbered(2, 1);
const TERM: Term = Term(1);
const STEP: Duration = Duration::from_millis(1);

/// A primary and its standby, each told what the other one does.
struct Pair {
    primary: Node,
    standby: Node,
    now: Time,
}

impl Pair {
    fn protected() -> Self {
        let now = Time(1_000_000_000);
        let settings = Settings { silence: None, ..Settings::default() };
        let primary = Node::solo(A, TERM, settings, now);
        let mut pair = Self { primary, standby: Node::standby(B, settings, now), now };
        pair.standby.handle(Input::PrimaryJoined { peer: A, term: TERM, disks: 1 }, now);
        pair.primary.handle(Input::SessionOpened { peer: B }, now);
        pair.primary.handle(Input::Synced, now);
        pair.perform();
        assert_eq!(pair.primary.state(), State::Protected);
        pair
    }

    /// One epoch, from the first output that it holds to its release.
    fn epoch(&mut self) -> Epoch {
        self.now = self.now + STEP;
        self.primary.handle(Input::CutWanted, self.now);
        self.perform()
    }

    fn perform(&mut self) -> Epoch {
        let mut released = Epoch(0);
        while let Some(action) = self.primary.poll_action() {
            match action {
                Action::Cut { epoch, .. } => {
                    self.primary.handle(Input::CutDone { epoch, paused: Duration::ZERO, pages: 1 }, self.now);
                    self.standby.handle(Input::DiskComplete { epoch, disk: 0 }, self.now);
                    self.standby.handle(Input::MemoryComplete { epoch, idle: Vec::new() }, self.now);
                    while let Some(action) = self.standby.poll_action() {
                        if let Action::Commit(committed) = action {
                            let epoch = committed.epoch();
                            self.primary.handle(Input::Acked { term: TERM, epoch }, self.now);
                        }
                    }
                }
                Action::Release(committed) => released = committed.epoch(),
                Action::AskWitness(claim @ Claim::Register { primary, standby, term }) => {
                    let granted =
                        Verdict::Granted(Record::Protected { primary, in_sync: Replicas::one(standby), term });
                    self.primary.handle(Input::Witness(WitnessAnswer::Judged(claim, granted)), self.now);
                }
                _ => {}
            }
        }
        released
    }
}

fn session(criterion: &mut Criterion) {
    let mut pair = Pair::protected();
    let first = pair.epoch();
    assert_eq!(pair.epoch(), first.next(), "each call is an epoch");
    criterion
        .bench_function("an epoch, cut to release, both nodes", |bencher| bencher.iter(|| black_box(pair.epoch())));
}

criterion_group!(benches, session);
criterion_main!(benches);
