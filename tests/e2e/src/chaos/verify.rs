//! The final reckoning of a chaos run: histories, connections, databases, file system, both images.

use std::time::Duration;

use super::clients::{Clients, Testimony};
use super::history;
use super::pair::Pair;
use super::summary::{Reboot, Summary};
use crate::host::letter;
use crate::topology::Topology;
use crate::{Error, Result, agent, image, wait};

/// `pg_amcheck` reads every row and index of the catalogue too; the machine may be emulated.
const AMCHECK_LIMIT: Duration = Duration::from_secs(600);
const RESUME_LIMIT: Duration = Duration::from_secs(120);
const SAME_LIMIT: Duration = Duration::from_secs(60);
const OFF_LIMIT: Duration = Duration::from_secs(90);
/// Violations told at most; one is enough.
const TOLD: usize = 5;

const AMCHECK: &str =
    "/usr/lib/postgresql/bin/pg_amcheck -h /tmp -U postgres --install-missing --heapallindexed postgres";

/// Looks at everything while the guest runs, then powers it off and looks at its disk.
///
/// # Errors
/// When something cannot be looked at at all.
pub fn all(summary: &mut Summary, pair: &mut Pair, topology: &Topology, clients: Clients, runner: u8) -> Result<()> {
    let testimony = clients.finish()?;
    judge_history(summary, &testimony);
    judge_connections(summary, &testimony);
    let reboots: Vec<Reboot> = summary.rounds.iter().filter_map(|round| round.reboot).collect();
    let (dark, other): (Vec<_>, Vec<_>) = reboots.into_iter().partition(|reboot| *reboot == Reboot::AfterBlackout);
    let seen = format!("{} reboots {other:?}, {} after blackouts", other.len(), dark.len());
    summary.check("guest never rebooted", other.is_empty(), seen);
    // It writes as much memory as it reads of the database, and is no test of protection.
    pair.host(runner).api(&["ft", "suspend"])?;
    let amcheck = agent::ask_within(&topology.client, AMCHECK, AMCHECK_LIMIT);
    pair.host(runner).api(&["ft", "resume", "--no-wait"])?;
    pair.recover(runner, topology, RESUME_LIMIT)?;
    let seen = amcheck.as_ref().map_or_else(Error::chain, |text| text.lines().last().unwrap_or("clean").to_owned());
    summary.check("pg_amcheck --heapallindexed clean", amcheck.is_ok(), seen);
    compare_images(summary, pair, topology)?;
    power_off(summary, pair, runner)
}

fn judge_history(summary: &mut Summary, testimony: &Testimony) {
    let violations = history::check(&testimony.operations, &testimony.contents);
    let answered = testimony.operations.iter().filter(|op| op.answered.is_some()).count();
    let unknown = testimony.operations.len() - answered;
    let seen = if violations.is_empty() {
        let entries: usize = testimony.contents.values().map(Vec::len).sum();
        format!("{answered} operations acknowledged, {unknown} unknown, {entries} entries read back")
    } else {
        let told: Vec<String> = violations.iter().take(TOLD).map(ToString::to_string).collect();
        format!("{} violations: {}", violations.len(), told.join("; "))
    };
    summary.check("history has no contradiction", violations.is_empty() && answered > 0, seen);
}

fn judge_connections(summary: &mut Summary, testimony: &Testimony) {
    let same = testimony.breaks.is_empty() && testimony.other_sessions.is_empty();
    let seen = if same {
        testimony.sessions.join("; ")
    } else {
        format!("breaks {:?}, other sessions {:?}", testimony.breaks, testimony.other_sessions)
    };
    summary.check("every connection lived", same, seen);
}

/// Both images hold the same bytes once the guest writes no more.
fn compare_images(summary: &mut Summary, pair: &Pair, topology: &Topology) -> Result<()> {
    let images = [pair.host(0).image(), pair.host(1).image()];
    let same = wait::until("equality of both images", SAME_LIMIT, || {
        agent::ask(&topology.client, "sync")?;
        match image::first_difference(images[0], images[1])? {
            None => Ok(Some(())),
            Some(at) => Err(Error::Protocol { from: "images".into(), answer: format!("they differ at byte {at}") }),
        }
    });
    let seen = match same {
        Err(Error::Interrupted) => return Err(Error::Interrupted),
        Err(ref error) => error.chain(),
        Ok(()) => format!("{} bytes", images[0].metadata().map_err(Error::file("look at", images[0]))?.len()),
    };
    summary.check("both images are the same", same.is_ok(), seen);
    Ok(())
}

fn power_off(summary: &mut Summary, pair: &mut Pair, runner: u8) -> Result<()> {
    let scratch = pair.artifacts().path("disk");
    let tree = pair.artifacts().guest_tree().to_owned();
    let host = pair.host_mut(runner);
    let off = host.api(&["power-button"]).and_then(|_| host.wait_off(OFF_LIMIT));
    let closed = host.serial().contains("guest: disk closed");
    let seen = off.as_ref().err().map_or_else(|| format!("host {}", letter(runner)), Error::chain);
    summary.check("guest powered off by the power button", off.is_ok() && closed, seen);
    if off.is_ok() {
        let image = host.image();
        let (ok, seen) = image::fsck(image)?;
        summary.check("e2fsck -fn clean", ok, seen);
        let (ok, seen) = image::check_aof(image, &tree, &scratch)?;
        summary.check("redis-check-aof clean", ok, seen);
        let (ok, seen) = image::check_cluster(image, &tree, &scratch)?;
        summary.check("pg_checksums clean", ok, seen);
    }
    Ok(())
}
