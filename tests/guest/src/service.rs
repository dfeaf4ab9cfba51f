//! The UDP service: does what requests ask for, and reports all counters in each reply.

use pollux_guest::pattern::{chain_next, mix};
use pollux_guest::wire::{REPLY_MAGIC, REQUEST_MAGIC, Reply, Request, flag, op};

use crate::disk::Disk;
use crate::machine::{CLOCK, Reset};
use crate::pages::WorkingSet;
use crate::println;
use crate::vcpus::Background;

/// The most clients that can have work done.
const CLIENTS: usize = 16;

#[derive(Clone, Copy, Default)]
struct Client {
    last: Reply,
}

/// What to do once the reply is out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Afterwards {
    /// Go on.
    GoOn,
    /// Power off.
    PowerOff,
    /// Reset.
    Reset(Reset),
}

/// The service and all that it reports on.
pub struct Service {
    /// Pages that requests rewrite.
    pub set: WorkingSet,
    /// The disk, if there is one.
    pub disk: Option<Disk>,
    /// Background writers.
    pub background: Background,
    /// Turns of the main loop.
    pub ticks: u64,
    /// Pieces of TCP streams that were wrong.
    pub stream_violations: u64,
    /// What to do once the reply is out.
    pub afterwards: Afterwards,
    boot: u64,
    tsc_khz: u64,
    handled: u64,
    echoes: u64,
    clients: [Client; CLIENTS],
}

impl Service {
    /// A service that has done nothing yet.
    pub fn new(set: WorkingSet, disk: Option<Disk>, background: Background, tsc_khz: u64, boot: u64) -> Self {
        Self {
            set,
            disk,
            background,
            ticks: 0,
            stream_violations: 0,
            afterwards: Afterwards::GoOn,
            boot,
            tsc_khz,
            handled: 0,
            echoes: 0,
            clients: [Client::default(); CLIENTS],
        }
    }

    /// Answer one datagram; returns the length of the answer.
    pub fn handle(&mut self, datagram: &[u8], out: &mut [u8]) -> Option<usize> {
        let request = Request::decode(datagram).filter(|request| request.magic == REQUEST_MAGIC)?;
        let reply = if request.op == op::WORK { self.work(&request) } else { self.other(&request) };
        let len = (request.reply_len as usize).clamp(Reply::LEN, out.len());
        out[..Reply::LEN].copy_from_slice(&reply.encode());
        let mut value = mix(request.seq);
        for chunk in out[Reply::LEN..len].chunks_mut(8) {
            chunk.copy_from_slice(&value.to_le_bytes()[..chunk.len()]);
            value = mix(value);
        }
        Some(len)
    }

    fn work(&mut self, request: &Request) -> Reply {
        let known = self.clients.iter().position(|client| client.last.client == request.client);
        let slot = known.or_else(|| self.clients.iter().position(|client| client.last.client == 0));
        let Some(slot) = slot.filter(|_| request.client != 0) else { return self.report(request, flag::REFUSED, 0) };
        let last = self.clients[slot].last;
        if request.seq == last.seq && known.is_some() {
            return Reply { flags: last.flags | flag::DUPLICATE, ..last };
        }
        if request.seq != last.seq + 1 {
            let flag = if request.seq > last.seq { flag::GAP } else { flag::STALE };
            return self.report(request, flag, last.chain);
        }
        for _ in 0..request.pages {
            self.set.rewrite_next();
            CLOCK.tick();
        }
        let mut flags = 0;
        if request.blocks > 0 {
            let tick = &mut || {
                CLOCK.tick();
            };
            let written = self.disk.as_mut().is_some_and(|disk| disk.write_durably(request.blocks, tick));
            flags = if written { 0 } else { flag::DISK_FAILED };
        }
        self.handled += 1;
        let reply = self.report(request, flags, chain_next(last.chain, request.seq, request.word));
        self.clients[slot].last = reply;
        reply
    }

    fn other(&mut self, request: &Request) -> Reply {
        self.echoes += 1;
        if let (op::RESET_DISK, Some(disk)) = (request.op, &mut self.disk) {
            disk.reset(&mut || {
                CLOCK.tick();
            });
        }
        let reply = self.report(request, 0, 0);
        match request.op {
            op::CLEAR_STALLS => CLOCK.clear(),
            op::PRINT => println!("print {}", request.word),
            op::POWER_OFF => self.afterwards = Afterwards::PowerOff,
            op::RESET => {
                self.afterwards = Afterwards::Reset(match request.word {
                    0 => Reset::Acpi,
                    1 => Reset::Keyboard,
                    _ => Reset::TripleFault,
                });
            }
            op::PANIC => panic!("on request {}", request.seq),
            op::FAULT => crate::machine::fault(),
            _ => {}
        }
        reply
    }

    fn report(&self, request: &Request, flags: u64, chain: u64) -> Reply {
        let (stall_max, stalls, backwards) = CLOCK.stalls();
        let background = self.background.counters();
        let disk = self.disk.as_ref();
        Reply {
            magic: REPLY_MAGIC,
            op: request.op,
            flags,
            client: request.client,
            seq: request.seq,
            chain,
            handled: self.handled,
            echoes: self.echoes,
            pages: self.set.len() as u64,
            rewrites: self.set.rewrites,
            digest: self.set.digest,
            boot: self.boot,
            tsc: CLOCK.tick(),
            tsc_khz: self.tsc_khz,
            nanoseconds: CLOCK.nanoseconds(),
            ticks: self.ticks,
            stall_max,
            stalls,
            backwards,
            checked: self.set.checked + background.checked,
            violations: self.set.violations + background.violations + self.stream_violations,
            background: background.rewrites,
            disk_issued: disk.map_or(0, |disk| disk.issued),
            disk_done: disk.map_or(0, Disk::done),
            disk_checked: disk.map_or(0, |disk| disk.checked),
            disk_violations: disk.map_or(0, |disk| disk.violations),
            disk_slots: disk.map_or(0, Disk::slots),
            vcpus: background.vcpus,
        }
    }
}
