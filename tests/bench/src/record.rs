//! Samples and what becomes of them: one record per metric and setting.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::setup::Setup;

/// What ran the guest.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// The VMM of this tree.
    #[default]
    Pollux,
    /// A pair of QEMU processes under COLO.
    QemuColo,
}

/// One measured figure.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Record {
    /// Which system ran the guest.
    pub system: System,
    /// What was measured.
    pub metric: String,
    /// Unit of `p50`, `p99` and `floor`.
    pub unit: String,
    /// Pages of the working set.
    pub pages: u64,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// Memory of the guest.
    pub mem_mib: u64,
    /// Median; none if it could not be measured.
    pub p50: Option<f64>,
    /// 99th percentile; none where there is one sample.
    pub p99: Option<f64>,
    /// Least that this machine needs for the same, measured in the same run.
    pub floor: Option<f64>,
    /// `p50 / floor`, or protected / unprotected for throughput.
    pub ratio: Option<f64>,
    /// Why it could not be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// All records of a run.
#[derive(Debug, Default)]
pub struct Report {
    system: System,
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
    /// An empty one, of figures of `system`.
    pub fn of(system: System) -> Self {
        Self { system, records: Vec::new() }
    }

    /// Adds a figure with its floor, if it has one.
    pub fn add(&mut self, setup: &Setup, metric: &str, unit: &str, spread: Spread, floor: impl Into<Option<f64>>) {
        let floor = floor.into();
        let ratio = floor.filter(|floor| *floor > 0.0).map(|floor| spread.p50 / floor);
        let record = Record { p50: Some(spread.p50), p99: Some(spread.p99), floor, ratio, ..Record::default() };
        self.push(setup, metric, unit, record);
    }

    /// Adds a single figure, perhaps with its ratio to another.
    pub fn add_one(&mut self, setup: &Setup, metric: &str, unit: &str, value: f64, ratio: impl Into<Option<f64>>) {
        let record = Record { p50: Some(value), ratio: ratio.into(), ..Record::default() };
        self.push(setup, metric, unit, record);
    }

    /// Adds the figure of `system` that could not be measured, and why.
    pub fn add_failure(&mut self, system: System, setup: &Setup, metric: &str, reason: &str) {
        self.push(setup, metric, "", Record { failure: Some(reason.to_owned()), ..Record::default() });
        if let Some(record) = self.records.last_mut() {
            record.system = system;
        }
    }

    fn push(&mut self, setup: &Setup, metric: &str, unit: &str, record: Record) {
        let Setup { pages, vcpus, mem_mib } = *setup;
        let (metric, unit) = (metric.to_owned(), unit.to_owned());
        self.records.push(Record { system: self.system, metric, unit, pages, vcpus, mem_mib, ..record });
    }

    /// Adds records of another run of this program.
    pub fn extend(&mut self, records: Vec<Record>) {
        self.records.extend(records);
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
