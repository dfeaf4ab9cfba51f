//! What outlives a crash: a host's disks, with what they have on record, and who may start the VM from them.

use ft_proto::witness::{Claim, DiskState, Verdict};
use ft_proto::{Node, NodeId, State};

use crate::hosts::{T0, settings};
use crate::state::{Host, Sys};

impl Sys {
    /// A host dies.
    pub(crate) fn crash(&mut self, at: usize) {
        self.left.crashes -= 1;
        self.lose_memory(at);
    }

    /// Both die at once.
    pub(crate) fn blackout(&mut self) {
        self.left.blackouts -= 1;
        (0..2).for_each(|at| self.lose_memory(at));
    }

    fn lose_memory(&mut self, at: usize) {
        self.hosts[at] = Host { disk: self.hosts[at].disk, ..Host::down() };
        self.end_stream(true);
    }

    /// The host is back, with its disks, as a new incarnation that stands by until it may start.
    pub(crate) fn restart(&mut self, at: usize) {
        let id = self.next_incarnation(at);
        self.incarnations[at] += 1;
        self.hosts[at].node = Some(Node::standby(id, settings(self.policy), T0));
    }

    /// What the host would ask the witness for, if it may hope for a grant: each question is that of a new
    /// incarnation.
    pub(crate) fn start_claim(&self, at: usize, waited: bool) -> Option<Claim> {
        let Host { node: Some(node), disk, .. } = &self.hosts[at] else { return None };
        let pending = self.starts_under_way().any(|asker| asker == node.id());
        if self.left.starts == 0 || node.state() != State::StandbyEmpty || pending {
            return None;
        }
        let claim = Claim::Start { node: self.next_incarnation(at), disks: *disk, waited };
        matches!(self.judged(claim), Verdict::Granted(_)).then_some(claim)
    }

    fn next_incarnation(&self, at: usize) -> NodeId {
        NodeId::numbered(at as u64 + 1, self.incarnations[at] + 1)
    }

    /// Nodes that have asked whether they may start the VM, and have no answer yet.
    pub(crate) fn starts_under_way(&self) -> impl Iterator<Item = NodeId> {
        let asks = self.asks.iter().map(|(id, claim)| (*id, *claim));
        let all = asks.chain(self.answers.iter().map(|(id, answer)| (*id, answer.claim())));
        all.filter(|(_, claim)| matches!(claim, Claim::Start { .. })).map(|(id, _)| id)
    }

    /// A host asks whether it may start the VM.
    pub(crate) fn ask_to_start(&mut self, at: usize, waited: bool) -> Option<()> {
        let claim = self.start_claim(at, waited)?;
        let id = self.hosts[at].node.as_ref()?.id();
        self.left.starts -= 1;
        self.incarnations[at] += 1;
        self.asks.push((id, claim));
        Some(())
    }

    /// The witness has answered the question whether the VM may be started.
    pub(crate) fn start_judged(&mut self, at: usize, claim: Claim, verdict: Verdict) {
        let (Verdict::Granted(record), Claim::Start { node: id, waited, .. }) = (verdict, claim) else { return };
        if self.hosts[at].node.as_ref().is_none_or(|node| node.state() != State::StandbyEmpty) {
            return;
        }
        self.hosts[at].node = Some(Node::solo(id, record.term(), settings(self.policy), T0));
        self.hosts[at].disk = DiskState::Alone(record.term());
        self.started.stale |= !waited && self.runner != at;
        self.started.last |= !waited;
        self.started.waited |= waited;
        self.runner = at;
    }

    /// The disks of this host note what it has told them, some time after it did.
    pub(crate) fn note(&mut self, at: usize) {
        let Host { node: Some(node), disk, .. } = &mut self.hosts[at] else { return };
        match node.state() {
            State::Solo | State::Syncing if disk.term() < node.term() => *disk = DiskState::Alone(node.term()),
            State::StandbyReady if *disk == DiskState::Unusable => *disk = DiskState::Copy(node.term()),
            _ => {}
        }
    }
}
