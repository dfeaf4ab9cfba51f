//! Background page writers: on each vCPU but the first, or in the first one's main loop if it is alone.

use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use crate::boot::MAX_VCPUS;
use crate::config::{Config, Pace};
use crate::machine::{Memory, relax, start_vcpu, tsc};
use crate::pages::WorkingSet;
use crate::println;

/// Page numbers of the writers' sets start here, far from those of requests.
const BASE: u64 = 1 << 40;

/// What a writer does, and has done.
struct Writer {
    set: WorkingSet,
    pace: Pace,
}

/// Counters that the first vCPU reads while the others write.
struct Shared {
    rewrites: AtomicU64,
    checked: AtomicU64,
    violations: AtomicU64,
    ready: AtomicU64,
    writer: AtomicPtr<Writer>,
}

static SHARED: [Shared; MAX_VCPUS] = [const {
    Shared {
        rewrites: AtomicU64::new(0),
        checked: AtomicU64::new(0),
        violations: AtomicU64::new(0),
        ready: AtomicU64::new(0),
        writer: AtomicPtr::new(core::ptr::null_mut()),
    }
}; MAX_VCPUS];

/// Sums over all writers.
pub struct Counters {
    /// Pages rewritten.
    pub rewrites: u64,
    /// Pages checked.
    pub checked: u64,
    /// Pages found wrong.
    pub violations: u64,
    /// vCPUs that run.
    pub vcpus: u64,
}

/// All writers.
pub struct Background {
    local: Option<Writer>,
    vcpus: u64,
}

impl Background {
    /// Start the other vCPUs, one writer on each, or make a writer for this one.
    pub fn start(memory: &mut Memory, config: &Config, tsc_khz: u64) -> Self {
        let writer = |memory: &mut Memory, vcpu: usize| {
            (config.background_pages > 0).then(|| Writer {
                set: WorkingSet::new(memory, config.background_pages, config.fill, BASE * (1 + vcpu as u64)),
                pace: Pace::new(config.rate, tsc_khz, tsc()),
            })
        };
        let mut vcpus = 1;
        for (vcpu, shared) in SHARED.iter().enumerate().take(config.vcpus).skip(1) {
            if let Some(writer) = writer(memory, vcpu) {
                shared.writer.store(memory.place(writer), Ordering::Release);
            }
            start_vcpu(vcpu as u32);
            let deadline = tsc() + tsc_khz * 2000;
            while shared.ready.load(Ordering::Acquire) == 0 && tsc() < deadline {
                relax();
            }
            assert!(shared.ready.load(Ordering::Acquire) == 1, "vCPU {vcpu} does not start");
            vcpus += 1;
            println!("vcpu {vcpu} runs");
        }
        let local = if vcpus == 1 { writer(memory, 0) } else { None };
        Self { local, vcpus }
    }

    /// A turn of this vCPU's own writer, if it has one.
    pub fn turn(&mut self, now: u64) {
        if let Some(writer) = &mut self.local {
            writer.turn(now, &SHARED[0]);
        }
    }

    /// Sums over all writers.
    pub fn counters(&self) -> Counters {
        let total =
            |counter: fn(&Shared) -> &AtomicU64| SHARED.iter().map(|s| counter(s).load(Ordering::Relaxed)).sum();
        Counters {
            rewrites: total(|shared| &shared.rewrites),
            checked: total(|shared| &shared.checked),
            violations: total(|shared| &shared.violations),
            vcpus: self.vcpus,
        }
    }
}

impl Writer {
    fn turn(&mut self, now: u64, shared: &Shared) {
        if self.pace.due(now) {
            self.set.rewrite_next();
        } else {
            self.set.check_next();
        }
        shared.rewrites.store(self.set.rewrites, Ordering::Relaxed);
        shared.checked.store(self.set.checked, Ordering::Relaxed);
        shared.violations.store(self.set.violations, Ordering::Relaxed);
    }
}

/// Life of a vCPU other than the first.
pub fn run(vcpu: usize) -> ! {
    let shared = &SHARED[vcpu];
    // SAFETY: `start` placed the writer in memory of its own and gave it to this vCPU alone.
    let mut writer = unsafe { shared.writer.load(Ordering::Acquire).as_mut() };
    shared.ready.store(1, Ordering::Release);
    loop {
        match &mut writer {
            Some(writer) => writer.turn(tsc(), shared),
            None => relax(),
        }
    }
}
