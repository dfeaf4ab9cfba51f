//! The state space: where it begins, what can happen in each state, and what follows from it.

use ft_proto::witness::{Claim, DiskState, Verdict, judge};
use ft_proto::{Beat, Input, LinkId, Node, NodeId, State, Term};
use stateright::{Model, Property};

use crate::hosts::{T0, settings};
use crate::properties;
use crate::state::{Act, Bounds, Host, LateClaims, Left, Started, Sys, System};

impl Model for System {
    type State = Sys;
    type Action = Act;

    fn init_states(&self) -> Vec<Sys> {
        let host = |node, disk, first| Host { node: Some(node), disk, first, ..Host::down() };
        let Bounds { crashes, blackouts, breaks, losses, operations, starts, record_losses, looks, forged, .. } =
            self.bounds;
        let settings = settings(self.policy);
        let ran = DiskState::Alone(Term(1));
        vec![Sys {
            hosts: [
                host(Node::solo(NodeId::numbered(1, 1), Term(1), settings, T0), ran, true),
                host(Node::standby(NodeId::numbered(2, 1), settings, T0), DiskState::Hole, false),
            ],
            record: None,
            asks: Vec::new(),
            late: Vec::new(),
            answers: Vec::new(),
            stream: None,
            reads: Vec::new(),
            told: Vec::new(),
            runner: 0,
            started: Started::default(),
            restored: false,
            incarnations: [1, 1],
            left: Left { crashes, blackouts, breaks, losses, operations, starts, record_losses, looks, forged },
            flaw: self.flaw,
            policy: self.policy,
            late_claims: self.late_claims,
        }]
    }

    fn actions(&self, sys: &Sys, acts: &mut Vec<Act>) {
        for at in 0..2 {
            self.host_actions(sys, at, acts);
        }
        if let Some(stream) = &sys.stream {
            acts.extend((!stream.down.is_empty()).then_some(Act::Down));
            acts.extend((!stream.up.is_empty()).then_some(Act::Up));
            if sys.left.breaks > 0 {
                acts.extend([Act::Break { truncate: true }, Act::Break { truncate: false }]);
            }
        }
        for at in (0..sys.asks.len()).filter(|at| self.comes_next(&sys.asks, *at)) {
            acts.push(Act::Judge(at));
            if sys.left.losses > 0 {
                acts.extend([Act::JudgeMute(at), Act::LoseClaim(at), Act::Delay(at)]);
            }
        }
        if sys.left.blackouts > 0 && sys.hosts.iter().all(|host| host.node.is_some()) {
            acts.push(Act::Blackout);
        }
        acts.extend((0..sys.late.len()).map(Act::JudgeLate));
        acts.extend((0..sys.reads.len()).map(Act::Read));
        if sys.left.record_losses > 0 && sys.record.is_some() {
            acts.push(Act::LoseRecord);
        }
        let read = |at: &usize| sys.reads.iter().any(|(id, _)| *id == sys.answers[*at].0);
        let next = |at: &usize| self.comes_next(&sys.answers, *at) && !read(at);
        acts.extend((0..sys.answers.len()).filter(next).map(Act::Answer));
    }

    fn next_state(&self, before: &Sys, act: Act) -> Option<Sys> {
        let mut sys = before.clone();
        sys.happen(act)?;
        let sys = sys.reduced();
        (sys != *before).then_some(sys)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

impl Sys {
    fn happen(&mut self, act: Act) -> Option<()> {
        let sys = self;
        match act {
            Act::Own(at) => {
                let first = sys.hosts[at].first;
                let node = sys.hosts[at].node.as_ref()?;
                let claim = Claim::Own { node: node.id(), term: node.term(), first };
                sys.asks.push((node.id(), claim));
            }
            Act::Open(at) => sys.open(at)?,
            Act::Synced(at) => sys.synced(at),
            Act::Want(at) => sys.input(at, Input::CutWanted),
            Act::Down => sys.down()?,
            Act::Up => sys.up()?,
            Act::Break { truncate } => {
                sys.left.breaks -= 1;
                sys.end_stream(truncate);
            }
            Act::Silence(at) => sys.silence(at),
            Act::Beat(at) => sys.beat(at)?,
            Act::Judge(at) => sys.judge(at, false),
            Act::JudgeMute(at) => sys.judge(at, true),
            Act::LoseClaim(at) => {
                let (node, claim) = sys.asks.remove(at);
                sys.unanswered(node, claim);
            }
            Act::Delay(at) => {
                let (node, claim) = sys.asks.remove(at);
                if sys.late_claims == LateClaims::Judged || matches!(judge(sys.record, claim), Verdict::Granted(_)) {
                    sys.late.push(claim);
                }
                sys.unanswered(node, claim);
            }
            Act::JudgeLate(at) => {
                let claim = sys.late.remove(at);
                sys.rule(claim);
            }
            Act::Answer(at) => {
                let (node, answer) = sys.answers.remove(at);
                sys.answered(node, answer);
            }
            Act::Retry(at) => sys.retry(at),
            Act::Crash(at) => sys.crash(at),
            Act::Blackout => sys.blackout(),
            Act::Restart(at) => sys.restart(at),
            Act::Start { at, waited } => sys.ask_to_start(at, waited)?,
            Act::Note(at) => sys.note(at),
            Act::LoseRecord => {
                sys.left.record_losses -= 1;
                sys.record = None;
                if sys.late_claims == LateClaims::Compared {
                    sys.late.clear();
                }
            }
            Act::Look(at) => sys.look(at),
            Act::Read(at) => sys.read(at),
            Act::Forge { at, term, runs } => {
                sys.left.forged -= 1;
                let beat = Beat { from: sys.hosts[at].node.as_ref()?.peer()?, term, runs };
                sys.input(at, Input::Beat { link: LinkId::Heartbeat, at: T0, beat });
            }
            by_operator => sys.operator(&by_operator),
        }
        Some(())
    }

    /// What an operator does.
    fn operator(&mut self, act: &Act) {
        let sys = self;
        sys.left.operations -= 1;
        match *act {
            Act::Stop(at) => {
                sys.input(at, Input::StopRequested);
            }
            Act::Move(at) => {
                sys.input(at, Input::SwitchoverRequested);
            }
            Act::SimulateCrash(at) => {
                sys.input(at, Input::SimulateCrash);
                if sys.hosts[at].node.as_ref().is_some_and(|node| node.state() == State::Fenced) {
                    sys.end_stream(false);
                }
            }
            Act::Yield(at) => {
                sys.input(at, Input::YieldRequested { reason: String::new() });
            }
            _ => {}
        }
    }
}

impl System {
    /// Whether nothing of the same node is before it, where that matters.
    fn comes_next<T>(&self, queue: &[(NodeId, T)], at: usize) -> bool {
        self.late_claims == LateClaims::Judged || queue[..at].iter().all(|(node, _)| *node != queue[at].0)
    }

    fn host_actions(&self, sys: &Sys, at: usize, acts: &mut Vec<Act>) {
        let Some(node) = &sys.hosts[at].node else { return acts.push(Act::Restart(at)) };
        let (id, state) = (node.id(), node.state());
        if sys.left.crashes > 0 {
            acts.push(Act::Crash(at));
        }
        if sys.hosts[1 - at].node.as_ref().is_some_and(|other| other.peer() == Some(id)) {
            acts.push(Act::Beat(at));
        }
        self.outside_actions(sys, at, acts);
        let asks_own = |claim: &Claim| matches!(claim, Claim::Own { node, .. } if *node == id);
        let pending = sys.asks.iter().any(|(_, claim)| asks_own(claim))
            || sys.answers.iter().any(|(_, answer)| asks_own(&answer.claim()));
        match state {
            State::Solo if sys.hosts[at].owned.is_some() => acts.push(Act::Open(at)),
            State::Solo if sys.told.len() < self.bounds.sessions && !pending => acts.push(Act::Own(at)),
            State::Syncing | State::Protected => {
                acts.extend([Act::Synced(at), Act::Silence(at), Act::Retry(at)]);
                if node.epoch().0 < self.bounds.epochs {
                    acts.push(Act::Want(at));
                }
                if sys.left.operations > 0 {
                    acts.extend([Act::Stop(at), Act::Yield(at)]);
                    if state == State::Protected {
                        acts.extend([Act::Move(at), Act::SimulateCrash(at)]);
                    }
                }
            }
            State::StandbySyncing | State::StandbyReady => acts.extend([Act::Silence(at), Act::Retry(at)]),
            _ => {}
        }
    }

    /// What disks, the witness and strangers do.
    fn outside_actions(&self, sys: &Sys, at: usize, acts: &mut Vec<Act>) {
        let Some(node) = &sys.hosts[at].node else { return };
        let starts = [false, true].map(|waited| Act::Start { at, waited });
        let granted = |act: &Act| matches!(act, Act::Start { at, waited } if sys.start_claim(*at, *waited).is_some());
        acts.extend(starts.into_iter().filter(granted));
        if sys.left.starts > 0 && sys.left.crashes + sys.left.blackouts > 0 {
            acts.push(Act::Note(at));
        }
        // Who asks the witness asks one thing after the other.
        let asked = sys.asks.iter().map(|(id, _)| id).chain(sys.answers.iter().map(|(id, _)| id));
        let looks = sys.left.looks > 0 && asked.chain(sys.reads.iter().map(|(id, _)| id)).all(|id| *id != node.id());
        if looks && matches!(node.state(), State::Solo | State::Protected) {
            acts.push(Act::Look(at));
        }
        if sys.left.forged > 0 && node.peer().is_some() {
            let terms = Sys::forged_terms(node.term());
            acts.extend(terms.iter().flat_map(|term| [true, false].map(|runs| Act::Forge { at, term: *term, runs })));
        }
    }
}
