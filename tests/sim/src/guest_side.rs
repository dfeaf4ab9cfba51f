//! When guests execute, what their devices do for them, and what reaches them from outside.

use std::time::Duration;

use crate::guest::{Frame, Request, Saying, disk_of};
use crate::ids::NIC;
use crate::mutation::Mutation;
use crate::network::Payload;
use crate::process::Address;
use crate::world::{Event, World};

impl World {
    /// The guest of a process does something.
    pub(crate) fn guest_step(&mut self, address: Address) {
        let now = self.now;
        let (pause, chance) = (self.rng.micros(200, 1500), self.rng.word());
        let talks = self.rng.chance(300_000);
        let Some(process) = self.process(address) else { return };
        if !process.body().guest.running {
            return;
        }
        if Self::guest_can(process, now) {
            if talks {
                let frame = process.body().guest.chatter(chance);
                if frame.saying == Saying::Printed {
                    self.print(address, frame);
                } else {
                    self.nic_send(address, frame);
                }
            } else {
                let write = process.body().guest.work(chance);
                if let Some(write) = write {
                    self.submit(address, write.block);
                }
            }
        }
        self.after(pause, Event::GuestStep(address));
    }

    fn print(&mut self, address: Address, frame: Frame) {
        let Some(process) = self.process(address) else { return };
        let out = process.body().console.print(frame);
        self.leave_host(address, out.into_iter().collect());
        self.work(address);
    }

    fn nic_send(&mut self, address: Address, frame: Frame) {
        let Some(process) = self.process(address) else { return };
        let (out, report) = process.body().nic.send(frame);
        if let Some(report) = report {
            self.report_later(address, NIC, report);
        }
        self.leave_host(address, out.into_iter().collect());
    }

    /// The disk of a block has one more request of its guest.
    pub(crate) fn submit(&mut self, address: Address, block: usize) {
        let disk = disk_of(block, self.plan.disks);
        let (now, latency) = (self.now, self.disk_latency(address.0, disk));
        let Some(process) = self.process(address) else { return };
        let due = process.body().disks[disk].due(now, latency);
        self.at(due, Event::DiskDone(address, disk));
    }

    /// The oldest request to a disk is done.
    pub(crate) fn disk_done(&mut self, address: Address, disk: usize) {
        let now = self.now;
        let forgets = self.mutation == Some(Mutation::ForgetMarks);
        let host = &mut self.hosts[address.0];
        let Some(process) = host.process.as_ref().filter(|process| process.incarnation == address.1) else { return };
        if !process.body().guest.running || process.is_broken() {
            return;
        }
        if !process.guest_runs(now) || process.body().disks[disk].sealed {
            // Sealed or stopped: guest memory is not touched.
            return self.after(Duration::from_micros(100), Event::DiskDone(address, disk));
        }
        let mut body = process.body();
        let Some(write) = body.guest.oldest(disk) else { return };
        let image = &mut host.drives[disk].image;
        body.disks[disk].settle(now, image);
        let epoch = body.disks[disk].epoch;
        let tracked = image.record.base.is_some() || body.disks[disk].mirror.is_some();
        if tracked && !forgets {
            // On stable storage before the write goes anywhere.
            image.record.marks[write.block] = true;
        }
        image.blocks[write.block] = write.value;
        let mirror = body.disks[disk].mirror.as_mut().map(|mirror| {
            mirror.written[write.block] = epoch;
            mirror.touched = true;
            mirror.stream
        });
        let frame = body.guest.completed(disk);
        drop(body);
        if let Some(stream) = mirror {
            self.send(address.0, stream, Payload::Mirrored { epoch, write });
        }
        if let Some(frame) = frame {
            self.nic_send(address, frame);
        }
    }

    /// A request reaches every host that has the VM's address: after a failover there may be two.
    pub(crate) fn request_arrives(&mut self, request: Request) {
        let now = self.now;
        for host in 0..self.hosts.len() {
            let address = self.address(host);
            let Some(process) = self.process(address) else { continue };
            if !process.body().nic.takes_input() || !Self::guest_can(process, now) {
                continue;
            }
            let answer = process.body().guest.serve(request);
            match answer {
                Ok(frame) => self.nic_send(address, frame),
                Err(Some(write)) => self.submit(address, write.block),
                Err(None) => {}
            }
        }
    }
}
