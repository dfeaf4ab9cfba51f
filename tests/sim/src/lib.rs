//! The engine under every fault: real executors in a world of models, in virtual time, one seed deciding
//! everything.
//!
//! ```text
//! seed -> plan -> world: hosts { real engine | guest, devices }
//!                   |    + network + witness + client + faults
//!                   '-> moments -> invariants, one file each
//! ```
//!
//! A run has two phases: faults, and then none. The same seed gives the same run, line by line.
#![forbid(unsafe_code)]

mod beats;
mod body;
mod client;
mod comeback;
mod console;
mod devices;
mod dialler;
mod disk_side;
mod drive;
mod driver;
mod drives;
mod ends;
mod faults;
mod guest;
mod guest_side;
mod ids;
mod intake;
mod invariants;
mod mutation;
mod network;
mod observer;
mod opening;
mod operators;
mod outside;
mod plan;
mod platform;
mod process;
mod record;
mod rng;
mod shut_down;
mod slot;
mod start;
mod streams;
mod takeover;
mod trace;
mod truth;
mod unwitnessed;
mod vm;
mod witness;
mod witness_record;
mod world;

pub use invariants::Violation;
pub use mutation::Mutation;

use ft_proto::OnPartition;
use invariants::Checks;
use trace::Trace;
use world::{End, World};

/// What to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// A defect to build in.
    pub mutation: Option<Mutation>,
    /// Look at this invariant only.
    pub only: Option<&'a str>,
    /// Keep the trace.
    pub trace: bool,
}

/// How a run went.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// What does not hold, if anything.
    pub violation: Option<Violation>,
    /// Why the VM was lost, if more failed than can be survived.
    pub lost: Option<String>,
    /// Whether two ran the VM, where the policy permits that.
    pub forked: bool,
    /// Who was to go on in a partition; `None`: there was a witness.
    pub policy: Option<OnPartition>,
    /// How many takeovers there were.
    pub takeovers: u64,
    /// How many sessions found out from the disks' records what to look at.
    pub resyncs: u64,
    /// How many claims to take over were withdrawn.
    pub withdrawals: u64,
    /// How often a host that was back started the VM by itself.
    pub starts: u64,
    /// How often a lost record was written again.
    pub restores: u64,
    /// How many events the run had.
    pub events: u64,
    /// What happened, line by line, if it was kept.
    pub trace: Vec<String>,
}

/// Runs one seed.
#[must_use]
pub fn run(seed: u64, options: Options<'_>) -> Outcome {
    let mut world = World::new(seed, options.mutation, Checks::new(options.only), Trace::new(options.trace));
    let (violation, lost, forked) = match world.run() {
        End::Protected => (None, None, false),
        End::Forked => (None, None, true),
        End::Lost(reason) => (None, Some(reason), false),
        End::Violated(violation) => (Some(violation), None, false),
    };
    let policy = world.policy();
    let World { takeovers, resyncs, withdrawals, starts, restores, events, trace, .. } = world;
    let trace = trace.into_lines();
    Outcome { violation, lost, forked, policy, takeovers, resyncs, withdrawals, starts, restores, events, trace }
}
