//! What protection costs: the bare-metal guest alone and protected, next to the floor of this machine, in one
//! run.
//!
//! In: working sets, numbers of vCPUs. Out: a table, `latest.json`, `latest.svg`. Never: a figure from
//! another run.

mod compare;
mod dirty_log;
mod floor;
mod host;
mod load;
mod loopback;
mod mixed;
mod plot;
mod probe;
mod protected;
mod record;
mod ring;
mod rival;
mod scale;
mod setup;
mod table;
mod takeover;
mod tcp;
mod volume;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::load::Effort;
use crate::record::Report;
use crate::rival::{Part, Rival};
use crate::setup::Setup;

/// Measures pause, commit, latency, throughput and takeover of the bare-metal guest, and the floor of this
/// machine.
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
    /// Measure these parts only
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART,...")]
    only: Vec<Measurement>,
    /// Measure the same guest under another system too
    #[arg(long, value_enum, value_name = "SYSTEM")]
    against: Option<Rival>,
    /// Measure two folders of programs in turns, and print the medians side by side
    #[arg(long, num_args = 2, value_names = ["FIRST", "SECOND"], conflicts_with = "against")]
    compare: Vec<PathBuf>,
    /// Runs of each of the two
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: u32,
    /// Measure this part of the other system alone, in this process, and print the records
    #[arg(long, value_enum, hide = true)]
    rival_part: Option<Part>,
    /// Where latest.json and latest.svg go
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
}

/// What a run measures.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Measurement {
    /// Requests: latency, pause, commit, bytes, CPU
    Latency,
    /// A guest that does nothing but write
    Writer,
    /// Bytes per epoch of a guest that changes little of each page, with and without compression
    RedisLike,
    /// TCP streams
    Tcp,
    /// Requests to a guest that also writes on its own, with epochs of fitting and of fixed length
    Mixed,
    /// Takeovers
    Takeover,
    /// Guests of 1, 4 and 16 GiB, and one of 16 GiB with 8 vCPUs; not with --quick
    Scale,
    /// KVM's two ways to tell which pages were written, for guests of 1 to 512 GiB; only when asked for
    DirtyLog,
}

impl Args {
    /// Whether it is to be measured.
    fn wants(&self, measurement: Measurement) -> bool {
        self.only.is_empty() || self.only.contains(&measurement)
    }

    /// Working sets and numbers of vCPUs.
    fn setups(&self) -> Vec<Setup> {
        let or = |given: &[u64], otherwise: &[u64]| if given.is_empty() { otherwise.to_vec() } else { given.to_vec() };
        let sets = or(&self.pages, if self.quick { &[10, 100, 1000] } else { &[10, 100, 1000, 10_000] });
        let vcpus = match (&self.vcpus[..], self.quick) {
            ([], true) => vec![1],
            ([], false) => vec![1, 2],
            (given, _) => given.to_vec(),
        };
        let setup = |vcpus, pages: &u64| Setup { pages: *pages, vcpus, mem_mib: self.memory };
        vcpus.iter().flat_map(|vcpus| sets.iter().map(move |pages| setup(*vcpus, pages))).collect()
    }

    fn effort(&self) -> Effort {
        if self.quick { Effort::QUICK } else { Effort::FULL }
    }

    /// Words that make another process measure the same, of its programs alone.
    fn words(&self) -> Vec<String> {
        let list =
            |name: &str, values: Vec<String>| (!values.is_empty()).then(|| format!("--{name}={}", values.join(",")));
        let numbers = |values: &[u64]| values.iter().map(u64::to_string).collect();
        let only = self.only.iter().filter_map(|part| Some(part.to_possible_value()?.get_name().to_owned()));
        let vcpus = self.vcpus.iter().map(u32::to_string).collect();
        let lists = [list("pages", numbers(&self.pages)), list("vcpus", vcpus), list("only", only.collect())];
        let quick = self.quick.then(|| "--quick".to_owned());
        lists.into_iter().flatten().chain(quick).chain([format!("--memory={}", self.memory)]).collect()
    }
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let (setups, effort) = (args.setups(), args.effort());
    if let Some(part) = args.rival_part {
        return setups.iter().try_for_each(|setup| rival::child(setup, &effort, part));
    }
    println!("{}", host::describe());
    if let Ok(folders) = <[PathBuf; 2]>::try_from(args.compare.clone()) {
        let rows = compare::run(&folders, args.rounds, &args.words(), &args.out)?;
        println!("{}\nfigures: {}/compare.json", table::of_builds(&rows), args.out.display());
        return Ok(());
    }
    let mut report = Report::default();
    for setup in &setups {
        per_working_set(&args, setup, &effort, &mut report);
        eprintln!("bench: {} pages, {} vCPUs done", setup.pages, setup.vcpus);
    }
    for setup in setups.chunk_by(|one, other| one.vcpus == other.vcpus).map(|same| Setup { pages: 100, ..same[0] }) {
        if args.wants(Measurement::RedisLike) {
            volume::measure(&setup, &effort, &mut report);
        }
        if args.wants(Measurement::Tcp) {
            tcp::measure(&setup, &effort, &mut report);
        }
        if args.wants(Measurement::Mixed) {
            mixed::measure(&setup, &effort, &mut report);
        }
        if args.wants(Measurement::Takeover) {
            takeover::measure(&setup, &effort, &mut report);
        }
    }
    // Minutes rather than seconds.
    if args.only.contains(&Measurement::Scale) || args.only.is_empty() && !args.quick {
        scale::measure(&effort, &mut report);
    }
    println!("{}", table::render(report.records()));
    if let Some(comparison) = table::compare(report.records()) {
        println!("{comparison}");
    }
    report.write(&args.out.join("latest.json"))?;
    plot::draw(report.records(), &args.out.join("latest.svg")).map_err(std::io::Error::other)?;
    println!("figures: {0}/latest.json, plot: {0}/latest.svg", args.out.display());
    Ok(())
}

fn per_working_set(args: &Args, setup: &Setup, effort: &Effort, report: &mut Report) {
    let mut rival_parts = Vec::new();
    if args.wants(Measurement::Latency) {
        let floor = floor::measure(setup, effort);
        protected::latency(setup, effort, &floor, report);
        rival_parts.push(Part::Latency);
    }
    if args.wants(Measurement::Writer) {
        protected::throughput(setup, effort, report);
        rival_parts.push(Part::Writer);
    }
    if args.only.contains(&Measurement::DirtyLog) {
        dirty_log::measure(setup, effort, report);
    }
    if args.against.is_some() {
        rival::measure(setup, args.quick, &rival_parts, report);
    }
}
