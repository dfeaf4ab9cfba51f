//! Which CPU has least to do.
//!
//! The threads of an epoch work one after the other, and to wake the next one on another CPU costs more than
//! what it does: tens of microseconds if that CPU sleeps or runs a guest, a few on the same one. So they
//! share a CPU, unless there is so much to do that they had better work side by side.

use std::fs;

use nix::sched::sched_getcpu;

use crate::sched::allowed;

/// How busy the CPUs have been since a moment.
#[derive(Debug, Default)]
pub struct CpuLoad {
    before: Vec<Ticks>,
}

/// Of one CPU, in clock ticks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Ticks {
    cpu: u16,
    busy: u64,
    all: u64,
}

impl CpuLoad {
    /// Since now.
    #[must_use]
    pub fn since_now() -> Self {
        Self { before: ticks(&fs::read_to_string("/proc/stat").unwrap_or_default()) }
    }

    /// The CPU with the least load of those that the calling thread may run on and that are not `taken`; if
    /// all are, of all. The next call counts from here.
    #[must_use]
    pub fn least_loaded(&mut self, taken: &[usize]) -> Option<u16> {
        let loads = self.loads();
        least_of(&without(taken, &loads)).or_else(|| least_of(&loads)).map(|(cpu, _)| cpu)
    }

    /// As [`CpuLoad::least_loaded`], if `cpu` was so busy that leaving it is worthwhile.
    #[must_use]
    pub fn better_than(&mut self, cpu: u16, taken: &[usize]) -> Option<u16> {
        let loads = without(taken, &self.loads());
        let (_, here) = *loads.iter().find(|(other, _)| *other == cpu)?;
        let (least, there) = least_of(&loads)?;
        (here >= 80 && there * 4 <= here * 3).then_some(least)
    }

    /// In percent, of the CPUs that may be chosen.
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
    use nix::sched::{CpuSet, sched_getaffinity};

    use super::*;
    use crate::sched::{THIS_THREAD, pin_to_cpu};

    #[test]
    fn reads_what_the_kernel_writes() {
        let stat = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 100 200 4 5 6 1 2\ncpu13 7 0 0 50\nintr 1 2 3\nctxt 5\n";
        let expected = [Ticks { cpu: 0, busy: 21, all: 321 }, Ticks { cpu: 13, busy: 7, all: 57 }];
        assert_eq!(ticks(stat), expected);
        assert!(!ticks(&fs::read_to_string("/proc/stat").unwrap()).is_empty());
    }

    #[test]
    fn finds_the_free_cpu_wherever_it_is() {
        let all = allowed().unwrap();
        let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu) == Ok(true)).collect();
        let mut load = CpuLoad::since_now();
        for free in &cpus {
            let taken: Vec<usize> = cpus.iter().copied().filter(|cpu| cpu != free).collect();
            let cpu = load.least_loaded(&taken);
            assert_eq!(cpu.map(usize::from), Some(*free));
            pin_to_cpu(cpu);
            assert_eq!(sched_getcpu(), Ok(*free));
        }
        assert!(
            load.least_loaded(&cpus).is_some_and(|cpu| cpus.contains(&cpu.into())),
            "one of them, if all are taken"
        );
        pin_to_cpu(None);
        assert_eq!(sched_getaffinity(THIS_THREAD), Ok(all));
    }
}
