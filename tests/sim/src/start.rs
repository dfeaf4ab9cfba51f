//! Hosts that are back with their disks and wait: who may start the VM by proof, and what it starts from.
//! Follows `ft/src/start.rs` and `vmm/src/ft_adapter/start_retry.rs`. And the operator who gives a witness
//! its record again.

use ft::NodeTerm;
use ft::sim::Begin;
use ft_proto::witness::{Claim, Record, Verdict, judge};
use ft_proto::{LinkId, NodeId, State, Term, WitnessAnswer};

use crate::body::Question;
use crate::ids::VM;

use crate::guest::{Blocks, KEYS};
use crate::invariants::Moment;
use crate::mutation::Mutation;
use crate::process::{Address, Asks};
use crate::world::{Event, World};

impl World {
    /// A host that stands by without a primary asks whether it may start the VM.
    pub(crate) fn election(&mut self, host: usize) {
        let again = self.rng.micros(20_000, 80_000);
        self.after(again, Event::Election(host));
        if self.policy().is_some() {
            // Who starts is decided when a process does.
            return;
        }
        let (now, address) = (self.now, self.address(host));
        let copy_starts = self.mutation == Some(Mutation::CopyStartsByItself);
        let node = NodeId::numbered(host as u64, self.rng.word());
        let disks = self.hosts[host].disk_state(self.mutation);
        let Some(process) = self.process(address) else { return };
        let waits = process.state() == State::StandbyEmpty && process.starting.is_none();
        if !waits || !process.is_awake(now) || process.is_broken() || !self.witness_reachable(host) {
            return;
        }
        let claim = Claim::Start { node, disks, waited: copy_starts };
        if matches!(self.judged(claim), Verdict::Refused(_)) || self.others_object(host) {
            return;
        }
        if let Some(process) = self.process(address) {
            process.starting = Some(node);
        }
        self.note(host, || format!("asks to start the VM as {node:?}: {disks:?}"));
        self.ask_witness(address, Question::Claim(claim), Asks::Starter);
    }

    /// Whether a host that can be reached runs the VM, or is about to.
    fn others_object(&self, host: usize) -> bool {
        // A copy that is not on record cannot take over, whatever its host hopes.
        let registered = matches!(self.witness.record, Some(Record::Protected { .. }))
            || self.mutation == Some(Mutation::DeferToAnyCopy);
        let reaches = |from, to| !self.network.is_blocked(from, to, LinkId::Replication, self.now);
        let others = self.hosts.iter().enumerate().filter(|(at, _)| *at != host);
        others.filter(|(at, _)| reaches(host, *at) && reaches(*at, host)).any(|(_, other)| {
            let up = other.process.as_ref().filter(|process| process.is_awake(self.now));
            up.is_some_and(|process| process.runs() || registered && process.state() == State::StandbyReady)
        })
    }

    /// The witness has answered.
    pub(crate) fn may_start(&mut self, address: Address, answer: WitnessAnswer) {
        let Some(process) = self.process(address) else { return };
        let Some(node) = process.starting.take() else { return };
        let waits = process.state() == State::StandbyEmpty && !process.is_broken();
        match answer {
            WitnessAnswer::Judged(_, Verdict::Granted(record)) if waits => self.start(address.0, node, record.term()),
            // It may take effect yet; then the next question finds this host on record.
            _ => {}
        }
    }

    /// The VM boots from what is on this host's disk.
    pub(crate) fn start(&mut self, host: usize, node: NodeId, term: Term) {
        let stale = self.hosts[host].blocks() != self.newest_blocks();
        self.kill(host, true);
        self.hosts[host].down = false;
        // Its disk takes note before anything runs.
        self.run_from(host, term);
        self.ran(host);
        let blocks = self.hosts[host].blocks();
        let at = self.truth.new_branch(None);
        self.name_node(host, node);
        self.starts += 1;
        self.note(host, || format!("starts the VM as {node} in term {term}"));
        self.client.forget_unstored(&blocks);
        self.moment(Moment::Booted { node, stale, blocks: Some(blocks) });
        let begin = Begin::Run(NodeTerm { vm: VM, node, term, first: false });
        self.start_process(host, begin, |guest| {
            (guest.running, guest.vcpu.at, guest.vcpu.done) = (true, at, blocks);
            (0..KEYS).for_each(|key| guest.memory.set(key, blocks[key]));
        });
    }

    /// This host has the newest disks from now on.
    pub(crate) fn ran(&mut self, host: usize) {
        self.runner = host;
        self.hosts[host].drives.iter_mut().for_each(|drive| drive.mislaid = None);
    }

    /// What is on the disk that the VM ran from last.
    pub(crate) fn newest_blocks(&self) -> Blocks {
        self.hosts[self.runner].true_blocks()
    }

    /// A human looks at a witness that has no record while one host runs the VM, and has it say so again.
    pub(crate) fn create_record(&mut self) {
        if self.witness.record.is_some() || self.healed_at.is_none() || self.policy().is_some() {
            return;
        }
        let runs = |host: &crate::process::Host| {
            let process = host.process.as_ref().filter(|process| process.runs() && !process.is_broken())?;
            (process.state() != State::Protected || process.executor.node().pending_claim().is_some())
                .then(|| (process.id(), process.term()))
        };
        // Of two that believe to run it the later one does, and disks that were run from later still are
        // newer.
        let drives = self.hosts.iter().flat_map(|host| &host.drives);
        let newest = drives.map(|drive| drive.image.record.term).max();
        let runner = self.hosts.iter().filter_map(runs).max_by_key(|(_, term)| *term);
        if let Some((owner, term)) = runner.filter(|(_, term)| Some(*term) >= newest) {
            self.trace.line(self.now, || format!("operator creates the record of {owner} in term {term}"));
            self.witness.write(Record::Solo { owner, term, since: term });
        }
    }

    /// Whether some host's disks are those from which the VM was shut down.
    pub(crate) fn starts_again(&self) -> bool {
        self.hosts.iter().enumerate().any(|(at, host)| {
            [host.disk_state(None), host.true_disk_state()].into_iter().any(|disks| {
                let asks = Claim::Start { node: NodeId::numbered(at as u64, 0), disks, waited: false };
                matches!(judge(self.witness.record, asks), Verdict::Granted(_))
            })
        })
    }

    /// Whether the VM comes back by itself: the disks of that node's host prove that they are the newest.
    pub(crate) fn comes_back(&self, node: NodeId) -> bool {
        let Some(record) = self.witness.record else { return false };
        self.hosts.iter().enumerate().any(|(at, host)| {
            let again = NodeId::numbered(at as u64, 0);
            let asks = Claim::Start { node: again, disks: host.disk_state(None), waited: false };
            node.host == again.host && matches!(judge(Some(record), asks), Verdict::Granted(_))
        })
    }
}
