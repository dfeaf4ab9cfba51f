//! What protection costs: the bare-metal guest alone and protected, next to the floor of this machine, in one run.
//!
//! In: working sets, numbers of vCPUs. Out: a table, `latest.json`, `latest.svg`. Never: a figure from another run.

mod floor;
mod loopback;
mod plot;
mod probe;
mod protected;
mod record;
mod table;
mod takeover;

use std::path::PathBuf;

use clap::Parser;

use crate::protected::{Effort, Setup};
use crate::record::Report;

/// Measures pause, commit, latency, throughput and takeover of the bare-metal guest, and the floor of this machine.
#[derive(Debug, Parser)]
struct Args {
    /// Fewer working sets and samples: under a minute
    #[arg(long)]
    quick: bool,
    /// Pages that each request rewrites
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    pages: Vec<u64>,
    /// Numbers of vCPUs
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    vcpus: Vec<u32>,
    /// Guest memory
    #[arg(long, default_value_t = 256, value_name = "MiB")]
    memory: u64,
    /// Only latencies: no throughput, no takeovers
    #[arg(long)]
    latency_only: bool,
    /// Where latest.json and latest.svg go
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let or = |given: &[u64], otherwise: &[u64]| if given.is_empty() { otherwise.to_vec() } else { given.to_vec() };
    let sets = or(&args.pages, if args.quick { &[10, 100, 1000] } else { &[10, 100, 1000, 10_000] });
    let vcpus = match (&args.vcpus[..], args.quick) {
        ([], true) => vec![1],
        ([], false) => vec![1, 2],
        (given, _) => given.to_vec(),
    };
    let effort = if args.quick { Effort::QUICK } else { Effort::FULL };
    let mut report = Report::default();
    for vcpus in vcpus {
        for &pages in &sets {
            let setup = Setup { pages, vcpus, mem_mib: args.memory };
            let floor = floor::measure(&setup, &effort);
            protected::latency(&setup, &effort, &floor, &mut report);
            if !args.latency_only {
                protected::throughput(&setup, &effort, &mut report);
            }
            eprintln!("bench: {pages} pages, {vcpus} vCPUs done");
        }
        if !args.latency_only {
            takeover::measure(&Setup { pages: 100, vcpus, mem_mib: args.memory }, &effort, &mut report);
        }
    }
    println!("{}", table::render(report.records()));
    report.write(&args.out.join("latest.json"))?;
    plot::draw(report.records(), &args.out.join("latest.svg")).map_err(std::io::Error::other)?;
    println!("figures: {0}/latest.json, plot: {0}/latest.svg", args.out.display());
    Ok(())
}
