//! The demo: a guest outlives its host before your eyes. `scripts/demo` runs it where KVM can run Linux.

use std::io::{self, IsTerminal, Write};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use e2e::host::Shape;
use e2e::report::Report;
use e2e::scenario::{Fault, LAB_DETECT_MS, Options, Run, patience};
use e2e::witness::Keeper;
use e2e::{Error, Result, wait};

/// Shows that a VM outlives its host: two hosts and a client as network namespaces, a Debian guest with
/// Redis, a real fault.
#[derive(Debug, Parser)]
struct Args {
    /// What to break mid-way.
    #[arg(long, value_enum, default_value = "host")]
    fault: Fault,
    /// Who keeps the witness's record.
    #[arg(long, value_enum, default_value = "file")]
    witness: Keeper,
    /// One host only, nothing protected, nothing broken: shows that the guest boots and works.
    #[arg(long)]
    no_ft: bool,
    /// Opens a shell to look around before the guest is powered off.
    #[arg(long)]
    keep: bool,
    /// Prints the report as JSON.
    #[arg(long)]
    json: bool,
    /// Rounds of the client (one INCR, one SET) before and after the fault.
    #[arg(long, default_value_t = 200)]
    rounds: u64,
    /// Does it all so many times, and counts how often exactly one host ran the VM afterwards.
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Rest of the client after each round, in milliseconds.
    #[arg(long, default_value_t = 2)]
    think_ms: u64,
    /// Silence on both links after which a host is taken for dead, in ms (default: 300, in the lab 1000).
    #[arg(long)]
    detect_ms: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match series(&args) {
        Ok(passed) => ExitCode::from(u8::from(!passed)),
        Err(error) => {
            eprintln!("demo: {}", error.chain());
            ExitCode::from(if matches!(error, Error::Interrupted) { 130 } else { 2 })
        }
    }
}

/// Runs as often as asked for; whether all checks of all runs hold.
fn series(args: &Args) -> Result<bool> {
    wait::catch_signals()?;
    let (mut passed, mut one) = (0, 0);
    for _ in 0..args.repeat {
        let report = run(args)?;
        if args.json {
            println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
        } else {
            println!("{report}");
        }
        passed += u32::from(report.passed());
        one += u32::from(report.survivor.is_some());
    }
    if args.repeat > 1 {
        println!("exactly one side ran: {one} of {n}; all checks held: {passed} of {n}", n = args.repeat);
    }
    Ok(passed == args.repeat)
}

fn run(args: &Args) -> Result<Report> {
    let options = Options {
        fault: (!args.no_ft).then_some(args.fault),
        keeper: args.witness,
        shape: Shape::default(),
        rounds: args.rounds,
        think: Duration::from_millis(args.think_ms),
        detect_ms: args.detect_ms.or_else(|| patience(LAB_DETECT_MS)),
    };
    let start = Instant::now();
    let tell = Box::new(move |line: &str| {
        let _ = writeln!(io::stderr(), "{:>7.1} s  {line}", start.elapsed().as_secs_f64());
    });
    let keep = args.keep;
    Run::start(options, tell)?.complete(&mut |run| if keep { look_around(run) } else { Ok(()) })
}

/// A shell while everything still runs; the run goes on when it ends.
fn look_around(run: &Run) -> Result<()> {
    eprintln!("everything is still running:\n{}", run.directions());
    if !io::stdin().is_terminal() {
        eprintln!("no terminal: end with Ctrl-C (SIGINT)");
        while !wait::interrupted() {
            wait::pass(Duration::from_secs(1))?;
        }
        return Err(Error::Interrupted);
    }
    eprintln!("leave this shell to power the guest off and look at its disk");
    // However it ends.
    Command::new("bash").status().map_err(Error::io("cannot start a shell"))?;
    Ok(())
}
