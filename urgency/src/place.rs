//! Where the threads of an epoch run. They work one after the other, and to wake the next one on another processor costs more than
//! what it does: tens of microseconds if that one sleeps or runs a guest, a few on the same one. So they share a processor, unless
//! there is so much to do that they had better work side by side.

use std::cell::{Cell, OnceCell};
use std::fs;

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

const THIS_THREAD: Pid = Pid::from_raw(0);

thread_local! {
    static ALLOWED: OnceCell<Option<CpuSet>> = const { OnceCell::new() };
    static PLACE: Cell<Option<u16>> = const { Cell::new(None) };
}

/// Where the calling thread may run by the will of whoever started it.
fn allowed() -> Option<CpuSet> {
    ALLOWED.with(|allowed| *allowed.get_or_init(|| sched_getaffinity(THIS_THREAD).ok()))
}

/// Keeps the calling thread on that processor; `None` lets it run wherever it may. Costs nothing when it is so already.
pub fn stay_on(cpu: Option<u16>) {
    if PLACE.get() == cpu {
        return;
    }
    let Some(allowed) = allowed() else { return };
    PLACE.set(cpu);
    let mut one = CpuSet::new();
    let set = match cpu {
        Some(cpu) if allowed.is_set(cpu.into()) == Ok(true) && one.set(cpu.into()).is_ok() => one,
        _ => allowed,
    };
    if let Err(errno) = sched_setaffinity(THIS_THREAD, &set) {
        tracing::info!("a thread on the way of an epoch stays where it is: {errno}");
    }
}

/// How busy the processors have been since a moment.
#[derive(Debug, Default)]
pub struct Busy {
    before: Vec<Ticks>,
}

/// Of one processor, in clock ticks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Ticks {
    cpu: u16,
    busy: u64,
    all: u64,
}

impl Busy {
    /// Since now.
    #[must_use]
    pub fn since_now() -> Self {
        Self { before: ticks(&fs::read_to_string("/proc/stat").unwrap_or_default()) }
    }

    /// The processor that had the least to do of those on which the calling thread may run: of those that are not `taken`, if there
    /// are any. Looks anew from here.
    #[must_use]
    pub fn least(&mut self, taken: &[usize]) -> Option<u16> {
        let loads = self.loads();
        least_of(&without(taken, &loads)).or_else(|| least_of(&loads)).map(|(cpu, _)| cpu)
    }

    /// As [`Busy::least`], if `cpu` had so much to do that it is worth while to leave it.
    #[must_use]
    pub fn better(&mut self, cpu: u16, taken: &[usize]) -> Option<u16> {
        let loads = without(taken, &self.loads());
        let (_, here) = *loads.iter().find(|(other, _)| *other == cpu)?;
        let (least, there) = least_of(&loads)?;
        (here >= 80 && there * 4 <= here * 3).then_some(least)
    }

    /// In percent, of the processors that may be chosen.
    fn loads(&mut self) -> Vec<(u16, u64)> {
        let before = std::mem::replace(self, Self::since_now()).before;
        let Some(allowed) = allowed() else { return Vec::new() };
        let load = |now: &Ticks| {
            let before = before.iter().find(|before| before.cpu == now.cpu).copied().unwrap_or_default();
            let all = now.all.saturating_sub(before.all).max(1);
            (now.cpu, now.busy.saturating_sub(before.busy) * 100 / all)
        };
        self.before.iter().filter(|now| allowed.is_set(now.cpu.into()) == Ok(true)).map(load).collect()
    }
}

fn without(taken: &[usize], loads: &[(u16, u64)]) -> Vec<(u16, u64)> {
    loads.iter().copied().filter(|(cpu, _)| !taken.contains(&usize::from(*cpu))).collect()
}

/// If several have as little to do: where the calling thread is, else the first.
fn least_of(loads: &[(u16, u64)]) -> Option<(u16, u64)> {
    let here = sched_getcpu().ok();
    loads.iter().copied().min_by_key(|(cpu, load)| (*load, here != Some((*cpu).into()), *cpu))
}

/// Of the text of `/proc/stat`.
fn ticks(stat: &str) -> Vec<Ticks> {
    let line = |line: &str| {
        // The first line is the sum and has no number.
        let numbered = line.strip_prefix("cpu").filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        let mut fields = numbered?.split_ascii_whitespace();
        let cpu = fields.next()?.parse().ok()?;
        // User, nice, system, idle, iowait, irq, softirq, steal; what follows is in user already.
        let ticks: Vec<u64> = fields.take(8).map_while(|field| field.parse().ok()).collect();
        let all: u64 = ticks.iter().sum();
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        Some(Ticks { cpu, busy: all - idle, all })
    };
    stat.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let stat = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 100 200 4 5 6 1 2\ncpu13 7 0 0 50\nintr 1 2 3\nctxt 5\n";
        let expected = [Ticks { cpu: 0, busy: 21, all: 321 }, Ticks { cpu: 13, busy: 7, all: 57 }];
        assert_eq!(ticks(stat), expected);
        assert!(!ticks(&fs::read_to_string("/proc/stat").unwrap()).is_empty());
    }

    #[test]
    fn goes_to_the_least_busy_processor_that_is_free_and_comes_back() {
        let all = allowed().unwrap();
        let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu) == Ok(true)).collect();
        let mut busy = Busy::since_now();
        for free in &cpus {
            let taken: Vec<usize> = cpus.iter().copied().filter(|cpu| cpu != free).collect();
            let place = busy.least(&taken);
            assert_eq!(place.map(usize::from), Some(*free));
            stay_on(place);
            assert_eq!(sched_getcpu(), Ok(*free));
        }
        assert!(busy.least(&cpus).is_some_and(|cpu| cpus.contains(&cpu.into())), "one of them, if all are taken");
        stay_on(None);
        assert_eq!(sched_getaffinity(THIS_THREAD), Ok(all));
        stay_on(Some(u16::MAX));
        assert_eq!(sched_getaffinity(THIS_THREAD), Ok(all), "a processor that does not exist");
    }
}
