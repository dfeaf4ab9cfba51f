//! A chaos run: boot, protect, fault after fault with a look at everything after each, and the final
//! reckoning.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::clients::Clients;
use super::comeback;
use super::injury::{Injury, inflict};
use super::pair::{Pair, Seen};
use super::plan::{Fault, Kind, Outcome, Plan};
use super::summary::{Reboot, Round, Summary, Verdict, millis};
use super::verify;
use crate::agent::{self, Boot};
use crate::artifacts::Artifacts;
use crate::host::{Shape, letter};
use crate::topology::Topology;
use crate::witness::Keeper;
use crate::{Error, Result, wait};

const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// After a crash PostgreSQL brings every file that it has to stable storage before it serves; in a busy
/// emulated machine that takes minutes.
const RECOVERY_LIMIT: Duration = Duration::from_secs(600);
const PROTECT_LIMIT: Duration = Duration::from_secs(120);
/// How long it may take until it is clear who runs the VM, and until clients are served again.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);
const SERVE_LIMIT: Duration = Duration::from_secs(90);
/// Answers that every client has had before a fault, and after it.
const ANSWERS: usize = 10;
/// What was released before a cut is through the wires when nothing has come for this time.
const QUIET: Duration = Duration::from_millis(300);

/// How a run goes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Faults, one after the other.
    pub rounds: u32,
    /// Decides which.
    pub seed: u64,
    /// Only these kinds; empty: all.
    pub kinds: Vec<Kind>,
    /// Who keeps the witness's record.
    pub keeper: Keeper,
    /// Rest of each client after each step.
    pub think: Duration,
    /// Silence on both links after which a host is taken for dead.
    pub detect: Duration,
    /// Where logs go when something does not hold.
    pub logs: Option<PathBuf>,
}

/// How a fault has come out.
struct Settled {
    /// The host that runs the VM.
    runner: u8,
    /// Frames that the VM had sent through each host's tap when that was clear.
    frames: [u64; 2],
    injury: Injury,
}

impl Round {
    /// How the fault has come out.
    fn note(&mut self, settled: &Settled) {
        self.runs = Some(letter(settled.runner));
        self.dark_s = settled.injury.dark.map(seconds);
        self.strangers = settled.injury.said.map(|said| (said.datagrams, said.connections));
    }
}

/// Seconds with two decimals.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 100.0).round() / 100.0
}

/// A run under way. Fields go in this order on drop: processes before namespaces.
pub struct Run {
    options: Options,
    pair: Pair,
    topology: Topology,
    summary: Summary,
    tell: Box<dyn FnMut(&str)>,
}

impl Run {
    /// Builds the network, starts both hosts; A boots the guest. `tell` gets a line at each step.
    ///
    /// # Errors
    /// When something does not come up; nothing is left behind.
    pub fn start(options: Options, mut tell: Box<dyn FnMut(&str)>) -> Result<Self> {
        let artifacts = Artifacts::gather_with_postgres()?;
        let topology = Topology::new()?;
        tell("network up: two hosts and a client on a LAN, two links from host to host");
        let detect_ms = u64::try_from(options.detect.as_millis()).ok();
        let pair = Pair::start(artifacts, &topology, Shape::default(), options.keeper, detect_ms)?;
        tell(&format!("witness: {}", pair.witness().address()));
        let summary = Summary { seed: options.seed, rounds_wanted: options.rounds, ..Summary::default() };
        Ok(Self { options, pair, topology, summary, tell })
    }

    /// Everything else.
    ///
    /// # Errors
    /// When the run cannot be carried out. A property that does not hold is told in the summary instead.
    pub fn complete(mut self) -> Result<Summary> {
        let begun = self.begin();
        let (clients, mut boot) = begun.inspect_err(|error| self.explain_unless_interrupted(error))?;
        let mut plan = Plan::new(self.options.seed, self.options.detect, &self.options.kinds);
        let mut runner = 0;
        for number in 1..=self.options.rounds {
            let round = self.round(number, &plan.draw(), &clients, &mut runner, &mut boot)?;
            (self.tell)(&round.to_string());
            let failed = !round.failures.is_empty();
            self.summary.rounds.push(round);
            if failed {
                break;
            }
        }
        let sound = self.summary.rounds.iter().all(|round| round.failures.is_empty());
        if sound {
            let looked = verify::all(&mut self.summary, &mut self.pair, &self.topology, clients, runner);
            looked.inspect_err(|error| self.explain_unless_interrupted(error))?;
        }
        self.summary.conclude();
        if self.summary.verdict != Verdict::Passed {
            self.explain();
        }
        Ok(self.summary)
    }

    /// Until the guest is protected and clients are served.
    fn begin(&mut self) -> Result<(Clients, Boot)> {
        let clients = Clients::start(&self.topology.client, Instant::now(), self.options.think, BOOT_LIMIT)?;
        let boot = agent::await_boot(&self.topology.client, SERVE_LIMIT)?;
        (self.tell)(&format!("guest booted, Redis and PostgreSQL answer, uptime {:.1} s", boot.uptime_s));
        let start = Instant::now();
        self.pair.recover(0, &self.topology, PROTECT_LIMIT)?;
        (self.tell)(&format!("protected after {:.1} s", start.elapsed().as_secs_f64()));
        Ok((clients, boot))
    }

    /// One fault and all that follows. What does not hold is in the round's failures.
    fn round(
        &mut self,
        number: u32,
        fault: &Fault,
        clients: &Clients,
        runner: &mut u8,
        boot: &mut Boot,
    ) -> Result<Round> {
        let mut round = Round { number, fault: fault.to_string(), ..Round::default() };
        let term = self.ready(clients, runner, boot, &mut round);
        let at = Instant::now();
        let all = term.and_then(|term| {
            let before = *runner;
            clients.expect_reboot(fault.restarts_guest());
            let settled = self.endure(fault, before, term)?;
            *runner = settled.runner;
            round.note(&settled);
            if fault.restarts_guest() {
                self.rebooted(clients, boot, &mut round)?;
            } else {
                self.served(clients.progress(1, SERVE_LIMIT), clients, boot, *runner != before, &mut round)?;
            }
            self.pair.recover(*runner, &self.topology, PROTECT_LIMIT)?;
            if fault.outcome(self.options.detect) == Outcome::StaysProtected {
                round.stayed_protected = true;
            } else {
                round.protected_s = Some(seconds(at.elapsed()));
                round.resync = comeback::last_resync(&self.pair, 1 - *runner)?;
            }
            self.served(clients.progress(ANSWERS, SERVE_LIMIT), clients, boot, false, &mut round)?;
            self.watch_outputs(&settled)?;
            round.stall_ms = millis(clients.longest_wait(at));
            if settled.injury.other_disk { comeback::check_copy(&self.pair, *runner) } else { Ok(()) }
        });
        match all {
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => round.failures.push(error.chain()),
            Ok(()) => {}
        }
        // Connections of a guest that booted again are broken for good reason; the end tells of them once
        // more.
        let unplanned = |round: &Round| round.reboot.is_some_and(|reboot| reboot != Reboot::AfterBlackout);
        if !unplanned(&round) && !self.summary.rounds.iter().any(unplanned) {
            let broken = clients.breaks().into_iter().map(|(who, _, why)| format!("connection of {who} broke: {why}"));
            round.failures.extend(broken);
        }
        Ok(round)
    }

    /// Before a fault: clients are served, the VM is protected and the guest is the one that it was. Gives
    /// the term. A protection that was lost without a fault, as happens to a machine that stalls, is told and
    /// waited for.
    fn ready(&mut self, clients: &Clients, runner: &mut u8, boot: &mut Boot, round: &mut Round) -> Result<u64> {
        self.served(clients.progress(ANSWERS, SERVE_LIMIT), clients, boot, false, round)?;
        let seen = self.pair.look(*runner);
        if let Seen::Runs { protected: true, term } = seen {
            return Ok(term);
        }
        round.lost_before = true;
        // It may even have moved.
        let both =
            self.pair.wait("one host that runs the VM", SETTLE_LIMIT, |seen| seen[0].runs() != seen[1].runs())?;
        *runner = u8::from(both[1].runs());
        self.pair.recover(*runner, &self.topology, PROTECT_LIMIT)?;
        match self.pair.look(*runner) {
            Seen::Runs { protected: true, term } => Ok(term),
            later => {
                let answer = format!("it was protected, then without any fault {seen:?}, then {later:?}");
                Err(Error::Protocol { from: format!("host {}", letter(*runner)), answer })
            }
        }
    }

    /// From the fault until it is undone and clear who runs the VM.
    fn endure(&mut self, fault: &Fault, primary: u8, term: u64) -> Result<Settled> {
        let outcome = fault.outcome(self.options.detect);
        let mut frames = self.frames()?;
        let mut injury = inflict(fault, &mut self.pair, &self.topology, primary, term)?;
        self.sit_out(fault, &injury)?;
        // With the links still cut, it is now that the two hosts are told apart.
        self.pair.return_witness(&self.topology)?;
        if outcome != Outcome::StaysProtected {
            self.settled(outcome, primary, term)?;
            frames = self.frames()?;
        }
        injury.heal(&mut self.pair, &self.topology)?;
        Ok(Settled { runner: self.settled(outcome, primary, term)?, frames, injury })
    }

    /// The time that the fault lasts. While the witness is away and the hosts do not see each other, nobody
    /// may say a word.
    fn sit_out(&self, fault: &Fault, injury: &Injury) -> Result<()> {
        let Some(span) = injury.span else { return Ok(()) };
        if !matches!(fault, Fault::HostDiesWithoutWitness(..) | Fault::PartitionWithoutWitness(..)) {
            return wait::pass(span);
        }
        // Before anybody suspects anybody: what is said then must not pass for that.
        let frames = wait::steady("silence of the VM", QUIET, self.options.detect, || self.frames())?;
        wait::pass(span)?;
        let later = self.frames()?;
        if later == frames {
            return Ok(());
        }
        let answer = format!("sent frames without witness and peer: {frames:?}, then {later:?} from hosts a and b");
        Err(Error::Protocol { from: "the VM".into(), answer })
    }

    /// Waits until exactly one host runs the VM, the right one.
    fn settled(&mut self, outcome: Outcome, primary: u8, term: u64) -> Result<u8> {
        let what = "exactly one host running the VM, in the right state";
        let seen = self.pair.wait(what, SETTLE_LIMIT, |seen| {
            let one = seen[0].runs() != seen[1].runs();
            let right = seen.iter().any(|seen| match (outcome, seen) {
                (Outcome::StaysProtected, Seen::Runs { protected, term: now }) => *protected && *now == term,
                (_, Seen::Runs { term: now, .. }) => *now > term,
                _ => false,
            });
            one && right
        })?;
        let runner = u8::from(seen[1].runs());
        let expected = match outcome {
            Outcome::Either => runner,
            Outcome::Moves => 1 - primary,
            Outcome::StaysAlone | Outcome::StaysProtected => primary,
        };
        if runner == expected {
            return Ok(runner);
        }
        let answer = format!("host {} runs the VM, expected host {}", letter(runner), letter(expected));
        Err(Error::Protocol { from: "hosts".into(), answer })
    }

    /// Clients were served by the one host; since it was settled that the other one does not run the VM, not
    /// one frame has come from there.
    fn watch_outputs(&self, settled: &Settled) -> Result<()> {
        let later = self.frames()?;
        let grown = [0, 1].map(|host| later[host] - settled.frames[host]);
        let (own, other) = (grown[usize::from(settled.runner)], grown[usize::from(1 - settled.runner)]);
        if own > 0 && other == 0 {
            return Ok(());
        }
        let answer = format!("host {} runs it; frames from hosts a and b: {grown:?}", letter(settled.runner));
        Err(Error::Protocol { from: "the VM".into(), answer })
    }

    fn frames(&self) -> Result<[u64; 2]> {
        Ok([self.topology.frames_from_vm(0)?, self.topology.frames_from_vm(1)?])
    }

    /// `so_far` is whether clients were served; that they were not may be for a guest that has booted again
    /// since the last look, and then they get another chance. `moved`: a takeover lies between the two looks.
    fn served(
        &self,
        so_far: Result<()>,
        clients: &Clients,
        boot: &mut Boot,
        moved: bool,
        round: &mut Round,
    ) -> Result<()> {
        if matches!(so_far, Err(Error::Interrupted)) {
            return so_far;
        }
        let Ok(now) = agent::await_boot(&self.topology.client, SERVE_LIMIT) else {
            return so_far.and(Err(Error::Protocol { from: "guest's agent".into(), answer: "none".into() }));
        };
        if now.id == boot.id {
            return so_far;
        }
        round.reboot = Some(if moved { Reboot::AfterTakeover } else { Reboot::ByItself });
        if moved {
            round.failures.push(format!("the guest booted again, uptime {:.1} s", now.uptime_s));
        }
        *boot = now;
        clients.progress(ANSWERS, SERVE_LIMIT)
    }

    /// After a blackout: the guest has booted again, and clients are served over new connections.
    fn rebooted(&mut self, clients: &Clients, boot: &mut Boot, round: &mut Round) -> Result<()> {
        let start = Instant::now();
        clients.hang_up()?;
        *boot = wait::until("another boot of the guest", BOOT_LIMIT, || {
            agent::boot(&self.topology.client).map(|now| (now.id != boot.id).then_some(now))
        })?;
        let booted = seconds(start.elapsed());
        round.reboot = Some(Reboot::AfterBlackout);
        clients.progress(ANSWERS, RECOVERY_LIMIT)?;
        clients.expect_reboot(false);
        let served = seconds(start.elapsed());
        (self.tell)(&format!("guest booted again after {booted:.1} s, its clients are served after {served:.1} s"));
        Ok(())
    }

    fn explain_unless_interrupted(&mut self, error: &Error) {
        if !matches!(error, Error::Interrupted) {
            self.explain();
        }
    }

    /// Tells all that may help to find out what went wrong, and keeps it.
    fn explain(&mut self) {
        let words = self.pair.last_words();
        (self.tell)(&format!("seed {}, after round {}\n{words}", self.options.seed, self.summary.rounds.len()));
        if let Some(folder) = &self.options.logs {
            let kept = self.pair.keep_logs(folder);
            let text = kept.map_or_else(|error| error.chain(), |()| format!("logs are in {}", folder.display()));
            (self.tell)(&text);
        }
    }
}
