//! Two builds on one machine: measured in turns, by processes of their own, and their medians side by side.
//!
//! In: folders of programs, what to measure. Out: a table, and `compare.json`. Never: a figure of one build
//! beside one of the other from another hour.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::record::Record;

/// The figures of one metric and setting.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What was measured, with the figures of the very first run.
    pub what: Record,
    /// Of each run with the first build, and with the second one.
    pub p50: [Figures; 2],
    /// The same for the 99th percentile, where there is one.
    pub p99: [Figures; 2],
}

/// What several runs found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures(pub Vec<f64>);

impl Figures {
    /// The median, if there is any figure.
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let (upper, lower) = (sorted.get(sorted.len() / 2)?, sorted.get(sorted.len().saturating_sub(1) / 2)?);
        Some(f64::midpoint(*lower, *upper))
    }

    /// Least and most.
    pub fn range(&self) -> Option<[f64; 2]> {
        let least = self.0.iter().copied().min_by(f64::total_cmp)?;
        let most = self.0.iter().copied().max_by(f64::total_cmp)?;
        Some([least, most])
    }
}

impl Row {
    /// The second build's median, divided by the first one's.
    pub fn ratio(&self) -> Option<f64> {
        let [first, second] = [self.p50[0].median()?, self.p50[1].median()?];
        (first > 0.0).then(|| second / first)
    }

    /// Whether every run of one build is beyond all of the other.
    pub fn is_apart(&self) -> bool {
        let (Some(first), Some(second)) = (self.p50[0].range(), self.p50[1].range()) else { return false };
        first[1] < second[0] || second[1] < first[0]
    }
}

/// Measures the programs of both folders `rounds` times with the same `arguments` of this program; the order
/// changes from round to round. What each run writes is in a folder of its own in `out`.
///
/// # Errors
/// When a run fails.
pub fn run(folders: &[PathBuf; 2], rounds: u32, arguments: &[String], out: &Path) -> io::Result<Vec<Row>> {
    let mut runs = [Vec::new(), Vec::new()];
    for round in 1..=rounds {
        let order = if round % 2 == 1 { [0, 1] } else { [1, 0] };
        for build in order {
            eprintln!("bench: round {round} of {rounds}, {}", folders[build].display());
            let into = out.join(format!("{}-{round}", ["first", "second"][build]));
            runs[build].push(one(&folders[build], arguments, &into)?);
        }
    }
    let rows = rows(&runs);
    fs::write(out.join("compare.json"), serde_json::to_string_pretty(&rows)? + "\n")?;
    Ok(rows)
}

fn one(folder: &Path, arguments: &[String], out: &Path) -> io::Result<Vec<Record>> {
    let mut bench = Command::new(std::env::current_exe()?);
    bench.args(arguments).arg("--out").arg(out).env("POLLUX_BIN_DIR", folder).stdout(Stdio::null());
    let status = bench.status()?;
    if !status.success() {
        return Err(io::Error::other(format!("the run with {} failed: {status}", folder.display())));
    }
    Ok(serde_json::from_slice(&fs::read(out.join("latest.json"))?)?)
}

/// One row for each metric and setting that both builds have figures of.
fn rows(runs: &[Vec<Vec<Record>>; 2]) -> Vec<Row> {
    let what = |record: &Record| (record.metric.clone(), record.pages, record.vcpus, record.mem_mib);
    let figures = |build: usize, of: &Record, figure: fn(&Record) -> Option<f64>| {
        let records = runs[build].iter().flatten().filter(|record| what(record) == what(of));
        Figures(records.filter_map(figure).collect())
    };
    let both = |of: &Record, figure: fn(&Record) -> Option<f64>| [0, 1].map(|build| figures(build, of, figure));
    let first = runs[0].first().into_iter().flatten();
    let rows = first.map(|record| Row {
        what: record.clone(),
        p50: both(record, |record| record.p50),
        p99: both(record, |record| record.p99),
    });
    rows.filter(|row| row.ratio().is_some()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(metric: &str, p50: f64) -> Record {
        Record { metric: metric.to_owned(), p50: Some(p50), ..Record::default() }
    }

    #[test]
    fn medians_of_the_same_metric_stand_side_by_side() {
        let runs = [
            vec![vec![record("pause", 10.0), record("gone", 1.0)], vec![record("pause", 14.0)]],
            vec![vec![record("pause", 20.0)], vec![record("pause", 40.0)], vec![record("pause", 30.0)]],
        ];
        let rows = rows(&runs);
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].p50[0].median(), rows[0].p50[1].median()), (Some(12.0), Some(30.0)));
        assert_eq!((rows[0].ratio(), rows[0].is_apart()), (Some(2.5), true));
    }

    #[test]
    fn builds_whose_figures_overlap_are_not_apart() {
        let runs = [
            vec![vec![record("pause", 10.0)], vec![record("pause", 14.0)]],
            vec![vec![record("pause", 13.0)], vec![record("pause", 20.0)]],
        ];
        assert!(!rows(&runs)[0].is_apart());
    }
}
