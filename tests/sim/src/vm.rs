//! The guest as the engine sees it: what it is asked to do, done to the model guest.

use std::sync::Arc;
use std::time::Duration;

use ft::guest::{DiskShape, Guest as Vm, GuestError, HeldOutput, LinkEnd, Memory, NetShape, Shape};
use ft::{EventRecord, Staging};
use ft_proto::{Alone, Committed, CutKind};

use crate::body::{Effect, Shared};
use crate::guest::{PAGES, SimMemory, decode, encode};
use crate::ids::{IDS, NIC, device_of};
use crate::mutation::Mutation;
use crate::truth::Cut;

/// The VM of a process.
pub(crate) struct SimGuest {
    shared: Shared,
    memory: Arc<SimMemory>,
}

impl SimGuest {
    pub(crate) fn new(shared: Shared) -> Self {
        let memory = shared.lock().guest.memory.clone();
        Self { shared, memory }
    }
}

impl Vm for SimGuest {
    fn shape(&self) -> Shape {
        let disks = 0..self.shared.lock().disks.len();
        let disks = disks.map(|disk| DiskShape { id: IDS[device_of(disk)].to_owned(), ..DiskShape::default() });
        let net = NetShape { id: IDS[NIC].to_owned(), ..NetShape::default() };
        Shape { memory: (PAGES as u64) << 12, vcpus: 1, disks: disks.collect(), nets: vec![net], ..Shape::default() }
    }

    fn blockers(&self) -> Vec<ft::Blocker> {
        Vec::new()
    }

    fn check_cpu(&self, _: &Shape) -> Vec<String> {
        Vec::new()
    }

    fn adopt(&mut self, _: &Shape) -> Result<(), GuestError> {
        Ok(())
    }

    fn memory(&self) -> Arc<dyn Memory> {
        self.memory.clone()
    }

    fn links(&mut self) -> Result<Vec<LinkEnd>, GuestError> {
        Ok(Vec::new())
    }

    fn processors(&self, cpus: &mut Vec<usize>) {
        cpus.clear();
    }

    fn stop(&mut self) -> bool {
        let mut body = self.shared.lock();
        let busy = body.knobs.busy;
        !body.rng.chance(busy)
    }

    fn checkpoint(&mut self, kind: CutKind, staging: &mut Staging) -> Result<(), GuestError> {
        let mut body = self.shared.lock();
        let ((low, high), fails) = (body.knobs.pause_us, body.knobs.cut_fails);
        let pause = body.micros(low, high);
        let failed = body.rng.chance(fails);
        let early = body.rng.chance(500_000);
        body.guest.stopped = true;
        body.last_pause = Some(pause);
        let (session, epoch) = (body.session, staging.epoch);
        let cut = Cut { at: body.guest.vcpu.at, digest: body.guest.digest() };
        body.effect(Effect::Cut(session, epoch, cut, kind == CutKind::Last));
        body.spend(pause);
        if !failed || !early {
            staging.pages.extend(std::mem::take(&mut body.guest.dirty).into_iter().map(|page| page as u64));
        }
        if failed {
            body.effect(Effect::GoesOn);
            return Err(GuestError::plain("no memory for the capture"));
        }
        staging.copy_pages(&*self.memory)?;
        body.captured = (epoch, body.guest.vcpu.clone());
        if kind != CutKind::Last {
            body.console.cut(epoch.next(), kind == CutKind::Base);
            body.effect(Effect::GoesOn);
        }
        Ok(())
    }

    fn resume(&mut self) {
        let mut body = self.shared.lock();
        if !body.has(Mutation::StayStopped) {
            body.effect(Effect::GoesOn);
        }
    }

    fn start_tracking(&mut self) -> Result<(), GuestError> {
        let mut body = self.shared.lock();
        if std::mem::replace(&mut body.guest.tracked, true) {
            body.effect(Effect::Forbidden("writes are tracked already".to_owned()));
        }
        body.guest.dirty.clear();
        Ok(())
    }

    fn stop_tracking(&mut self) {
        let mut body = self.shared.lock();
        body.guest.tracked &= body.has(Mutation::TrackForEver);
    }

    fn harvest(&mut self, pages: &mut Vec<u64>) -> Result<(), GuestError> {
        pages.extend(std::mem::take(&mut self.shared.lock().guest.dirty).into_iter().map(|page| page as u64));
        Ok(())
    }

    fn put_back(&mut self, pages: &[u64]) {
        let mut body = self.shared.lock();
        if !body.has(Mutation::ForgetHarvest) {
            body.guest.dirty.extend(pages.iter().map(|page| *page as usize));
        }
    }

    fn save_vcpus(&mut self, out: &mut Vec<u8>) -> Result<(), GuestError> {
        let mut body = self.shared.lock();
        let fails = body.knobs.cut_fails;
        if body.rng.chance(fails) {
            return Err(GuestError::plain("a vCPU cannot be read"));
        }
        let (epoch, vcpu) = &body.captured;
        out.extend(encode(body.session, *epoch, vcpu));
        Ok(())
    }

    fn last_pause(&self) -> Option<Duration> {
        self.shared.lock().last_pause
    }

    fn load(&mut self, state: &[u8]) -> Result<(), GuestError> {
        let (session, epoch, vcpu) = decode(state);
        let mut body = self.shared.lock();
        (body.loaded, body.guest.vcpu) = ((session, epoch), vcpu);
        Ok(())
    }

    fn activate(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    fn start(&mut self) -> Result<(), GuestError> {
        let mut body = self.shared.lock();
        let (session, epoch) = body.loaded;
        body.effect(Effect::Starts { session, epoch });
        Ok(())
    }

    fn fence(&mut self, reason: &str) {
        let mut body = self.shared.lock();
        body.console.discard();
        body.effect(Effect::Fenced(reason.to_owned()));
    }

    fn unusable(&mut self, _: &str) {
        self.shared.effect(Effect::Unusable);
    }

    fn told(&mut self, event: &EventRecord) {
        let what = format!("{} {}", event.event, event.detail);
        if what.contains("misbehaves") {
            // Nobody does here.
            self.shared.effect(Effect::Forbidden(format!("a peer is accused: {what}")));
        }
        self.shared.effect(Effect::Told(what));
    }

    fn watch_console(&mut self, held: HeldOutput) {
        self.shared.lock().console.watch(held);
    }

    fn release_console(&mut self, committed: &Committed) {
        let mut body = self.shared.lock();
        let frames = body.console.release(committed.epoch());
        body.print(frames);
    }

    fn free_console(&mut self, _: &Alone) {
        let mut body = self.shared.lock();
        let frames = body.console.free();
        body.print(frames);
    }
}
