//! Chaos: one fault after the other, and nothing may get lost. `scripts/chaos` runs it where KVM can run
//! Linux.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use e2e::chaos::plan::Kind;
use e2e::chaos::run::{Options, Run};
use e2e::chaos::summary::{Summary, Verdict};
use e2e::scenario::{LAB_DETECT_MS, patience};
use e2e::witness::Keeper;
use e2e::{Error, Result, wait};

/// Breaks hosts, processes, links and the witness under a Debian guest with Redis and PostgreSQL, again and
/// again, and checks that nothing acknowledged is lost.
#[derive(Debug, Parser)]
struct Args {
    /// How many faults.
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// Decides which faults; the same seed is the same sequence.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only faults of these kinds.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Who keeps the witness's record.
    #[arg(long, value_enum, default_value = "file")]
    witness: Keeper,
    /// Prints the summary as JSON.
    #[arg(long)]
    json: bool,
    /// Rest of each client after each step, in milliseconds.
    #[arg(long, default_value_t = 10)]
    think_ms: u64,
    /// Silence on both links after which a host is taken for dead, in ms (default: 300, in the lab 1000).
    #[arg(long)]
    detect_ms: Option<u64>,
    /// Where logs go when something does not hold.
    #[arg(long)]
    logs: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(summary) => {
            let json = || serde_json::to_string_pretty(&summary).unwrap_or_default();
            println!("{}", if args.json { json() } else { summary.to_string() });
            match summary.verdict {
                Verdict::Passed => ExitCode::SUCCESS,
                Verdict::Failed => ExitCode::from(1),
                Verdict::Inconclusive => ExitCode::from(3),
            }
        }
        Err(error) => {
            eprintln!("chaos: seed {}: {}", args.seed, error.chain());
            ExitCode::from(if matches!(error, Error::Interrupted) { 130 } else { 2 })
        }
    }
}

fn run(args: &Args) -> Result<Summary> {
    wait::catch_signals()?;
    let usual = patience(LAB_DETECT_MS).unwrap_or(300);
    let options = Options {
        rounds: args.rounds,
        seed: args.seed,
        kinds: args.only.clone(),
        keeper: args.witness,
        think: Duration::from_millis(args.think_ms),
        detect: Duration::from_millis(args.detect_ms.unwrap_or(usual)),
        logs: args.logs.clone(),
    };
    eprintln!("chaos: seed {}, {} rounds", args.seed, args.rounds);
    let start = Instant::now();
    let tell = Box::new(move |line: &str| {
        let _ = writeln!(io::stderr(), "{:>7.1} s  {line}", start.elapsed().as_secs_f64());
    });
    Run::start(options, tell)?.complete()
}
