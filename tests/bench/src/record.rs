//! Samples and what becomes of them: one record per metric and setting.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::protected::Setup;

/// One measured figure.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// Which system ran the guest.
    pub system: &'static str,
    /// What was measured.
    pub metric: &'static str,
    /// Unit of `p50`, `p99` and `floor`.
    pub unit: &'static str,
    /// Pages of the working set.
    pub pages: u64,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// Memory of the guest.
    pub mem_mib: u64,
    /// Median.
    pub p50: f64,
    /// 99th percentile; none where there is one sample.
    pub p99: Option<f64>,
    /// Least that this machine needs for the same, measured in the same run.
    pub floor: Option<f64>,
    /// `p50 / floor`, or protected / unprotected for throughput.
    pub ratio: Option<f64>,
}

/// All records of a run.
#[derive(Debug, Default)]
pub struct Report {
    records: Vec<Record>,
}

/// Median and 99th percentile.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spread {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Spread {
    /// Of times, in microseconds.
    pub fn of(samples: &[Duration]) -> Self {
        let mut micros: Vec<f64> = samples.iter().map(|time| time.as_secs_f64() * 1e6).collect();
        micros.sort_by(f64::total_cmp);
        let at = |percent: usize| micros[(micros.len() * percent / 100).min(micros.len() - 1)];
        Self { p50: at(50), p99: at(99) }
    }
}

impl Report {
    /// Adds a figure with its floor, if it has one.
    pub fn add(
        &mut self,
        setup: &Setup,
        metric: &'static str,
        unit: &'static str,
        spread: Spread,
        floor: impl Into<Option<f64>>,
    ) {
        let floor = floor.into();
        let ratio = floor.filter(|floor| *floor > 0.0).map(|floor| spread.p50 / floor);
        self.records.push(Record { p99: Some(spread.p99), floor, ratio, ..blank(setup, metric, unit, spread.p50) });
    }

    /// Adds a single figure, perhaps with its ratio to another.
    pub fn add_one(
        &mut self,
        setup: &Setup,
        metric: &'static str,
        unit: &'static str,
        value: f64,
        ratio: impl Into<Option<f64>>,
    ) {
        self.records.push(Record { ratio: ratio.into(), ..blank(setup, metric, unit, value) });
    }

    /// The records, in the order of measurement.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Writes all records as JSON.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, serde_json::to_string_pretty(&self.records)? + "\n")
    }
}

fn blank(setup: &Setup, metric: &'static str, unit: &'static str, p50: f64) -> Record {
    let Setup { pages, vcpus, mem_mib } = *setup;
    Record { system: "pollux", metric, unit, pages, vcpus, mem_mib, p50, p99: None, floor: None, ratio: None }
}
