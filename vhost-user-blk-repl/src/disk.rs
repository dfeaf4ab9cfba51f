//! The disk: what the guest's queues, the VMM on the ft-ctl link, and the disk's own threads have it do.
//!
//! All on the vhost worker thread, so that a `Seal` is in force when it is answered.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;

use device_kit::Vring;
use device_kit::control::Control;
use ft_proto::Epoch;
use ft_transport::mirror::MirrorStream;
use ft_transport::tls::schedule::StreamKeys;
use ft_wire::device_ctl as wire;
use ft_wire::device_ctl::{Command, DeviceInfo, InFlight, Report};
use tracing::{info, warn};

use crate::Options;
use crate::geometry::Geometry;
use crate::image::Image;
use crate::mirror::Settings;
use crate::record::Purpose;
use crate::replication::Replication;
use crate::serve::{Memory, Server};

/// One disk, owned by the vhost worker thread.
pub struct Disk {
    server: Server,
    replication: Replication,
    /// Of the stream that the next command brings.
    keys: Option<wire::StreamKeys>,
}

impl Disk {
    /// A disk on `image`.
    ///
    /// # Errors
    /// When the kernel refuses threads or eventfds.
    pub fn new(image: Arc<dyn Image>, mut options: Options) -> io::Result<Self> {
        let record = options.record.take();
        let standby = record.as_ref().is_some_and(|record| record.purpose() == Purpose::StandBy);
        let replication = Replication::new(image, record)?;
        Ok(Self { server: Server::new(replication.image().clone(), options, standby)?, replication, keys: None })
    }

    /// What the guest sees of it.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        self.server.geometry()
    }

    /// Readable when [`Disk::collect`] has something to do.
    #[must_use]
    pub fn disk_event(&self) -> RawFd {
        self.server.event()
    }

    /// Readable when [`Disk::replication_changed`] has something to do.
    #[must_use]
    pub fn wake_event(&self) -> RawFd {
        self.replication.wake_event()
    }

    /// The queues, as soon as the library shows them.
    pub fn set_vrings(&mut self, vrings: &[Vring]) {
        self.server.set_vrings(vrings);
    }

    /// Guest memory has been mapped anew.
    pub fn set_memory(&mut self, memory: Memory) {
        self.server.set_memory(memory);
    }

    /// What the driver has taken of the disk's features: whether it can flush (if not, every write must be
    /// durable before it completes), and whether it keeps to the limits of one request.
    pub fn set_driver(&mut self, flushes: bool, limited: bool) {
        self.server.set_driver(flushes, limited);
    }

    /// Takes all requests from a queue that can be taken now.
    pub fn serve(&mut self, queue: usize) {
        self.server.serve(queue, &self.replication);
    }

    /// Collects operations that the disk has finished, and notifies the guest if that is allowed now.
    pub fn collect(&mut self) {
        self.server.collect(&mut self.replication);
    }

    /// The frontend stops a queue.
    pub fn stop_queue(&mut self, queue: u16) {
        self.server.stop_queue(queue, &mut self.replication);
    }

    /// Whether nothing is being written to the image.
    #[cfg(feature = "fuzzing")]
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.server.is_idle()
    }

    /// The mirror has room again or is lost; or the record is written, or cannot be.
    pub fn replication_changed(&mut self) {
        if self.replication.take_news() {
            self.server.deliver(&self.replication);
        }
        self.replication.report_record();
        self.server.start_recorded(&self.replication);
        self.replication.settle_if_due();
        self.server.serve_stalled(&self.replication);
    }

    /// Takes commands from `control`.
    pub fn connect(&mut self, control: Control) {
        self.replication.vmm().connect(control);
    }

    /// The process ends: nothing is taken from the queues or the streams any more. Blocks until what counts
    /// is in the image, and its record says that nobody writes to it any more.
    pub fn close(&mut self) {
        self.server.detach();
        self.replication.close();
    }

    /// Handles every command that has arrived.
    pub fn handle_commands(&mut self) {
        while let Some((command, fd)) = self.replication.vmm().next_command() {
            self.handle(command, fd);
        }
        if self.replication.vmm().is_gone() {
            // And so is this process in a moment.
            self.replication.disconnect();
        }
    }

    fn handle(&mut self, command: Command, fd: Option<OwnedFd>) {
        match command {
            Command::Hello { version } => self.hello(version),
            Command::Standby(on) => self.set_standby(on),
            Command::Protect { epoch, hold: _ } => {
                self.set_epoch(epoch);
                self.server.serve_all(&self.replication);
            }
            Command::Seal { epoch, cpu } => {
                self.seal(epoch);
                host_kit::sched::pin_to_cpu(cpu);
            }
            Command::Resume => self.resume(),
            Command::Release(release) => self.release(release.epoch()),
            Command::Discard { after } => self.replication.discard(after),
            Command::Start { in_flight, macs: _ } => self.start_running(in_flight),
            Command::StreamKeys(keys) => self.keys = Some(keys),
            Command::Mirror { epoch, max_uncommitted, rate } => match self.stream(fd) {
                Ok(stream) => self.start_mirror(stream, epoch, max_uncommitted, rate),
                Err(why) => self.replication.lost(&why),
            },
            Command::Unmirror => {
                self.replication.run_alone();
                host_kit::sched::set_realtime(false);
                self.server.deliver(&self.replication);
                self.server.serve_all(&self.replication);
            }
            Command::Receive { max_uncommitted } => match self.stream(fd) {
                Ok(stream) => self.start_receiving(stream, max_uncommitted),
                Err(why) => self.replication.lost(&why),
            },
            Command::Own { vm, term } => self.replication.own(vm, term),
            Command::End(term) => self.replication.end_vm(term),
        }
    }

    fn hello(&mut self, version: u16) {
        let Geometry { size, block, read_only, .. } = *self.server.geometry();
        let serial = self.server.serial().to_owned();
        self.replication.vmm().greet(version, DeviceInfo::Disk { size, read_only, serial, block_size: block });
    }

    fn set_standby(&mut self, on: bool) {
        self.server.set_standby(on);
        if on {
            self.replication.drop_mirror();
            self.server.abandon_requests();
        } else {
            self.replication.stop_receiving();
            self.server.serve_all(&self.replication);
        }
    }

    fn set_epoch(&mut self, epoch: Epoch) {
        self.server.set_epoch(epoch);
        self.replication.set_epoch(epoch);
    }

    fn seal(&mut self, epoch: Epoch) {
        let mirrored = self.replication.mirror().is_some();
        host_kit::sched::set_realtime(mirrored);
        if self.server.has_passed(epoch) && mirrored {
            self.replication.fail(&format!("asked to seal epoch {epoch}, which is over"));
        }
        self.server.seal(epoch);
        let idle = self.replication.end_epoch(epoch, epoch.next());
        self.replication.report(&Report::Sealed {
            epoch,
            queues: self.server.positions().collect(),
            in_flight: self.server.in_flight(),
            held_frames: 0,
            held_bytes: self.replication.held(),
            idle,
        });
    }

    fn resume(&mut self) {
        if !self.server.resume() {
            return warn!("asked to resume without a seal");
        }
        self.server.deliver(&self.replication);
        self.server.serve_all(&self.replication);
    }

    fn release(&mut self, epoch: Epoch) {
        self.replication.release(epoch);
        if self.replication.mirror().is_some() {
            self.server.serve_all(&self.replication);
        }
    }

    fn start_running(&mut self, in_flight: Vec<InFlight>) {
        self.replication.stop_receiving();
        if !self.replication.drain() {
            return;
        }
        info!("this host runs the VM now, {} requests in flight", in_flight.len());
        self.server.start(in_flight);
        self.replication.take_over();
        self.server.deliver(&self.replication);
        self.server.serve_all(&self.replication);
    }

    /// The stream that a command brings, with the keys that came before it.
    fn stream(&mut self, fd: Option<OwnedFd>) -> Result<MirrorStream, String> {
        let keys = self.keys.take().map(StreamKeys::try_from).transpose();
        let keys = keys.map_err(|error| format!("the keys of the stream cannot be used: {error}"))?;
        let socket = fd.ok_or("the command came without a stream")?;
        Ok(MirrorStream { socket, keys })
    }

    fn start_mirror(&mut self, stream: MirrorStream, epoch: Epoch, max_uncommitted: u64, rate: u64) {
        self.server.begin_session(epoch);
        let settings = Settings { epoch, max_uncommitted, rate, serial: self.server.serial().to_owned() };
        self.replication.start_mirror(stream, settings, self.server.unfinished_writes().collect());
        self.server.serve_all(&self.replication);
    }

    fn start_receiving(&mut self, stream: MirrorStream, max_uncommitted: u64) {
        self.replication.stop_receiving();
        if !self.server.is_standby() {
            return self.replication.lost("not a standby: the disk of a running VM takes no stream");
        }
        if self.server.geometry().read_only {
            return self.replication.lost("the standby's disk is read-only");
        }
        self.server.finish_writes(&mut self.replication);
        self.replication.start_receiving(stream, max_uncommitted, self.server.serial().to_owned());
    }
}
