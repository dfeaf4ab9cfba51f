//! What each ft-ctl command does to the card.

use device_kit::Vring;
use device_kit::control::Control;
use device_kit::vring::positions;
use ft_proto::Epoch;
use ft_wire::device_ctl::{Command, DeviceInfo, Report};

use crate::announce::{Mac, RARP_LEN, rarp};
use crate::backend::Net;
use crate::ring::HEADER_LEN;
use crate::work::Job;

/// Commands per look at the link: a VMM that never stops talking must not stop the card.
const COMMANDS_MAX: usize = 64;

impl Net {
    /// Carries out the commands that are waiting.
    pub(crate) fn take_commands(&mut self, vrings: &[Vring]) {
        for _ in 0..COMMANDS_MAX {
            match self.control.as_mut().and_then(Control::next_command) {
                Some((command, _)) => self.obey(command, vrings),
                None => break,
            }
        }
        if self.control.as_ref().is_some_and(Control::is_closed) {
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
                self.gate.resume();
                // Kicks and frames that came meanwhile.
                self.work.add_all_queues();
            }
            Command::Release(release) => {
                self.buffer.release(release.epoch());
                if self.buffer.has_releasable() {
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
            Command::Mirror { .. }
            | Command::Unmirror
            | Command::Receive { .. }
            | Command::Own { .. }
            | Command::End(_) => {
                tracing::warn!("a command for a disk is ignored");
            }
        }
    }

    fn hello(&self, version: u16) {
        let info = DeviceInfo::Net { tap: self.tap.name().into(), mtu: self.tap.mtu() };
        if let Some(control) = &self.control {
            control.greet(version, info);
        }
    }

    fn stand_by(&mut self, standby: bool) {
        self.gate.set_standby(standby);
        if standby {
            self.drop_held("this host does not run the VM");
            self.ports.iter_mut().for_each(|port| port.frame_len = 0);
        }
        self.work.add_all_queues();
    }

    fn protect(&mut self, epoch: Epoch, hold: bool) {
        if !hold {
            self.buffer.release_all();
            self.work.add(Job::Drain);
        } else if self.buffer.newest_held().is_some_and(|newest| newest > epoch) {
            // A new session counts from 1. What the old one left behind was never committed.
            self.drop_held("their protection has ended without a word about them");
        }
        host_kit::sched::set_realtime(hold);
        self.gate.protect(epoch, hold);
        self.unstall();
    }

    /// Nothing of this process touches guest memory from here on: this is the only thread that does.
    fn seal(&mut self, epoch: Epoch, vrings: &[Vring]) {
        self.gate.seal(epoch);
        let mut queues = std::mem::take(&mut self.scratch.queues);
        queues.clear();
        queues.extend(positions(vrings));
        let (held_frames, held_bytes) = (self.buffer.frames() as u64, self.buffer.bytes() as u64);
        let idle = held_frames == 0;
        let report = Report::Sealed { epoch, queues, in_flight: Vec::new(), held_frames, held_bytes, idle };
        self.report(&report);
        // The list is kept for the next time, so that nothing is allocated here.
        if let Report::Sealed { queues, .. } = report {
            self.scratch.queues = queues;
        }
    }

    fn discard(&mut self, after: Epoch) {
        while self.buffer.has_releasable() {
            self.drain();
        }
        let dropped = self.buffer.discard_after(after);
        self.counters.send_dropped(dropped);
        tracing::info!("discarded {dropped} frames of epochs after {after}");
        self.unstall();
        self.report(&Report::Discarded);
    }

    fn start(&mut self, macs: Vec<Mac>) {
        self.drop_held("the VM starts from a checkpoint");
        host_kit::sched::set_realtime(false);
        self.gate.start();
        self.work.add_all_queues();
        self.report(&Report::Started);
        let macs = if macs.is_empty() { self.guest_mac.into_iter().collect() } else { macs };
        self.announcer.start(macs);
        self.announce();
    }

    fn drop_held(&mut self, why: &str) {
        let dropped = self.buffer.discard_held();
        self.counters.send_dropped(dropped);
        if dropped > 0 {
            tracing::warn!("{dropped} held frames are dropped: {why}");
        }
        self.unstall();
    }

    /// Serves output that waited for room again.
    pub(crate) fn unstall(&mut self) {
        for (pair, port) in self.ports.iter_mut().enumerate() {
            if std::mem::take(&mut port.stalled) {
                self.work.add(Job::Output(pair));
            }
        }
    }

    /// Sends one round of announcements. They reveal nothing of the guest's state, so no epoch holds them.
    pub(crate) fn announce(&mut self) {
        for mac in self.announcer.macs() {
            let mut frame = [0; HEADER_LEN + RARP_LEN];
            frame[HEADER_LEN..].copy_from_slice(&rarp(*mac));
            if let Err(e) = self.tap.queues()[0].write(&frame) {
                tracing::warn!("tap {}: announcement not sent: {e}", self.tap.name());
            }
        }
    }
}
