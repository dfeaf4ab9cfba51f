//! What the VMM asks for on the ft-ctl link, done to the worker. Runs on the vhost worker thread, so that a
//! `Seal` is in force when it is answered.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use device_kit::control::{Control, Reporter};
use device_kit::vring::positions;
use ft_proto::Epoch;
use ft_wire::device_ctl::{Command, DeviceInfo, InFlight, Report};
use tracing::{info, warn};

use crate::image::OpError;
use crate::mirror::{Mirror, Settings};
use crate::receive::{Applier, Disk, Receiver};
use crate::serve::Worker;
use crate::session::Session;

impl Worker {
    /// Handles every command that has arrived.
    pub fn handle_commands(&mut self) {
        while let Some((command, fd)) = self.control.as_mut().and_then(Control::next_command) {
            self.handle(command, fd);
        }
        if self.control.as_ref().is_some_and(Control::is_closed) {
            // The VMM is gone, and so is this process in a moment.
            (self.mirror, self.receiver, self.control) = (None, None, None);
        }
    }

    fn reporter(&self) -> Option<Reporter> {
        self.control.as_ref().and_then(Control::reporter)
    }

    fn handle(&mut self, command: Command, fd: Option<OwnedFd>) {
        match command {
            Command::Hello { version } => self.hello(version),
            Command::Standby(on) => self.set_standby(on),
            Command::Protect { epoch, hold: _ } => {
                self.set_epoch(epoch);
                self.serve_all();
            }
            Command::Seal { epoch, cpu } => {
                self.seal(epoch);
                host_kit::sched::pin_to_cpu(cpu);
            }
            Command::Resume => self.resume(),
            Command::Release(release) => self.release(release.epoch()),
            Command::Discard { after } => self.discard(after),
            Command::Start { in_flight, macs: _ } => self.start_running(in_flight),
            Command::Mirror { epoch, max_uncommitted, rate } => match fd {
                Some(fd) => self.start_mirror(fd, epoch, max_uncommitted, rate),
                None => self.lost("the Mirror command came without a stream"),
            },
            Command::Unmirror => {
                self.mirror = None;
                self.tracker.alone();
                host_kit::sched::set_realtime(false);
                self.deliver();
                self.serve_all();
            }
            Command::Receive { max_uncommitted } => match fd {
                Some(fd) => self.start_receiving(fd, max_uncommitted),
                None => self.lost("the Receive command came without a stream"),
            },
            Command::Own { vm, term } => match self.tracker.own(vm, term) {
                Ok(ticket) => {
                    self.owning = Some(ticket);
                    self.report_owned();
                }
                Err(e) => self.fail(&e.to_string()),
            },
            Command::End(term) => match self.tracker.end(term) {
                Ok(()) => self.report(&Report::Ended),
                Err(e) => warn!("{e}"),
            },
        }
    }

    /// Reports that this host owns the image, once that is on stable storage. The guest's reads do not wait
    /// for it.
    pub(crate) fn report_owned(&mut self) {
        let Some(outcome) = self.owning.and_then(|ticket| self.tracker.outcome(ticket)) else { return };
        self.owning = None;
        match outcome {
            Ok(()) => self.report(&Report::Owned),
            Err(e) => self.fail(&e.to_string()),
        }
    }

    fn hello(&self, version: u16) {
        let info = DeviceInfo::Disk {
            size: self.geometry.size,
            read_only: self.geometry.read_only,
            serial: self.serial.clone(),
            block_size: self.geometry.block,
        };
        if let Some(control) = &self.control {
            control.greet(version, info);
        }
    }

    fn set_standby(&mut self, on: bool) {
        self.standby = on;
        if on {
            self.mirror = None;
            self.abandon_requests();
        } else {
            self.receiver = None;
            self.serve_all();
        }
    }

    fn set_epoch(&mut self, epoch: Epoch) {
        self.next_epoch = epoch;
        if !self.sealed {
            self.epoch = epoch;
        }
        if let Some(mirror) = &self.mirror {
            mirror.set_epoch(epoch);
        }
    }

    fn seal(&mut self, epoch: Epoch) {
        host_kit::sched::set_realtime(self.mirror.is_some());
        self.sealed = true;
        if epoch < self.epoch && self.mirror.is_some() {
            self.fail(&format!("asked to seal epoch {epoch} in epoch {}", self.epoch));
        }
        self.epoch = epoch;
        self.next_epoch = epoch.next();
        let idle = self.mirror.as_ref().is_some_and(|mirror| mirror.end(epoch, self.next_epoch));
        self.report(&Report::Sealed {
            epoch,
            queues: positions(&self.vrings).collect(),
            in_flight: self.in_flight(),
            held_frames: 0,
            held_bytes: self.mirror.as_ref().map_or(0, Mirror::uncommitted)
                + self.receiver.as_ref().map_or(0, Receiver::held),
            idle,
        });
    }

    fn resume(&mut self) {
        if !self.sealed {
            return warn!("asked to resume without a seal");
        }
        self.sealed = false;
        self.epoch = self.next_epoch;
        self.deliver();
        self.serve_all();
    }

    fn release(&mut self, epoch: Epoch) {
        if let Some(mirror) = &self.mirror {
            mirror.release(epoch);
            self.serve_all();
        }
        if let Some(Err(e)) = self.receiver.as_ref().map(|receiver| receiver.release(epoch)) {
            self.fail(&e.to_string());
        }
    }

    fn discard(&mut self, after: Epoch) {
        if after == Epoch(0) {
            // The session is over: nobody asks what the image is.
            self.receiver = None;
        }
        if let Some(Err(e)) = self.receiver.as_ref().map(|receiver| receiver.discard_after(after)) {
            return self.fail(&e.to_string());
        }
        let Some(reporter) = self.reporter() else { return };
        match &self.applier {
            // When the image failed, that has been reported, and the VMM must not start on it.
            Some(applier) => applier.then(
                0,
                Box::new(move |ok| {
                    if ok {
                        reporter.report(&Report::Discarded);
                    }
                }),
            ),
            None => reporter.report(&Report::Discarded),
        }
    }

    fn start_running(&mut self, in_flight: Vec<InFlight>) {
        self.receiver = None;
        if self.applier.as_ref().is_some_and(|applier| !applier.drain()) {
            return;
        }
        info!("this host runs the VM now, {} requests in flight", in_flight.len());
        self.resubmit = in_flight.into();
        (self.standby, self.sealed) = (false, false);
        self.tracker.take_over();
        self.report(&Report::Started);
        self.deliver();
        self.serve_all();
    }

    fn start_mirror(&mut self, fd: OwnedFd, epoch: Epoch, max_uncommitted: u64, rate: u64) {
        let Some(reporter) = self.reporter() else { return };
        (self.mirror, self.failed) = (None, false);
        self.set_epoch(epoch);
        let settings = Settings { epoch, max_uncommitted, rate, serial: self.serial.clone() };
        let before = self.unfinished_writes().collect();
        let image = self.disk.image().clone();
        match Mirror::new(
            fd,
            settings,
            image,
            before,
            Session::new(reporter),
            (self.tracker.clone(), self.wake.clone()),
        ) {
            Ok(mirror) => self.mirror = Some(mirror),
            Err(e) => self.lost(&format!("cannot use the stream: {e}")),
        }
        self.serve_all();
    }

    fn start_receiving(&mut self, fd: OwnedFd, max_uncommitted: u64) {
        let Some(reporter) = self.reporter() else { return };
        self.receiver = None;
        if !self.standby {
            return self.lost("not a standby: the disk of a running VM takes no stream");
        }
        if self.geometry.read_only {
            return self.lost("the standby's disk is read-only");
        }
        // The image belongs to the stream from here on.
        while !self.is_idle() {
            self.disk.wait();
            self.collect();
        }
        let Some(applier) = self.applier() else { return };
        let (image, tracker, serial) = (self.disk.image().clone(), self.tracker.clone(), self.serial.clone());
        let disk = Disk { image, tracker, serial, applier };
        match Receiver::new(fd, disk, max_uncommitted, Session::new(reporter)) {
            Ok(receiver) => self.receiver = Some(receiver),
            Err(e) => self.lost(&format!("cannot use the stream: {e}")),
        }
    }

    fn applier(&mut self) -> Option<Arc<Applier>> {
        if self.applier.is_none() {
            let reporter = self.reporter()?;
            let on_error = move |e: OpError| reporter.report(&Report::Failed { reason: e.to_string() });
            match Applier::new(self.tracker.clone(), Box::new(on_error)) {
                Ok(applier) => self.applier = Some(Arc::new(applier)),
                Err(e) => self.lost(&format!("cannot start a thread: {e}")),
            }
        }
        self.applier.clone()
    }

    fn lost(&self, reason: &str) {
        warn!("mirror stream: {reason}");
        self.report(&Report::MirrorLost { reason: reason.to_owned() });
    }
}
