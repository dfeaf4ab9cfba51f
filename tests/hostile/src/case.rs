//! A case: its name, what it is done to, and how.

use core::fmt;

use crate::Outcome;
use crate::bench::{Bench, Target};
use crate::ring::Ring;

/// How a case is carried out.
#[derive(Clone, Copy)]
pub(crate) enum Attack {
    /// Fills the ring of a device that is set up. It is notified, and has time to take what is there.
    Ring(fn(&mut Bench<'_>, &mut Ring)),
    /// Does everything by itself.
    All(fn(&mut Bench<'_>, Target) -> Outcome),
}

/// A case.
#[derive(Clone, Copy)]
pub struct Case {
    pub(crate) name: &'static str,
    pub(crate) target: Target,
    pub(crate) attack: Attack,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.target.name)
    }
}

impl Case {
    /// Does it.
    pub(crate) fn attack(&self, bench: &mut Bench<'_>) -> Outcome {
        match self.attack {
            Attack::All(attack) => attack(bench, self.target),
            Attack::Ring(fill) => {
                let live = bench.up(self.target.kind)?;
                let mut ring = live.rings[usize::from(self.target.queue)];
                fill(bench, &mut ring);
                bench.settle(&live, &ring);
                Ok(())
            }
        }
    }
}

/// Cases with a name each.
pub(crate) type Named<F> = &'static [(&'static str, F)];
/// Fills a ring.
pub(crate) type Fill = fn(&mut Bench<'_>, &mut Ring);
/// Does everything.
pub(crate) type Whole = fn(&mut Bench<'_>, Target) -> Outcome;
