//! What a chaos run found out, round by round and at the end, for people or as JSON.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::report::Check;

/// A guest that has booted again.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reboot {
    /// After a blackout, as it had to.
    AfterBlackout,
    /// In a takeover: the VM did not go on as it was.
    AfterTakeover,
    /// While no takeover was in progress: not by anything that the run did.
    ByItself,
}

/// One round.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Round {
    /// Counts from 1.
    pub number: u32,
    /// What was broken.
    pub fault: String,
    /// Which host ran the VM afterwards.
    pub runs: Option<char>,
    /// The longest that a client waited for an answer.
    pub stall_ms: f64,
    /// Protection was lost before the fault, without one.
    pub lost_before: bool,
    /// The fault was none that ends protection, and did not.
    pub stayed_protected: bool,
    /// From the fault until the VM was protected again; none if it was all the time.
    pub protected_s: Option<f64>,
    /// After a blackout: from when the last part that is needed was back until the VM ran.
    pub dark_s: Option<f64>,
    /// How the standby's disk was made equal the last time.
    pub resync: Option<String>,
    /// Datagrams and connections of strangers.
    pub strangers: Option<(u64, u64)>,
    /// Whether the guest has booted again, and by whose doing.
    pub reboot: Option<Reboot>,
    /// What did not hold.
    pub failures: Vec<String>,
}

/// A whole run.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Repeats the run.
    pub seed: u64,
    /// Rounds that were asked for.
    pub rounds_wanted: u32,
    /// Rounds that were done.
    pub rounds: Vec<Round>,
    /// What was looked at when all was over.
    pub checks: Vec<Check>,
    /// Longest stall of a client in any round.
    pub worst_stall_ms: Option<f64>,
    /// Median of the rounds' stalls.
    pub median_stall_ms: Option<f64>,
    /// Median of the times until the VM was protected again.
    pub median_protected_s: Option<f64>,
    /// Longest of them.
    pub worst_protected_s: Option<f64>,
    /// Median of the times until the VM ran again after a blackout.
    pub median_dark_s: Option<f64>,
    /// Longest of them.
    pub worst_dark_s: Option<f64>,
    /// How it ended.
    pub verdict: Verdict,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Something that Pollux promises does not hold, or the run could not be finished.
    #[default]
    Failed,
    /// The guest booted again by itself, which breaks its connections; nothing else is wrong.
    Inconclusive,
    /// All holds.
    Passed,
}

/// Names of the end's checks that a reboot of the guest by itself makes fail.
pub const BROKEN_BY_REBOOT: [&str; 2] = ["guest never rebooted", "every connection lived"];

impl Summary {
    /// Notes a check.
    pub fn check(&mut self, name: &str, ok: bool, seen: impl Into<String>) {
        self.checks.push(Check { name: name.to_owned(), ok, seen: seen.into() });
    }

    /// Works out figures and verdict from the rounds and checks.
    pub fn conclude(&mut self) {
        // How long a guest takes to boot is another question.
        let undisturbed = self.rounds.iter().filter(|round| round.reboot.is_none());
        let stalls = sorted(undisturbed.map(|round| round.stall_ms));
        let times = sorted(self.rounds.iter().filter_map(|round| round.protected_s));
        (self.worst_stall_ms, self.median_stall_ms) = (stalls.last().copied(), median(&stalls));
        (self.worst_protected_s, self.median_protected_s) = (times.last().copied(), median(&times));
        let dark = sorted(self.rounds.iter().filter_map(|round| round.dark_s));
        (self.worst_dark_s, self.median_dark_s) = (dark.last().copied(), median(&dark));
        let complete = self.rounds.len() == self.rounds_wanted as usize && !self.checks.is_empty();
        let sound = complete && self.rounds.iter().all(|round| round.failures.is_empty());
        let mut failed = self.checks.iter().filter(|check| !check.ok).peekable();
        let by_itself = self.rounds.iter().any(|round| round.reboot == Some(Reboot::ByItself));
        self.verdict = match (sound, failed.peek().is_some()) {
            (true, false) => Verdict::Passed,
            (true, true) if by_itself && failed.all(|check| BROKEN_BY_REBOOT.contains(&check.name.as_str())) => {
                Verdict::Inconclusive
            }
            _ => Verdict::Failed,
        };
    }
}

/// Milliseconds with two decimals.
#[must_use]
pub fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 1e2
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> Option<f64> {
    sorted.get(sorted.len() / 2).copied()
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.failures.is_empty() { "ok" } else { "FAIL" };
        let runs = self.runs.map_or("?".to_owned(), |host| host.to_string());
        let protected = match (self.stayed_protected, self.protected_s) {
            (true, _) => "protected throughout".to_owned(),
            (false, Some(seconds)) => format!("protected after {seconds:.1} s"),
            (false, None) => "not protected again".to_owned(),
        };
        write!(f, "round {:>3}  {verdict:<4} {:<62}", self.number, self.fault)?;
        write!(f, " {runs} runs, stall {:>6.0} ms, {protected}", self.stall_ms)?;
        if let Some(seconds) = self.dark_s {
            write!(f, ", VM ran {seconds:.1} s after its host was back")?;
        }
        if let Some(kind) = &self.resync {
            write!(f, ", resync {kind}")?;
        }
        if let Some((datagrams, connections)) = self.strangers {
            write!(f, ", {datagrams} foreign datagrams, {connections} connections")?;
        }
        if self.lost_before {
            write!(f, "\n           protection had been lost before, WITHOUT A FAULT, and was back")?;
        }
        if self.reboot == Some(Reboot::ByItself) {
            write!(f, "\n           the guest booted again BY ITSELF: no takeover was in progress")?;
        }
        for failure in &self.failures {
            write!(f, "\n           {failure}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "checks")?;
        for check in &self.checks {
            writeln!(f, "  {:<4} {:<38} {}", if check.ok { "ok" } else { "FAIL" }, check.name, check.seen)?;
        }
        if let (Some(worst), Some(median)) = (self.worst_stall_ms, self.median_stall_ms) {
            writeln!(f, "client stall: worst {worst:.0} ms, median {median:.0} ms")?;
        }
        if let (Some(worst), Some(median)) = (self.worst_protected_s, self.median_protected_s) {
            writeln!(f, "protected again: worst {worst:.1} s, median {median:.1} s")?;
        }
        if let (Some(worst), Some(median)) = (self.worst_dark_s, self.median_dark_s) {
            writeln!(f, "VM runs after a blackout: worst {worst:.1} s, median {median:.1} s")?;
        }
        let (done, wanted) = (self.rounds.len(), self.rounds_wanted);
        let verdict = match self.verdict {
            Verdict::Passed => "all holds",
            Verdict::Inconclusive => "INCONCLUSIVE: the guest booted again by itself, nothing else is wrong",
            Verdict::Failed => "FAILED",
        };
        write!(f, "result: {verdict} ({done} of {wanted} rounds, seed {})", self.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(reboot: Option<Reboot>, failures: &[&str], failed_check: Option<&str>) -> Verdict {
        let failures = failures.iter().map(|failure| (*failure).to_owned()).collect();
        let round = Round { number: 1, reboot, failures, ..Round::default() };
        let mut summary = Summary { rounds_wanted: 1, rounds: vec![round], ..Summary::default() };
        summary.check("history", true, "");
        if let Some(name) = failed_check {
            summary.check(name, false, "");
        }
        summary.conclude();
        summary.verdict
    }

    #[test]
    fn a_run_passes_only_if_all_holds() {
        assert_eq!(summary(None, &[], None), Verdict::Passed);
        assert_eq!(summary(None, &["two hosts run"], None), Verdict::Failed);
        assert_eq!(summary(None, &[], Some("history")), Verdict::Failed);
        let mut empty = Summary::default();
        empty.conclude();
        assert_eq!(empty.verdict, Verdict::Failed, "nothing was looked at");
    }

    #[test]
    fn a_reboot_by_itself_excuses_broken_connections_and_nothing_else() {
        let excused = Some(BROKEN_BY_REBOOT[1]);
        assert_eq!(summary(Some(Reboot::ByItself), &[], excused), Verdict::Inconclusive);
        assert_eq!(summary(Some(Reboot::AfterTakeover), &[], excused), Verdict::Failed);
        assert_eq!(summary(None, &[], excused), Verdict::Failed);
        assert_eq!(summary(Some(Reboot::AfterBlackout), &[], excused), Verdict::Failed, "only its own connections end");
        assert_eq!(summary(Some(Reboot::AfterBlackout), &[], None), Verdict::Passed);
        assert_eq!(summary(Some(Reboot::ByItself), &[], Some("history")), Verdict::Failed);
        assert_eq!(summary(Some(Reboot::ByItself), &["two hosts run"], excused), Verdict::Failed);
    }

    #[test]
    fn an_unfinished_run_does_not_pass() {
        let mut summary = Summary { rounds_wanted: 2, ..Summary::default() };
        summary.check("history", true, "");
        summary.conclude();
        assert_eq!(summary.verdict, Verdict::Failed);
    }
}
