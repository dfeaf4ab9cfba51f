//! The card: what ft-ctl commands do to it, and what it does next.
//!
//! Work is cut into chunks of a few frames and the ft-ctl link is read between any two, so that a `Seal`
//! waits for one chunk only.

#[cfg(feature = "fuzzing")]
mod fuzzing;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use device_api::counters::NetCounters;
use device_kit::control::Control;
use device_kit::events::Events;
use device_kit::gate::Gate;
use device_kit::vring::positions;
use device_kit::{Memory, Vmm, Vring};
use ft_proto::Epoch;
use ft_wire::device_ctl::{Command, DeviceInfo, QueueState, Report};
use vm_memory::GuestMemoryAtomic;

use crate::announce::{Announcer, Mac};
use crate::args::Args;
use crate::control_queue;
use crate::driver::Driver;
use crate::epoch_buffer::EpochBuffer;
use crate::input::Input;
use crate::output::{Context, Output};
use crate::ports::Ports;
use crate::tap::Tap;
use crate::work::{Job, Work};

/// Commands per look at the link: a VMM that never stops talking must not stop the card.
const COMMANDS_MAX: usize = 64;
/// Frames (or other units of work) per wake of the worker; then the other event sources have their turn.
const TURN_FRAMES: usize = 128;

/// The network card.
pub struct Card {
    ports: Ports,
    driver: Driver,
    input: Input,
    output: Output,
    gate: Gate,
    announcer: Announcer,
    vmm: Vmm,
    work: Work,
    counters: NetCounters,
    /// Kept from `Seal` to `Seal`, so that nothing is allocated there.
    positions: Vec<QueueState>,
    /// Nothing is served any more.
    ended: bool,
}

impl Card {
    /// A card on `tap` that counts in `counters`.
    ///
    /// # Errors
    /// When there is no timer to be had.
    pub fn new(args: &Args, tap: Tap, counters: NetCounters) -> io::Result<Self> {
        let pairs = usize::from(args.num_queues);
        // Without ft-ctl nothing is ever held.
        let with_control = args.common.ft_ctl.is_some();
        let (bytes, frames) = if with_control { (args.hold_bytes, args.hold_frames as usize) } else { (0, 0) };
        Ok(Self {
            ports: Ports::new(tap),
            driver: Driver::new(pairs),
            input: Input::default(),
            output: Output::new(pairs, EpochBuffer::new(bytes, frames)),
            gate: Gate::default(),
            announcer: Announcer::new(args.guest_mac)?,
            vmm: Vmm::default(),
            work: Work::new(pairs),
            counters,
            positions: Vec::new(),
            ended: false,
        })
    }

    /// Number of queue pairs.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.ports.count()
    }

    /// Polls the taps from now on. Their events are `first` and those that follow.
    pub fn attach(&mut self, events: &Events, first: usize) {
        self.ports.attach(events, first);
    }

    /// Takes commands from `control`.
    pub fn connect(&mut self, control: Control) {
        self.vmm.connect(control);
    }

    /// Readable when [`Card::timer_fired`] is to be called.
    #[must_use]
    pub fn timer(&self) -> BorrowedFd<'_> {
        self.announcer.as_fd()
    }

    /// Guest memory has been mapped anew.
    pub fn set_memory(&mut self, memory: GuestMemoryAtomic<Memory>) {
        self.driver.set_memory(memory);
    }

    /// A driver that has taken `features` starts over.
    pub fn driver_starts_over(&mut self, features: u64) {
        self.driver.start_over(features);
        if let Err(e) = self.ports.tap().set_offloads(features) {
            host_kit::log_limited!(error, "tap {}: offloads cannot be set: {e}", self.ports.tap().name());
        }
    }

    /// The guest has kicked a queue.
    pub fn kicked(&mut self, queue: usize) {
        if queue == self.driver.control_queue() {
            self.work.add(Job::Control);
        } else if queue % 2 == 1 {
            self.work.add(Job::Output(queue / 2));
        } else {
            // Any tap may be waiting for this queue, if it stands in for one that is not used.
            self.work.add_all_input();
        }
    }

    /// The next round of announcements may be due.
    pub fn timer_fired(&mut self) {
        if self.announcer.expired() {
            self.ports.tap().announce(self.announcer.macs());
        }
    }

    /// A tap has a frame.
    pub fn tap_readable(&mut self, port: usize) {
        if self.gate.is_sealed() {
            self.ports.park(port);
        }
        self.work.add(Job::Input(port));
    }

    /// Whether nothing is served any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Drops what is held and serves nothing any more: the process is about to end.
    pub fn end(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let dropped = self.output.discard_held();
        if dropped > 0 {
            tracing::warn!("{dropped} held frames are dropped: their epochs were not committed");
        }
        self.vmm.disconnect();
        let counters: Vec<_> = self.counters.all().iter().map(|(name, value)| format!("{name} {value}")).collect();
        tracing::info!("counted: {}", counters.join(", "));
    }

    /// Does the work that is there, a chunk at a time, commands first. True: there is more.
    #[must_use]
    pub fn turn(&mut self, vrings: &[Vring]) -> bool {
        let mut left = TURN_FRAMES;
        loop {
            self.take_commands(vrings);
            if self.ended {
                return false;
            }
            let Some(job) = self.next_job() else { return false };
            if left == 0 {
                return true;
            }
            let (frames, more) = self.work_on(job, vrings);
            if !more {
                self.work.remove(job);
            }
            left = left.saturating_sub(frames.max(1));
        }
    }

    fn next_job(&mut self) -> Option<Job> {
        let (open, standby) = (self.gate.is_open(), self.gate.is_standby());
        let output = open && self.output.may_take();
        self.work.next(|job| match job {
            Job::Drain => true,
            Job::Output(_) => output,
            Job::Input(_) => open || standby,
            Job::Control => open,
        })
    }

    /// Does a chunk of a job. Returns how many frames, and whether there may be more.
    fn work_on(&mut self, job: Job, vrings: &[Vring]) -> (usize, bool) {
        match job {
            Job::Drain => self.drain(),
            Job::Output(pair) => {
                let mut cx = Context {
                    driver: &self.driver,
                    tap: self.ports.tap(),
                    gate: &mut self.gate,
                    vmm: &self.vmm,
                    announcer: &mut self.announcer,
                    counters: &self.counters,
                };
                self.output.serve(vrings, pair, &mut cx)
            }
            Job::Input(port) => {
                let done = if self.gate.is_standby() {
                    self.ports.drain(port)
                } else {
                    self.input.serve(vrings, port, &mut self.ports, &mut self.driver, &self.counters)
                };
                if let Some(reason) = self.ports.take_trouble() {
                    self.vmm.report(&Report::Failed { reason });
                }
                done
            }
            Job::Control => {
                let (answered, more) = control_queue::serve(vrings, &mut self.driver, &self.counters);
                if answered > 0 {
                    // Other queues may take input now.
                    self.work.add_all_input();
                }
                (answered, more)
            }
        }
    }

    fn drain(&mut self) -> (usize, bool) {
        let (frames, more) = self.output.drain(self.ports.tap(), &self.counters);
        if frames > 0 {
            self.unstall();
        }
        (frames, more)
    }

    /// Serves output that waited for room again.
    fn unstall(&mut self) {
        for pair in self.output.take_stalled() {
            self.work.add(Job::Output(pair));
        }
    }

    /// Carries out the commands that are waiting.
    fn take_commands(&mut self, vrings: &[Vring]) {
        for _ in 0..COMMANDS_MAX {
            match self.vmm.next_command() {
                Some((command, _)) => self.obey(command, vrings),
                None => break,
            }
        }
        if self.vmm.is_gone() {
            self.end();
        }
    }

    fn obey(&mut self, command: Command, vrings: &[Vring]) {
        tracing::trace!(?command, "ft-ctl");
        match command {
            Command::Hello { version } => self.hello(version),
            Command::Standby(standby) => self.stand_by(standby),
            Command::Protect { epoch, hold } => self.protect(epoch, hold.is_on()),
            Command::Seal { epoch, cpu } => {
                self.seal(epoch, vrings);
                host_kit::sched::pin_to_cpu(cpu);
            }
            Command::Resume => {
                if self.gate.resume() {
                    self.output.begin_epoch();
                }
                // Kicks and frames that came meanwhile.
                self.work.add_all_queues();
            }
            Command::Release(release) => {
                self.output.release(release.epoch());
                if self.output.has_releasable() {
                    self.work.add(Job::Drain);
                }
            }
            Command::Discard { after } => self.discard(after),
            Command::Start { in_flight, macs } => {
                if !in_flight.is_empty() {
                    tracing::warn!("{} requests in flight ignored: a network card has none", in_flight.len());
                }
                self.start(macs);
            }
            Command::StreamKeys(_)
            | Command::Mirror { .. }
            | Command::Unmirror
            | Command::Receive { .. }
            | Command::Own { .. }
            | Command::End(_) => {
                tracing::warn!("a command for a disk is ignored");
            }
        }
    }

    fn hello(&self, version: u16) {
        let tap = self.ports.tap();
        self.vmm.greet(version, DeviceInfo::Net { tap: tap.name().into(), mtu: tap.mtu() });
    }

    fn stand_by(&mut self, standby: bool) {
        self.gate.set_standby(standby);
        if standby {
            self.announcer.stop();
            let dropped = self.output.discard_held();
            self.dropped(dropped, "this host does not run the VM");
            self.ports.drop_frames();
        }
        self.work.add_all_queues();
    }

    fn protect(&mut self, epoch: Epoch, hold: bool) {
        let dropped = self.output.set_hold(epoch, hold);
        self.dropped(dropped, "their protection has ended without a word about them");
        if !hold {
            self.work.add(Job::Drain);
        }
        host_kit::sched::set_realtime(hold);
        self.gate.begin(epoch);
        self.unstall();
    }

    /// Nothing of this process touches guest memory from here on: this is the only thread that does.
    fn seal(&mut self, epoch: Epoch, vrings: &[Vring]) {
        self.gate.seal(epoch);
        let mut queues = std::mem::take(&mut self.positions);
        queues.clear();
        queues.extend(positions(vrings));
        let (held_frames, held_bytes) = self.output.waiting();
        let idle = held_frames == 0;
        let report = Report::Sealed { epoch, queues, in_flight: Vec::new(), held_frames, held_bytes, idle };
        self.vmm.report(&report);
        if let Report::Sealed { queues, .. } = report {
            self.positions = queues;
        }
    }

    /// The VM does not run here, or not yet.
    fn discard(&mut self, after: Epoch) {
        self.announcer.stop();
        while self.output.has_releasable() {
            self.drain();
        }
        let dropped = self.output.discard_after(after);
        self.counters.send_dropped(dropped);
        tracing::info!("discarded {dropped} frames of epochs after {after}");
        self.unstall();
        self.vmm.report(&Report::Discarded);
    }

    fn start(&mut self, macs: Vec<Mac>) {
        let dropped = self.output.start();
        self.dropped(dropped, "the VM starts from a checkpoint");
        host_kit::sched::set_realtime(false);
        self.gate.start();
        self.work.add_all_queues();
        self.vmm.report(&Report::Started);
        self.announcer.start(macs);
        self.ports.tap().announce(self.announcer.macs());
    }

    /// Held frames were dropped, which makes room.
    fn dropped(&mut self, frames: usize, why: &str) {
        self.counters.send_dropped(frames);
        if frames > 0 {
            tracing::warn!("{frames} held frames are dropped: {why}");
        }
        self.unstall();
    }
}
