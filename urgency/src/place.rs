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
    /// Processor, and how long it was not idle, in clock ticks.
    before: Vec<(u16, u64)>,
}

impl Busy {
    /// Since now.
    #[must_use]
    pub fn since_now() -> Self {
        Self { before: not_idle(&fs::read_to_string("/proc/stat").unwrap_or_default()) }
    }

    /// The processor that had the least to do of those on which the calling thread may run, without `taken`.
    #[must_use]
    pub fn least(&self, taken: &[usize]) -> Option<u16> {
        let allowed = allowed()?;
        let here = sched_getcpu().ok();
        let now = not_idle(&fs::read_to_string("/proc/stat").ok()?);
        let free = now.into_iter().filter(|(cpu, _)| {
            let cpu = usize::from(*cpu);
            allowed.is_set(cpu) == Ok(true) && !taken.contains(&cpu)
        });
        let spent = |(cpu, ticks): (u16, u64)| {
            let before = self.before.iter().find(|(other, _)| *other == cpu).map_or(0, |(_, ticks)| *ticks);
            (ticks.saturating_sub(before), here != Some(cpu.into()), cpu)
        };
        free.map(spent).min().map(|(.., cpu)| cpu)
    }
}

/// Of the text of `/proc/stat`: each processor, and how long it was not idle.
fn not_idle(stat: &str) -> Vec<(u16, u64)> {
    let line = |line: &str| {
        // The first line is the sum and has no number.
        let numbered = line.strip_prefix("cpu").filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        let mut fields = numbered?.split_ascii_whitespace();
        let cpu = fields.next()?.parse().ok()?;
        let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
        // user, nice, system, idle, iowait, irq, softirq, steal; what follows is in user already.
        let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|at| ticks.get(*at)).sum();
        Some((cpu, busy))
    };
    stat.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let stat = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 100 200 4 5 6 1 2\ncpu13 7 0 0 50\nintr 1 2 3\nctxt 5\n";
        assert_eq!(not_idle(stat), [(0, 21), (13, 7)]);
        assert!(!not_idle(&fs::read_to_string("/proc/stat").unwrap()).is_empty());
    }

    #[test]
    fn goes_to_the_least_busy_processor_that_is_free_and_comes_back() {
        let all = allowed().unwrap();
        let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu) == Ok(true)).collect();
        let busy = Busy::since_now();
        for free in &cpus {
            let taken: Vec<usize> = cpus.iter().copied().filter(|cpu| cpu != free).collect();
            let place = busy.least(&taken);
            assert_eq!(place.map(usize::from), Some(*free));
            stay_on(place);
            assert_eq!(sched_getcpu(), Ok(*free));
        }
        assert_eq!(busy.least(&cpus), None);
        stay_on(None);
        assert_eq!(sched_getaffinity(THIS_THREAD), Ok(all));
        stay_on(Some(u16::MAX));
        assert_eq!(sched_getaffinity(THIS_THREAD), Ok(all), "a processor that does not exist");
    }
}
