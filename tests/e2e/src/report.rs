//! What a run found out: a timeline, checks and measured numbers, for people or as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// The outcome of a run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The fault that was injected, or `none`.
    pub fault: String,
    /// Which host ran the VM at the end: `a` or `b`.
    pub survivor: Option<char>,
    /// What happened when, in the order of time.
    pub timeline: Vec<Moment>,
    /// Every property looked at.
    pub checks: Vec<Check>,
    /// What was measured; names carry their unit.
    pub numbers: BTreeMap<String, Value>,
}

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
pub struct Moment {
    /// What.
    pub what: String,
    /// When, in milliseconds after the fault (negative: before).
    pub at_ms: f64,
}

/// One property and whether it holds.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// The property.
    pub name: String,
    /// Whether it holds.
    pub ok: bool,
    /// What was seen.
    pub seen: String,
}

impl Report {
    /// Whether every check holds, and there were some.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.ok)
    }

    /// Notes a check.
    pub fn check(&mut self, name: &str, ok: bool, seen: impl Into<String>) {
        self.checks.push(Check { name: name.to_owned(), ok, seen: seen.into() });
    }

    /// Notes a moment.
    pub fn moment(&mut self, what: &str, at_ms: f64) {
        self.timeline.push(Moment { what: what.to_owned(), at_ms });
    }

    /// Names of the checks that do not hold.
    #[must_use]
    pub fn failures(&self) -> Vec<&Check> {
        self.checks.iter().filter(|check| !check.ok).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.timeline.is_empty() {
            writeln!(f, "timeline (ms, 0 = fault)")?;
        }
        for moment in &self.timeline {
            writeln!(f, "  {:>9.1}  {}", moment.at_ms, moment.what)?;
        }
        if !self.numbers.is_empty() {
            writeln!(f, "numbers")?;
        }
        for (name, value) in &self.numbers {
            writeln!(f, "  {name:<28} {value}")?;
        }
        writeln!(f, "checks")?;
        for check in &self.checks {
            writeln!(f, "  {:<4} {:<38} {}", if check.ok { "ok" } else { "FAIL" }, check.name, check.seen)?;
        }
        let (failed, all) = (self.failures().len(), self.checks.len());
        if self.passed() {
            write!(f, "result: all {all} checks hold (fault: {})", self.fault)
        } else {
            write!(f, "result: {failed} of {all} checks FAILED (fault: {})", self.fault)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_without_checks_does_not_pass() {
        assert!(!Report::default().passed());
    }

    #[test]
    fn one_failed_check_fails_the_report_and_is_named() {
        let mut report = Report::default();
        report.check("first", true, "");
        report.check("second", false, "seen");
        assert!(!report.passed());
        assert_eq!(report.failures()[0].name, "second");
        assert!(report.to_string().contains("FAIL second"));
    }
}
