//! Runs seeds until one fails, and prints what happened in it.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use sim::{Mutation, Options, run};

/// Runs the fault-tolerance protocol under every fault, in virtual time.
#[derive(Parser)]
struct Args {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// A defect to build in: it must be found.
    #[arg(long)]
    mutation: Option<Mutation>,
    /// Look at this invariant only.
    #[arg(long)]
    only: Option<String>,
    /// Print the whole trace of every seed.
    #[arg(long)]
    trace: bool,
    /// Lines of the trace to print of a seed that fails.
    #[arg(long, default_value_t = 80)]
    lines: usize,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let options = Options { mutation: args.mutation, only: args.only.as_deref(), trace: args.trace };
    let begun = Instant::now();
    let (mut lost, mut forked, mut takeovers, mut starts, mut restores, mut events) = (0, 0, 0, 0, 0, 0);
    for seed in args.seed..args.seed + args.seeds {
        let outcome = run(seed, options);
        if args.trace {
            outcome.trace.iter().for_each(|line| println!("{line}"));
        }
        if let Some(violation) = outcome.violation {
            let trace = if args.trace { Vec::new() } else { run(seed, Options { trace: true, ..options }).trace };
            let skip = trace.len().saturating_sub(args.lines);
            trace.iter().skip(skip).for_each(|line| println!("{line}"));
            println!("seed {seed} violates {}: {}", violation.invariant, violation.what);
            let mutation = args.mutation.map(|mutation| format!(" --mutation {}", name(mutation))).unwrap_or_default();
            let mutation = args.only.iter().fold(mutation, |before, only| format!("{before} --only {only}"));
            println!(
                "again, with all of its trace: cargo run --release -p sim -- --seeds 1 --seed {seed}{mutation} --trace"
            );
            return ExitCode::FAILURE;
        }
        lost += u64::from(outcome.lost.is_some());
        forked += u64::from(outcome.forked);
        takeovers += outcome.takeovers;
        starts += outcome.starts;
        restores += outcome.restores;
        events += outcome.events;
    }
    println!(
        "{} seeds hold in {:.1} s: {events} events, {takeovers} takeovers, {starts} starts, {restores} records restored, {lost} ended \
         because all copies were gone, {forked} with two that ran the VM, as on_partition=both permits",
        args.seeds,
        begun.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}

fn name(mutation: Mutation) -> String {
    use clap::ValueEnum as _;
    mutation.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
