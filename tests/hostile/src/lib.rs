//! A hostile guest: cases that misuse virtio devices, PCI and legacy ports in every way, and what must hold
//! after each: the devices, once they are reset, do their work.
//!
//! In: a [`Machine`], which is how the program around it reaches ports and memory. Out: one line for each
//! case. A case never has the guest itself die: what it sends is for the VMM and the device processes to
//! survive.
//!
//! Reading order: [`run`], `bench` (what cases work with), `case`, `cases`, then `check`, `arp`, `device`,
//! `ring`, `pci`.

#![no_std]
#![forbid(unsafe_code)]

mod arp;
mod bench;
mod case;
pub mod cases;
mod check;
mod device;
mod machine;
mod pci;
mod ring;

pub use machine::{MEMORY, Machine, Width};

use bench::Bench;
use case::Case;

/// What becomes of a case: what went wrong, if anything.
pub type Outcome = Result<(), &'static str>;

/// Runs every `step`-th of the cases with these numbers; says "case NUMBER NAME: ok" after each, and how
/// long it took, or what went wrong. Returns how many went wrong.
pub fn run(machine: &mut dyn Machine, numbers: core::ops::Range<usize>, step: usize) -> usize {
    let mut bench = Bench::new(machine);
    let mut failed = 0;
    let chosen = cases::all().enumerate().skip(numbers.start).take(numbers.len()).step_by(step.max(1));
    for (number, case) in chosen {
        let began = bench.machine.milliseconds();
        let outcome = run_one(&mut bench, number, &case);
        let took = bench.machine.milliseconds() - began;
        match outcome {
            Ok(()) => bench.machine.say(format_args!("case {number} {case}: ok, {took} ms")),
            Err(what) => {
                failed += 1;
                bench.machine.say(format_args!("case {number} {case}: FAILED: {what}"));
            }
        }
    }
    failed
}

fn run_one(bench: &mut Bench<'_>, number: usize, case: &Case) -> Outcome {
    let outcome = case.attack(bench);
    bench.machine.attacked(number, format_args!("{case}"));
    bench.restore();
    outcome.and(check::all(bench))
}
