//! After a run: the VM is shut down and started again, more than once, on hosts that come back in any order
//! and are told nothing but `role=auto`. The witness judges who may boot it; images and their records are
//! those that the run has left behind.
//!
//! Nothing happens at the same time here: what is looked at is which disks a VM starts from.

use ft_proto::witness::{Claim, DiskState, Record as Entry, Replicas, Verdict, judge};
use ft_proto::{NodeId, Term};

use crate::guest::{BLOCKS, disk_of};
use crate::invariants::Moment;
use crate::mutation::Mutation;
use crate::record::Role;
use crate::world::World;

/// Ends of the VM.
const ROUNDS: u32 = 4;

impl World {
    /// Shuts the protected VM down and starts it again.
    pub(crate) fn come_back(&mut self) {
        let Some((runner, standby)) = self.protected_pair() else { return };
        let Some(Entry::Protected { primary, in_sync, term }) = self.witness.record else { return };
        let alone = self.claim(Claim::GoAlone { primary, in_sync, term });
        self.note_role(runner, Role::Alone);
        // What it had not on stable storage it never gets: its session is over.
        self.hosts[standby].process = None;
        let mut owner = alone.then_some((runner, primary));
        for _ in 0..ROUNDS {
            let Some((host, node)) = owner else { return };
            let (host, node) = self.run_for_a_while(host, node);
            if !self.shut_down(host, node) {
                return;
            }
            owner = self.first_to_start();
        }
    }

    fn claim(&mut self, claim: Claim) -> bool {
        let Verdict::Granted(record) = judge(self.witness.record, claim) else { return false };
        self.witness.write(record);
        true
    }

    /// The VM writes, and may move to another host, which gets a copy before: whole, or not quite.
    fn run_for_a_while(&mut self, host: usize, node: NodeId) -> (usize, NodeId) {
        self.write(host);
        if self.rng.chance(500_000) {
            return (host, node);
        }
        let other = (host + 1 + self.rng.index(self.hosts.len() - 1)) % self.hosts.len();
        let peer = NodeId::numbered(other as u64, self.rng.word());
        let term = self.witness.record.map_or(Term(0), |record| record.term());
        for drive in &mut self.hosts[other].drives {
            drive.image.record.receive(term, None, &Default::default());
        }
        if self.rng.chance(300_000) {
            // The copy breaks off.
            return (host, node);
        }
        for disk in 0..self.plan.disks {
            let blocks = self.hosts[host].drives[disk].image.blocks;
            let image = &mut self.hosts[other].drives[disk].image;
            image.blocks = blocks;
            image.record.rename(1, &Default::default());
        }
        let moves = self.claim(Claim::Register { primary: node, standby: peer, term })
            && self.rng.chance(600_000)
            && self.claim(Claim::TakeOver { primary: node, standby: peer, term });
        if moves {
            self.note_role(host, Role::Protected);
            self.run_from(other, term.next());
            self.write(other);
            return (other, peer);
        }
        self.claim(Claim::GoAlone { primary: node, in_sync: Replicas::one(peer), term });
        self.write(host);
        (host, node)
    }

    fn write(&mut self, host: usize) {
        let value = self.rng.word();
        let block = value as usize % BLOCKS;
        self.hosts[host].drives[disk_of(block, self.plan.disks)].image.blocks[block] = value;
        self.newest = self.hosts[host].blocks();
    }

    fn note_role(&mut self, host: usize, role: Role) {
        self.hosts[host].drives.iter_mut().for_each(|drive| drive.image.record.role = role);
    }

    /// The disks note the end before the witness is told of it.
    fn shut_down(&mut self, host: usize, node: NodeId) -> bool {
        let Some(Entry::Solo { term, .. }) = self.witness.record else { return false };
        self.hosts[host].drives.iter_mut().for_each(|drive| drive.image.record.ended = term);
        // Or the host dies between the two, and only an operator can say who goes on.
        !self.rng.chance(100_000) && self.claim(Claim::Stop { node, term, disks: term })
    }

    /// Hosts come up one after the other; the first that the witness lets boots the VM.
    fn first_to_start(&mut self) -> Option<(usize, NodeId)> {
        let first = self.rng.index(self.hosts.len());
        let hosts = (0..self.hosts.len()).map(|at| (first + at) % self.hosts.len());
        for host in hosts.collect::<Vec<_>>() {
            let node = NodeId::numbered(host as u64, self.rng.word());
            let drives = &self.hosts[host].drives;
            let incomplete = drives.iter().any(|drive| drive.image.record.role == Role::Syncing);
            let believes = self.mutation == Some(Mutation::StartFromAnyDisks);
            let oldest = drives.iter().map(|drive| drive.image.record.ended).min().unwrap_or_default();
            let ended = if believes { Term(1 << 40) } else { oldest };
            let disks = if ended > Term(0) { DiskState::Ended(ended) } else { DiskState::Fresh };
            if !self.claim(Claim::Start { node, disks, waited: false }) {
                continue;
            }
            // The disk process refuses what is no whole disk; then the right is given back.
            if incomplete && !believes {
                let term = self.witness.record.map_or(Term(0), |record| record.term());
                self.claim(Claim::Stop { node, term, disks: ended });
                continue;
            }
            let stale = self.hosts[host].blocks() != self.newest;
            self.moment(Moment::Booted { node, stale, blocks: None });
            self.note_role(host, Role::Alone);
            return Some((host, node));
        }
        None
    }
}
