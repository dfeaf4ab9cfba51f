//! A standby that runs the VM from here on: what is looked at, and how its guest begins.

use std::time::Duration;

use ft_proto::Epoch;

use crate::invariants::{Moment, TookOver};
use crate::process::Address;
use crate::world::{Event, World};

impl World {
    /// The VM runs here from now on, from a checkpoint that was loaded.
    pub(crate) fn taken_over(&mut self, address: Address, session: u64, epoch: Epoch) {
        self.note_false_takeover(address);
        let blocks = self.settled_blocks(address);
        let stale = self.hosts[address.0].is_stale();
        let Some(process) = self.process(address) else { return };
        let (node, term) = (process.id(), process.term());
        let took = {
            let body = process.body();
            TookOver {
                node,
                session,
                epoch,
                digest: body.guest.digest(),
                pages: body.guest.memory.pages(),
                done: body.guest.vcpu.done,
                blocks,
                stale,
            }
        };
        let from = process.body().guest.vcpu.at;
        self.takeovers += 1;
        self.note(address.0, || format!("runs the VM from {from:?} in term {term}"));
        self.moment(Moment::TookOver(Box::new(took)));
        let at = self.truth.new_branch(Some(from));
        let Some(process) = self.process(address) else { return };
        let (in_flight, receivers) = {
            let mut body = process.body();
            (body.guest.vcpu.at, body.guest.running, body.guest.stopped) = (at, true, false);
            let receivers: Vec<_> = body.disks.iter_mut().filter_map(|disk| disk.receiver.take()).collect();
            (body.guest.vcpu.in_flight.clone(), receivers)
        };
        for receiver in receivers {
            self.close(address.0, receiver.stream);
        }
        for drive in &mut self.hosts[address.0].drives {
            let noted = drive.image.record.term.next();
            drive.image.record.run_alone(noted);
        }
        self.ran(address.0);
        // Requests in flight are submitted again.
        in_flight.iter().for_each(|write| self.submit(address, write.block));
        self.after(Duration::from_micros(10), Event::GuestStep(address));
    }

    /// Tells whether the primary really was in trouble when its standby claimed the VM.
    fn note_false_takeover(&mut self, address: Address) {
        let Some((claimed, primary, _)) = self.process(address).and_then(|process| process.claimed.take()) else {
            return;
        };
        let Some(limit) = self.plan.settings.silence else { return };
        // Random loss and long delays silence a healthy peer once in a while.
        if self.plan.loss > 10_000 || self.plan.aimed > 0 {
            return;
        }
        let from = claimed - 2 * limit;
        let mut hosts = self.hosts.iter().enumerate();
        let host = hosts.find_map(|(at, host)| {
            let process = host.process.as_ref()?;
            (process.id() == primary && process.executor.node().beat().runs).then_some(at)
        });
        let alive = host.is_some();
        let disturbed = host.and_then(|host| self.truth.disturbed.get(&(host, address.0)).copied()).unwrap_or_default();
        self.moment(Moment::Suspected { wrongly: alive && disturbed < from });
    }
}
