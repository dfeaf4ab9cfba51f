//! Who wins, who starts, and what is refused.

use super::*;
use crate::HostId;

const A: NodeId = NodeId::numbered(1, 1);
const B: NodeId = NodeId::numbered(2, 1);
const T: Term = Term(7);

const PROTECTED: Record = Record::Protected { primary: A, in_sync: Replicas::one(B), term: T };
const ALONE: Claim = Claim::GoAlone { primary: A, in_sync: Replicas::one(B), term: T };
const OVER: Claim = Claim::TakeOver { primary: A, standby: B, term: T };

fn granted(record: Option<Record>, claim: Claim) -> Option<Record> {
    match judge(record, claim) {
        Verdict::Granted(record) => Some(record),
        Verdict::Refused(_) => None,
    }
}

fn own(node: NodeId, term: Term) -> Claim {
    Claim::Own { node, term, first: true }
}

fn start(node: NodeId, disks: DiskState) -> Claim {
    Claim::Start { node, disks, waited: false }
}

fn after(node: NodeId) -> NodeId {
    NodeId { incarnation: node.incarnation + 1, ..node }
}

fn solo(owner: NodeId, term: Term) -> Option<Record> {
    Some(Record::Solo { owner, term, since: term })
}

#[test]
fn exactly_one_side_wins_a_partition() {
    for (first, second, owner) in [(ALONE, OVER, A), (OVER, ALONE, B)] {
        let after = granted(Some(PROTECTED), first);
        assert_eq!(after, solo(owner, T.next()));
        assert_eq!(granted(after, first), after, "asked again, granted again");
        assert_eq!(granted(after, second), None);
    }
}

#[test]
fn a_standby_has_no_right_before_it_is_registered() {
    let alone = granted(None, own(A, Term(6)));
    assert_eq!(alone, solo(A, T));
    assert_eq!(granted(alone, OVER), None);
    let registered = granted(alone, Claim::Register { primary: A, standby: B, term: T });
    assert_eq!(registered, Some(PROTECTED));
    assert!(granted(registered, OVER).is_some());
}

#[test]
fn a_claim_to_take_over_is_withdrawn_unless_it_was_granted() {
    let withdraw = Claim::Withdraw { primary: A, standby: B, term: T };
    assert_eq!(granted(Some(PROTECTED), withdraw), Some(PROTECTED));
    let unregistered = solo(A, T);
    assert_eq!(granted(unregistered, withdraw), unregistered);
    for over in [granted(Some(PROTECTED), OVER), granted(Some(PROTECTED), ALONE), None] {
        assert_eq!(granted(over, withdraw), None, "{over:?}");
    }
}

#[test]
fn each_session_of_an_owner_has_a_term_of_its_own() {
    let given = Some(Record::Solo { owner: A, term: Term(2), since: Term(2) });
    let first = granted(None, own(A, Term(1)));
    assert_eq!(first, given);
    assert_eq!(granted(first, own(A, Term(1))), first, "an answer that got lost, or a question that came late");
    let next = Some(Record::Solo { owner: A, term: Term(3), since: Term(2) });
    assert_eq!(granted(first, own(A, Term(2))), next, "the next session");
}

#[test]
fn a_record_that_was_lost_is_nobodys_for_the_taking() {
    let later = Claim::Own { node: A, term: T, first: false };
    let ran = [DiskState::Alone(T), DiskState::Ended(T), DiskState::Protected(T), DiskState::Copy(T)];
    let starts = ran.map(|disks| Claim::Start { node: A, disks, waited: true });
    for claim in starts.into_iter().chain([later, ALONE, OVER, start(A, DiskState::Hole)]) {
        assert_eq!(granted(None, claim), None, "{claim:?}");
    }
    let restore = Claim::Restore { primary: A, in_sync: Replicas::one(B), term: T };
    assert_eq!(granted(None, restore), Some(PROTECTED));
    assert_eq!(granted(Some(PROTECTED), restore), Some(PROTECTED));
    for other in [solo(B, T.next()), solo(A, T), Some(Record::Stopped { term: T, disks: T })] {
        assert_eq!(granted(other, restore), None, "{other:?}");
    }
}

#[test]
fn a_stale_owner_gets_nothing() {
    let solo_b = solo(B, T.next());
    for claim in [own(A, T), ALONE, Claim::Register { primary: A, standby: B, term: T }] {
        assert_eq!(granted(solo_b, claim), None, "{claim:?}");
    }
}

#[test]
fn an_operator_ends_the_term_that_he_has_seen_and_no_later_one() {
    let force = Claim::Force { node: B, term: T };
    for record in [solo(A, T), Some(PROTECTED), Some(Record::Stopped { term: T, disks: T })] {
        let forced = granted(record, force);
        assert_eq!(forced, solo(B, T.next()));
        assert_eq!(granted(forced, force), forced, "asked again, granted again");
        assert_eq!(granted(forced, Claim::Force { node: after(B), term: T }), None, "left in a unit, it is used up");
        assert_eq!(granted(forced, ALONE), None);
    }
    assert_eq!(granted(None, force), None);
    assert_eq!(granted(solo(A, Term(6)), force), None);
}

#[test]
fn a_stopped_vm_starts_from_the_newest_disks_in_a_new_term() {
    let stopped = granted(solo(A, T), Claim::Stop { node: A, term: T, disks: T });
    assert_eq!(stopped, Some(Record::Stopped { term: T, disks: T }));
    for older in [DiskState::Fresh, DiskState::Ended(Term(6)), DiskState::Copy(T), DiskState::None] {
        assert_eq!(granted(stopped, start(B, older)), None);
    }
    let claim = start(B, DiskState::Ended(T));
    let again = granted(stopped, claim);
    assert_eq!(again, solo(B, T.next()));
    assert_eq!(granted(again, claim), again, "asked again, granted again");
    assert_eq!(granted(again, start(A, DiskState::Ended(T))), None, "one of two with the same disks");
}

#[test]
fn who_could_not_start_the_vm_leaves_it_to_the_same_disks() {
    let stopped = Some(Record::Stopped { term: T, disks: T });
    let started = granted(stopped, start(A, DiskState::Ended(T)));
    let back = granted(started, Claim::Stop { node: A, term: T.next(), disks: T });
    assert_eq!(back, Some(Record::Stopped { term: T.next(), disks: T }));
    assert_eq!(granted(back, start(B, DiskState::Ended(Term(6)))), None);
    assert!(granted(back, start(A, DiskState::Ended(T))).is_some());
}

#[test]
fn after_a_blackout_the_last_runner_comes_back_with_its_own_disks() {
    let (again, other) = (after(A), after(B));
    let next = solo(again, T.next());
    assert_eq!(granted(Some(PROTECTED), start(again, DiskState::Protected(T))), next);
    assert_eq!(granted(solo(A, T), start(again, DiskState::Alone(T))), next);
    // It went alone, or had no time to note that it was given the VM, or shut it down and had no time to say
    // so.
    for disks in [DiskState::Protected(Term(6)), DiskState::Alone(Term(6)), DiskState::Ended(T)] {
        assert_eq!(granted(solo(A, T), start(again, disks)), next, "{disks:?}");
    }
    for disks in [DiskState::Fresh, DiskState::Hole, DiskState::Alone(Term(5)), DiskState::Copy(T), DiskState::Unusable]
    {
        assert_eq!(granted(solo(A, T), start(again, disks)), None, "{disks:?}");
        assert_eq!(granted(Some(PROTECTED), start(again, disks)), None, "{disks:?}");
    }
    for disks in [DiskState::Alone(T), DiskState::Protected(T), DiskState::Copy(T)] {
        assert_eq!(granted(solo(A, T), Claim::Start { node: other, disks, waited: true }), None, "{disks:?}");
        assert_eq!(granted(Some(PROTECTED), start(other, disks)), None, "{disks:?}");
    }
}

#[test]
fn a_standby_alone_goes_on_only_where_an_operator_said_so() {
    let claim = |copy, waited| Claim::Start { node: after(B), disks: DiskState::Copy(copy), waited };
    assert_eq!(granted(Some(PROTECTED), claim(T, false)), None);
    assert_eq!(granted(Some(PROTECTED), claim(Term(6), true)), None, "of an earlier session");
    assert_eq!(granted(Some(PROTECTED), claim(T, true)), solo(after(B), T.next()));
    // It was given the VM and died before it ran.
    assert_eq!(granted(solo(B, T), claim(Term(6), false)), None);
    assert_eq!(granted(solo(B, T), claim(Term(6), true)), solo(after(B), T.next()));
}

#[test]
fn terms_that_cannot_be_are_refused() {
    let absurd = Term(u64::MAX);
    assert_eq!(absurd.next(), absurd);
    let records = [solo(A, absurd), Some(Record::Stopped { term: absurd, disks: T })];
    for record in records {
        let Some(Record::Solo { term, .. } | Record::Stopped { term, .. }) = record else { unreachable!() };
        assert_eq!(granted(record, Claim::Force { node: B, term }), None);
        assert_eq!(granted(record, own(A, T)), None);
    }
    assert_eq!(granted(None, own(A, absurd)), None);
    let stopped = Some(Record::Stopped { term: T, disks: T });
    assert_eq!(granted(stopped, start(A, DiskState::Ended(absurd))), None);
}

/// Hosts start, run, take over, shut down and crash, one or both, in any order, as far as the witness lets
/// them: each start is from the newest disks.
#[test]
fn nobody_starts_from_old_disks() {
    let begin =
        Hosts { record: None, content: [0; 2], disks: [DiskState::Fresh, DiskState::Hole], written: 0, started: 0 };
    let mut seen = std::collections::HashSet::new();
    explore(&begin, 9, &mut seen);
    assert!(seen.len() > 10_000, "{}", seen.len());
}

fn explore(hosts: &Hosts, depth: u32, seen: &mut std::collections::HashSet<(Hosts, u32)>) {
    if depth == 0 || !seen.insert((*hosts, depth)) {
        return;
    }
    for host in 0..2 {
        hosts.steps(host).iter().for_each(|after| explore(after, depth - 1, seen));
    }
}

/// What is on the disks of two hosts: the number of their last write, and their record.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
struct Hosts {
    record: Option<Record>,
    content: [u32; 2],
    disks: [DiskState; 2],
    written: u32,
    started: u64,
}

impl Hosts {
    /// Everything that may happen at a host.
    fn steps(self, host: usize) -> Vec<Self> {
        let mut steps = self.start(host);
        if let Some(Record::Solo { owner, term, .. }) = self.record
            && owner.host == HostId::numbered(host as u64)
        {
            steps.extend(self.while_it_runs(owner, host, term));
        }
        steps
    }

    /// Comes up after whatever became of its last incarnation.
    fn start(mut self, host: usize) -> Vec<Self> {
        self.started += 1;
        let (node, disks) = (NodeId::numbered(host as u64, self.started), self.disks[host]);
        let Some(started) = self.judged(super::tests::start(node, disks)) else { return Vec::new() };
        assert_eq!(self.content[host], self.written, "{:?} {:?}", self.record, self.disks);
        let term = started.record.unwrap().term();
        let mut noted = started;
        noted.disks[host] = DiskState::Alone(term);
        let gives_back = disks.ran().and_then(|ran| started.judged(Claim::Stop { node, term, disks: ran }));
        // Or it could not be built.
        [Some(started), Some(noted.write(host)), gives_back].into_iter().flatten().collect()
    }

    fn while_it_runs(self, node: NodeId, host: usize, term: Term) -> Vec<Self> {
        // Nothing runs before the disks have noted it.
        if !matches!(self.disks[host], DiskState::Alone(_)) {
            return Vec::new();
        }
        let standby = NodeId::numbered(1 - host as u64, self.started);
        let owned = self.judged(Claim::Own { node, term, first: false }).unwrap();
        let term = owned.record.unwrap().term();
        let mut session = owned;
        session.disks[host] = DiskState::Alone(term);
        let mut synced = session;
        synced.content[1 - host] = synced.written;
        synced.disks = [DiskState::Protected(term); 2];
        synced.disks[1 - host] = DiskState::Copy(term);
        let protected = synced.judged(Claim::Register { primary: node, standby, term }).unwrap();
        let granted = protected.judged(Claim::TakeOver { primary: node, standby, term }).unwrap();
        let mut moved = granted;
        moved.disks[1 - host] = DiskState::Alone(term.next());
        let alone = protected.judged(Claim::GoAlone { primary: node, in_sync: Replicas::one(standby), term }).unwrap();
        let mut noted = alone;
        noted.disks[host] = DiskState::Alone(term.next());
        let mut ended = self;
        ended.disks[host] = DiskState::Ended(self.record.unwrap().term());
        let stop = |hosts: Self| {
            let Some(Record::Solo { term, .. }) = hosts.record else { unreachable!() };
            hosts.judged(Claim::Stop { node, term, disks: term }).unwrap()
        };
        // Each may be where the host, or both, lose power: what comes next is a start.
        vec![
            self.write(host),
            owned,
            session.write(host),
            synced,
            protected.write(host),
            granted,
            moved.write(1 - host),
            alone.write(host),
            noted.write(host),
            ended,
            stop(ended),
        ]
    }

    fn judged(self, claim: Claim) -> Option<Self> {
        granted(self.record, claim).map(|record| Self { record: Some(record), ..self })
    }

    fn write(mut self, host: usize) -> Self {
        self.written += 1;
        self.content[host] = self.written;
        self
    }
}

const C: NodeId = NodeId::numbered(3, 1);

fn both() -> Replicas {
    Replicas::one(B).and(C).unwrap()
}

#[test]
fn each_of_several_replicas_may_take_over_and_one_does() {
    let register = |standby| Claim::Register { primary: A, standby, term: T };
    let registered = granted(Some(PROTECTED), register(C));
    assert_eq!(registered, Some(Record::Protected { primary: A, in_sync: both(), term: T }));
    assert_eq!(granted(registered, register(B)), registered, "asked again, granted again");
    let over = |standby| Claim::TakeOver { primary: A, standby, term: T };
    for (first, second) in [(B, C), (C, B)] {
        let taken = granted(registered, over(first));
        assert_eq!(taken, solo(first, T.next()));
        assert_eq!(granted(taken, over(second)), None);
        assert_eq!(granted(taken, Claim::GoAlone { primary: A, in_sync: both(), term: T }), None);
    }
    let withdraw = Claim::Withdraw { primary: A, standby: C, term: T };
    assert_eq!(granted(registered, withdraw), registered);
    assert_eq!(granted(Some(PROTECTED), withdraw), None, "it has no right there");
}

#[test]
fn a_primary_goes_on_alone_only_if_it_names_all_that_lose_their_right() {
    let all = Some(Record::Protected { primary: A, in_sync: both(), term: T });
    assert_eq!(granted(all, ALONE), None);
    assert_eq!(granted(Some(PROTECTED), Claim::GoAlone { primary: A, in_sync: both(), term: T }), None);
    assert_eq!(granted(all, Claim::GoAlone { primary: A, in_sync: both(), term: T }), solo(A, T.next()));
    assert_eq!(granted(None, Claim::Restore { primary: A, in_sync: both(), term: T }), all);
    assert_eq!(granted(all, Claim::Restore { primary: A, in_sync: Replicas::one(B), term: T }), None);
}

#[test]
fn each_of_several_replicas_starts_the_vm_when_it_has_waited() {
    let all = Some(Record::Protected { primary: A, in_sync: both(), term: T });
    for host in [B, C] {
        let node = after(host);
        assert_eq!(granted(all, start(node, DiskState::Copy(T))), None);
        let waited = Claim::Start { node, disks: DiskState::Copy(T), waited: true };
        assert_eq!(granted(all, waited), solo(node, T.next()));
    }
}
