//! The guest as the engine sees it: what it is asked to do, done to the model guest.

use std::sync::Arc;
use std::time::Duration;

use ft::guest::{DiskShape, Guest as Vm, GuestError, HeldOutput, LinkEnd, Memory, NetShape, Shape};
use ft::{EventRecord, Staging};
use ft_proto::{Alone, Committed, CutKind};

use crate::body::{Effect, IDS, Shared};
use crate::guest::{PAGES, SimMemory, decode, encode};
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
        let disk = DiskShape { id: IDS[0].to_owned(), ..DiskShape::default() };
        let net = NetShape { id: IDS[1].to_owned(), ..NetShape::default() };
        Shape { memory: (PAGES as u64) << 12, vcpus: 1, disks: vec![disk], nets: vec![net], ..Shape::default() }
    }

    fn blockers(&self) -> Vec<String> {
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
        body.guest.stopped = true;
        body.last_pause = Some(pause);
        let (session, epoch) = (body.session, staging.epoch);
        let cut = Cut { at: body.guest.vcpu.at, digest: body.guest.digest() };
        body.effect(Effect::Cut(session, epoch, cut));
        body.spend(pause);
        if failed {
            body.effect(Effect::GoesOn);
            return Err(GuestError::plain("no memory for the capture"));
        }
        staging.pages.extend(std::mem::take(&mut body.guest.dirty).into_iter().map(|page| page as u64));
        staging.copy_pages(&*self.memory)?;
        body.captured = (epoch, body.guest.vcpu.clone());
        if kind != CutKind::Last {
            body.effect(Effect::GoesOn);
        }
        Ok(())
    }

    fn resume(&mut self) {
        self.shared.effect(Effect::GoesOn);
    }

    fn start_tracking(&mut self) -> Result<(), GuestError> {
        let mut body = self.shared.lock();
        body.guest.dirty.clear();
        body.guest.tracked = true;
        Ok(())
    }

    fn stop_tracking(&mut self) {
        self.shared.lock().guest.tracked = false;
    }

    fn harvest(&mut self, pages: &mut Vec<u64>) -> Result<(), GuestError> {
        pages.extend(std::mem::take(&mut self.shared.lock().guest.dirty).into_iter().map(|page| page as u64));
        Ok(())
    }

    fn put_back(&mut self, pages: &[u64]) {
        self.shared.lock().guest.dirty.extend(pages.iter().map(|page| *page as usize));
    }

    fn save_vcpus(&mut self, out: &mut Vec<u8>) -> Result<(), GuestError> {
        let body = self.shared.lock();
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
        self.shared.effect(Effect::Fenced(reason.to_owned()));
    }

    fn unusable(&mut self, _: &str) {
        self.shared.effect(Effect::Unusable);
    }

    fn told(&mut self, event: &EventRecord) {
        self.shared.effect(Effect::Told(format!("{} {}", event.event, event.detail)));
    }

    fn watch_console(&mut self, _: HeldOutput) {}

    fn release_console(&mut self, _: &Committed) {}

    fn free_console(&mut self, _: &Alone) {}
}
