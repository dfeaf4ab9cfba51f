//! What operators, backups and strangers do to a VM: records that are lost, disks that are mislaid or put
//! back, words that are used up, beats and callers that do not belong here.

use std::ops::Range;
use std::time::Duration;

use ft_proto::witness::{Claim, Verdict};
use ft_proto::{LinkId, NodeId, State, Term, Time, VmId};
use ft_wire::beat::{BeatKey, encode};
use ft_wire::nonce::Nonce;
use ft_wire::session::{Hello, Kind, Purpose, encode_body};

use crate::dialler::frame;
use crate::drive::Drive;
use crate::ids::VM;
use crate::invariants::Moment;
use crate::mutation::Mutation;
use crate::network::Payload;
use crate::plan::Fault;
use crate::world::{Event, World};

impl World {
    /// One of these faults.
    pub(crate) fn strike_from_outside(&mut self, fault: Fault, host: usize, until: Time) {
        match fault {
            Fault::Blackout => self.blackout(),
            Fault::LoseRecord => self.lose_record(),
            Fault::RestoreDisk => self.restore_disk(host, until),
            Fault::MislayDisk => self.mislay_disk(host, until),
            Fault::StaleForce => self.stale_force(host),
            Fault::ForgeBeats => self.forge_beats(host),
            Fault::StrangeCaller => self.strange_caller(host),
            Fault::NoDescriptors => {
                self.note(host, || "FAULT no descriptors".to_owned());
                self.hosts[host].full_until = until;
            }
            Fault::DiskFull => {
                let disk = self.rng.index(self.plan.disks);
                self.note(host, || format!("FAULT disk {disk} full"));
                self.hosts[host].drives[disk].full_until = until;
            }
            _ => {}
        }
    }

    pub(crate) fn lose_record(&mut self) {
        self.trace.line(self.now, || "FAULT the witness loses its record".to_owned());
        self.witness.record = None;
    }

    /// All hosts lose their power and come back one by one.
    fn blackout(&mut self) {
        if (self.witness.record.is_none() && self.policy().is_none()) || !self.plan.double_failures {
            return;
        }
        self.trace.line(self.now, || "FAULT blackout".to_owned());
        for host in 0..self.hosts.len() {
            self.kill(host, false);
            let back = self.rng.spread_millis(2, self.plan.fault_max_ms);
            self.after(back, Event::Restart(host));
        }
    }

    /// A host is taken down, and what was saved of its disk is put back: image, record, or both.
    fn restore_disk(&mut self, host: usize, until: Time) {
        let what = self.rng.index(3);
        let disks = self.some_disks();
        // Of the newest copy that would be its owner's own doing.
        if self.runner == host || !self.survivable(host) || self.is_mislaid(host) {
            return;
        }
        if self.hosts[host].drives[disks.clone()].iter().any(|drive| drive.backup.is_none()) {
            return;
        }
        self.note(host, || format!("FAULT backup of disks {disks:?} is put back ({what})"));
        self.kill(host, true);
        self.at(until, Event::Restart(host));
        let forget = self.mutation != Some(Mutation::RestoredImageIncremental);
        for Drive { image, backup, .. } in &mut self.hosts[host].drives[disks] {
            let Some((blocks, record)) = *backup else { continue };
            if what != 1 {
                image.blocks = blocks;
            }
            if what != 0 {
                image.record = record;
            }
            if what != 2 && forget {
                image.record.doubt();
            }
        }
    }

    /// One disk, or all of them.
    fn some_disks(&mut self) -> Range<usize> {
        let (disk, all) = (self.rng.index(self.plan.disks), self.rng.chance(500_000));
        if all { 0..self.plan.disks } else { disk..disk + 1 }
    }

    pub(crate) fn is_mislaid(&self, host: usize) -> bool {
        self.hosts[host].drives.iter().any(|drive| drive.mislaid.is_some())
    }

    /// Somebody saves a host's disks.
    pub(crate) fn back_up(&mut self) {
        let again = self.rng.micros(10_000, 200_000);
        self.after(again, Event::Backup);
        let host = self.rng.index(self.hosts.len());
        self.settled_blocks(self.address(host));
        for Drive { image, backup, .. } in &mut self.hosts[host].drives {
            *backup = Some((image.blocks, image.record));
        }
    }

    /// A host reboots, and the file system with its images, or one of them, is not mounted.
    fn mislay_disk(&mut self, host: usize, until: Time) {
        let disks = self.some_disks();
        if self.is_mislaid(host) || !self.survivable(host) {
            return;
        }
        self.note(host, || format!("FAULT disks {disks:?} are mislaid"));
        self.kill(host, false);
        for Drive { image, mislaid, .. } in &mut self.hosts[host].drives[disks] {
            *mislaid = Some(std::mem::take(image));
        }
        self.after(Duration::from_millis(5), Event::Restart(host));
        self.at(until, Event::Remount(host));
    }

    /// It is found, unless the VM lives on what is in its place by now.
    pub(crate) fn remount(&mut self, host: usize) {
        let runs = self.hosts[host].process.as_ref().is_some_and(|process| process.runs());
        if !self.is_mislaid(host) || runs {
            return;
        }
        let held = self.hosts[host].process.is_some() && !self.survivable(host);
        if held && self.healed_at.is_none() {
            return self.after(Duration::from_millis(50), Event::Remount(host));
        }
        if held && self.runner != host {
            return;
        }
        self.note(host, || "what was mislaid is found".to_owned());
        self.kill(host, true);
        for drive in &mut self.hosts[host].drives {
            if let Some(image) = drive.mislaid.take() {
                drive.image = image;
            }
        }
        self.hosts[host].down = true;
        self.after(Duration::from_millis(2), Event::Restart(host));
    }

    /// A word of force that was good for a term which is over by now.
    fn stale_force(&mut self, host: usize) {
        let Some(record) = self.witness.record.filter(|record| record.term() > Term(1)) else { return };
        let waits = self.hosts[host].process.as_ref().is_some_and(|process| process.state() == State::StandbyEmpty);
        if !waits {
            return;
        }
        let term = Term(self.rng.range(1, record.term().0 - 1));
        let node = NodeId::numbered(host as u64, self.rng.word());
        self.note(host, || format!("FAULT is told to force term {term}"));
        let verdict = self.judged(Claim::Force { node, term });
        if let Verdict::Granted(record) = verdict {
            self.witness.write(record);
            self.moment(Moment::Runs { node, term: record.term() });
            self.moment(Moment::Overridden { by: node, term });
        }
    }

    /// Somebody off the path knows names and addresses, but not what the two ends of the session know.
    fn forge_beats(&mut self, host: usize) {
        let Some(process) = &self.hosts[host].process else { return };
        let from = process.executor.node().peer().unwrap_or_else(|| NodeId::numbered(host as u64 + 1, 1));
        let term = process.term();
        for _ in 0..self.rng.range(1, 20) {
            let ahead = [0, 1, 2, 1000][self.rng.index(4)];
            let (session, nonce) = (self.rng.word(), Nonce::new(self.rng.word().into()));
            let key = BeatKey { vm: VM, session, nonce, me: from, peer: from };
            let (link, number) = (LinkId::ALL[self.rng.index(2)], self.rng.word());
            let bytes = encode(&key, link, number, Term(term.0 + ahead), self.rng.chance(500_000)).to_vec();
            let delay = self.rng.micros(0, 5000);
            self.after(delay, Event::Beat { to: host, link, bytes });
        }
    }

    /// Another VM's primary has this host's address in its configuration.
    fn strange_caller(&mut self, host: usize) {
        let from = (host + 1) % self.hosts.len();
        let (caller, callee) = (self.address(from), self.address(host));
        if self.hosts[from].process.is_none() || self.hosts[host].process.is_none() {
            return;
        }
        let stream = self.network.connect(caller, callee);
        let node = NodeId::numbered(from as u64, self.rng.word());
        let term = Term(self.rng.range(1, 2000));
        self.note(host, || format!("FAULT is called by a stranger in term {term}"));
        let purpose = Purpose::Disk { index: 0, session: self.rng.word(), nonce: Nonce::new(1) };
        let hello = if self.rng.chance(500_000) {
            Hello { vm: Some(VmId(8)), node, purpose: Purpose::Ask }
        } else {
            Hello { vm: Some(VM), node, purpose }
        };
        self.send(from, stream, Payload::Bytes(frame(Kind::Hello, term, &encode_body(&hello))));
    }
}
