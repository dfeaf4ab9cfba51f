//! What a run does: boot, protect, write, break something, look whether anything was lost, power off, look at
//! the disk.

use std::env;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::agent::{self, Boot};
use crate::artifacts::Artifacts;
use crate::host::{self, Host, Pairing, Shape};
use crate::report::Report;
use crate::resp::Connection;
use crate::topology::Topology;
use crate::witness::{Absence, Keeper, Witness};
use crate::workload::{self, Record, Workload};
use crate::{Error, Result, image, process, wait};

const BOOT_LIMIT: Duration = Duration::from_secs(240);
const AGENT_LIMIT: Duration = Duration::from_secs(30);
const PROTECT_LIMIT: Duration = Duration::from_secs(120);
const WRITES_LIMIT: Duration = Duration::from_secs(120);
const VERDICT_LIMIT: Duration = Duration::from_secs(20);
const OFF_LIMIT: Duration = Duration::from_secs(60);

/// The events that matter most, in words.
const MEANINGS: [(&str, &str); 4] = [
    ("fenced", "VM stopped here: "),
    ("peer-suspected", "detection: "),
    ("protection-lost", "goes on alone: "),
    ("takeover-completed", "takeover done: "),
];

/// How long the protected guest is left alone, so that the figures of an idle one are known.
const IDLE: Duration = Duration::from_secs(3);
/// How long witness and links are gone together.
const BLACKOUT: Duration = Duration::from_secs(8);
/// Silence that counts as death in the lab, in ms, for those who look on.
pub const LAB_DETECT_MS: u64 = 1000;
/// The same for tests, which are about the fault that they cause and no other: on a busy machine the lab
/// stalls for seconds.
pub const LAB_TEST_DETECT_MS: u64 = 3000;

/// What is broken mid-way.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Fault {
    /// The witness hangs while both host-to-host links are cut; it decides when it is back.
    Blackout,
    /// A device process of the primary is killed.
    Device,
    /// Every process of host A is killed at once.
    Host,
    /// Both host-to-host links are cut; the witness decides.
    Link,
    /// Every process of the standby is killed; the VM goes on alone.
    Standby,
    /// The primary's VMM is killed, its device processes are not.
    Vmm,
}

/// How a run goes.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is broken; `None`: one host, no protection, no fault.
    pub fault: Option<Fault>,
    /// Who keeps the witness's record.
    pub keeper: Keeper,
    /// The guest.
    pub shape: Shape,
    /// Rounds of the client before and after the fault.
    pub rounds: u64,
    /// Rest of the client after each round.
    pub think: Duration,
    /// Silence on both links after which a host is taken for dead, in ms; 0: never; `None`: the product's own
    /// default, which is what is used outside the lab.
    pub detect_ms: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            fault: Some(Fault::Host),
            keeper: Keeper::File,
            shape: Shape::default(),
            rounds: 200,
            think: Duration::from_millis(2),
            detect_ms: patience(LAB_TEST_DETECT_MS),
        }
    }
}

/// One run and everything it has made. Fields go in this order on drop: processes before namespaces before
/// files.
pub struct Run {
    options: Options,
    a: Host,
    b: Option<Host>,
    witness: Witness,
    topology: Topology,
    artifacts: Artifacts,
    report: Report,
    tell: Box<dyn FnMut(&str)>,
}

/// When the fault struck, by both clocks.
#[derive(Clone, Copy)]
struct Strike {
    at: Instant,
    wall: Timestamp,
}

/// One entry of `ft events`.
struct Event {
    at: Timestamp,
    text: String,
    /// Whether it is settled from here on who runs the VM.
    settles: bool,
}

impl Event {
    fn read(entry: &Value) -> Option<Self> {
        let at = entry["time"].as_str()?.parse().ok()?;
        let name = entry["event"].as_str()?;
        let meaning = MEANINGS.iter().find(|(event, _)| *event == name).map_or("", |(_, meaning)| meaning);
        let detail = entry["detail"].as_object().filter(|detail| !detail.is_empty());
        let detail = detail.map(|detail| format!(" {}", Value::from(detail.clone()))).unwrap_or_default();
        let settles = matches!(name, "protection-lost" | "takeover-completed");
        Some(Self { at, text: format!("{meaning}{name}{detail}"), settles })
    }
}

impl Run {
    /// Builds the network and starts the VMMs; the guest boots on host A. `tell` gets a line at each step.
    ///
    /// # Errors
    /// When something does not come up; nothing is left behind.
    pub fn start(options: Options, mut tell: Box<dyn FnMut(&str)>) -> Result<Self> {
        let artifacts = Artifacts::gather()?;
        let size = artifacts.disk_size()?;
        let topology = Topology::new()?;
        tell("network up: two hosts and a client on a LAN, two links from host to host");
        let witness = Witness::start(options.keeper, &artifacts, &topology)?;
        tell(&format!("witness: {}", witness.address()));
        let a = Host::primary(&artifacts, &topology, &options.shape)?;
        let b = match options.fault {
            Some(_) => Some(Host::standby(&artifacts, &topology, &options.shape, size, &pairing(&options, &witness))?),
            None => None,
        };
        let fault = options.fault.map_or("none".into(), Fault::name);
        let report = Report { fault, ..Report::default() };
        Ok(Self { options, a, b, witness, topology, artifacts, report, tell })
    }

    /// Everything from boot to the look at the disk. `pause` is called before the guest is powered off.
    ///
    /// # Errors
    /// When the run cannot be carried out. A property that does not hold is a failed check of the report
    /// instead.
    pub fn complete(mut self, pause: &mut dyn FnMut(&Self) -> Result<()>) -> Result<Report> {
        let (connection, booted) = self.boot()?;
        if self.b.is_some() {
            self.protect()?;
            wait::pass(IDLE)?;
            self.note_status("idle_", &["commit_us", "pause_us"]);
        }
        let workload = Workload::start(connection, self.options.think)?;
        workload.progress(self.options.rounds, WRITES_LIMIT).map_err(|e| self.with_logs(e))?;
        if workload.is_broken() {
            let answer = workload.stop().broken.unwrap_or_default();
            return Err(self.with_logs(Error::Protocol { from: "client, before any fault".into(), answer }));
        }
        let strike = match self.options.fault {
            Some(fault) => {
                self.stay_protected()?;
                Some(self.strike(fault)?)
            }
            None => None,
        };
        let went_on = workload.progress(self.options.rounds, WRITES_LIMIT);
        let record = workload.stop();
        self.report.check("client was served to the end", went_on.is_ok() && record.broken.is_none(), {
            let reason = went_on.err().map(|e| e.chain()).or_else(|| record.broken.clone());
            reason.unwrap_or_else(|| format!("{} replies", record.replies.len()))
        });
        if let Some(strike) = strike {
            self.judge_roles()?;
            self.timeline(strike, &record);
        }
        self.judge_data(record)?;
        self.judge_boot(&booted);
        if !self.report.passed() {
            let logs = self.logs();
            self.say(&logs);
        }
        pause(&self)?;
        self.power_off()?;
        Ok(self.report)
    }

    /// The hosts' API sockets and the namespaces, for a person who wants to look around.
    #[must_use]
    pub fn directions(&self) -> String {
        let mut text = format!("client: ip netns exec {} bash\n", self.topology.client.name());
        for host in std::iter::once(&self.a).chain(self.b.as_ref()) {
            let namespace = self.topology.hosts[usize::from(host.index)].name();
            let socket = host.socket().display();
            text.push_str(&format!(
                "host {}: ip netns exec {namespace} bash, pollux --api-socket {socket} ft status\n",
                host::letter(host.index)
            ));
        }
        text
    }

    /// Waits until the guest serves Redis.
    ///
    /// # Errors
    /// When it does not; with the last words of everyone.
    pub fn boot(&mut self) -> Result<(Connection, Boot)> {
        let connection = workload::connect(&self.topology.client, BOOT_LIMIT).map_err(|e| self.with_logs(e))?;
        // Redis is up before the agent.
        let booted = agent::await_boot(&self.topology.client, AGENT_LIMIT).map_err(|e| self.with_logs(e))?;
        self.say(&format!("guest booted, Redis answers, uptime {:.1} s", booted.uptime_s));
        Ok((connection, booted))
    }

    /// Protects the VM by host B and waits until it is.
    ///
    /// # Errors
    /// When that fails; with the last words of everyone.
    pub fn protect(&mut self) -> Result<()> {
        self.protect_inner().map_err(|e| self.with_logs(e))
    }

    /// Host B, if this run has one.
    #[must_use]
    pub fn standby(&self) -> Option<&Host> {
        self.b.as_ref()
    }

    /// Frames that the VM has sent through host A's tap so far.
    ///
    /// # Errors
    /// When the counter cannot be read.
    pub fn frames_sent(&self) -> Result<u64> {
        self.topology.frames_from_vm(0)
    }

    fn protect_inner(&mut self) -> Result<()> {
        let argument = host::protect_argument(&pairing(&self.options, &self.witness));
        let start = Instant::now();
        wait::until("protection", PROTECT_LIMIT, || {
            let status = self.a.ft_status()?;
            match state_of(&status).as_str() {
                "protected" => return Ok(Some(Ok(()))),
                // Asked again where a machine that stalls made witness or standby too late for the first
                // time.
                "unprotected" | "solo" => {
                    let _ = self.a.api(&["ft", "protect", &argument, "--no-wait"])?;
                }
                "fenced" => return Ok(Some(Err(answer_of(&status)))),
                _ => {}
            }
            Err(answer_of(&status))
        })??;
        let seconds = start.elapsed().as_secs_f64();
        self.say(&format!("protected after {seconds:.1} s of copying"));
        self.report.numbers.insert("first_copy_s".into(), round(seconds).into());
        Ok(())
    }

    /// On a machine that stalls for longer than the silence limit a primary goes on alone, as it should. It
    /// is told, and the VM protected again: this is about the fault that follows.
    fn stay_protected(&mut self) -> Result<()> {
        let state = state_of(&self.a.ft_status()?);
        if state == "protected" {
            return Ok(());
        }
        let logs = self.logs();
        self.say(&format!("host A is {state} before any fault, and protected again\n{logs}"));
        self.report.numbers.insert("lost_before_fault".into(), true.into());
        self.protect()
    }

    fn strike(&mut self, fault: Fault) -> Result<Strike> {
        self.note_status(
            "",
            &[
                "commit_us",
                "compression",
                "dirty_pages",
                "epoch_bytes",
                "epoch_raw_bytes",
                "epochs",
                "held_frames",
                "pause_us",
            ],
        );
        let victims = self.a.vmm.descendants();
        self.say(&format!("fault: {} (processes of host A: {}, {victims:?})", fault.describe(), self.a.vmm.pid()));
        let strike = Strike { at: Instant::now(), wall: Timestamp::now() };
        match fault {
            Fault::Device => {
                let disk = victims.iter().find(|(_, name)| name.starts_with("vhost-user-blk"));
                let (pid, _) = disk
                    .ok_or_else(|| Error::Protocol { from: "process list".into(), answer: format!("{victims:?}") })?;
                process::signal_one(*pid, Signal::SIGKILL)?;
            }
            Fault::Host => self.a.kill_all()?,
            Fault::Blackout => self.black_out()?,
            Fault::Link => self.topology.cut_links()?,
            Fault::Standby => self.b.as_ref().map_or(Ok(()), Host::kill_all)?,
            Fault::Vmm => self.a.vmm.signal(Signal::SIGKILL)?,
        }
        if matches!(fault, Fault::Host | Fault::Vmm) {
            wait::until("death of host A's processes", VERDICT_LIMIT, || {
                let alive = victims.iter().any(|(pid, _)| process::alive(*pid));
                Ok((!alive && self.a.vmm.ended()?.is_some()).then_some(()))
            })?;
        }
        Ok(strike)
    }

    /// Nobody may decide: the standby must not take over, and the primary must not say anything. Then the
    /// witness is back.
    fn black_out(&mut self) -> Result<()> {
        self.witness.leave(Absence::Hangs)?;
        self.topology.cut_links()?;
        // Long enough for what was committed before the cut to leave, and for both to suspect the other.
        wait::pass(BLACKOUT / 2)?;
        let before = self.topology.frames_from_vm(0)?;
        wait::pass(BLACKOUT / 2)?;
        let silent = self.topology.frames_from_vm(0)? == before;
        let states = [Some(&self.a), self.b.as_ref()].map(|host| {
            host.and_then(|host| host.ft_status().ok()).map(|status| state_of(&status)).unwrap_or_default()
        });
        self.report.check("no output while nobody may decide", silent, format!("within {:?}", BLACKOUT / 2));
        let waiting = states == ["awaiting-witness", "awaiting-witness"];
        self.report.check("both hosts wait for the witness", waiting, states.join(", "));
        self.say("witness is back");
        self.witness.come_back(&self.artifacts, &self.topology)
    }

    /// Figures of the protected VM so far, under names that begin with `prefix`.
    fn note_status(&mut self, prefix: &str, wanted: &[&str]) {
        let Ok(status) = self.a.ft_status() else { return };
        for name in wanted.iter().filter(|name| !status[**name].is_null()) {
            self.report.numbers.insert(format!("{prefix}{name}"), status[*name].clone());
        }
    }

    /// Exactly one host runs the VM, and it is the one that should.
    fn judge_roles(&mut self) -> Result<()> {
        let Some(fault) = self.options.fault else { return Ok(()) };
        let verdict = wait::until("exactly one host running the VM", VERDICT_LIMIT, || {
            let a = runs(&mut self.a);
            let b = self.b.as_mut().is_some_and(runs);
            // A primary that has not noticed yet is not the outcome.
            let alone = |host: &Host| host.ft_status().is_ok_and(|status| state_of(&status) == "solo");
            match (a, b) {
                (true, false) if alone(&self.a) => Ok(Some('a')),
                (false, true) if self.b.as_ref().is_some_and(alone) => Ok(Some('b')),
                _ => Err(Error::Protocol { from: "hosts".into(), answer: format!("a runs: {a}, b runs: {b}") }),
            }
        });
        match verdict {
            Ok(survivor) => {
                let expected = match fault {
                    Fault::Device | Fault::Host | Fault::Vmm => survivor == 'b',
                    Fault::Blackout | Fault::Link => true,
                    Fault::Standby => survivor == 'a',
                };
                self.report.survivor = Some(survivor);
                self.report.check("exactly one host runs the VM", expected, format!("host {survivor}"));
                Ok(())
            }
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(error) => {
                self.report.check("exactly one host runs the VM", false, error.chain());
                Ok(())
            }
        }
    }

    fn timeline(&mut self, strike: Strike, record: &Record) {
        let since = |at: Instant| {
            if at >= strike.at { (at - strike.at).as_secs_f64() * 1e3 } else { -(strike.at - at).as_secs_f64() * 1e3 }
        };
        // The VM serves again from the moment that a takeover, or going on alone, is complete.
        let mut settled = strike.at;
        for host in std::iter::once(&self.a).chain(self.b.as_ref()) {
            let events = host.ft_events().unwrap_or_default();
            for event in events.iter().filter_map(Event::read).filter(|event| event.at >= strike.wall) {
                let after = event.at.duration_since(strike.wall).unsigned_abs();
                if event.settles {
                    settled = settled.max(strike.at + after);
                }
                let text = format!("host {}: {}", host::letter(host.index), event.text);
                self.report.moment(&text, after.as_secs_f64() * 1e3);
            }
        }
        if let Some((before, after)) = record.gap_at(settled) {
            self.report.moment("last reply before", since(before));
            self.report.moment("first reply after", since(after));
            self.report.numbers.insert("service_gap_ms".into(), round(since(after) - since(before)).into());
        }
        self.report.timeline.sort_by(|one, other| one.at_ms.total_cmp(&other.at_ms));
    }

    fn judge_data(&mut self, mut record: Record) -> Result<()> {
        let count = record.counter.len();
        let jump = record.first_jump();
        self.report.check(
            "counter without gap or repeat",
            jump.is_none() && count > 0,
            match jump {
                None => format!("1 to {count}"),
                Some((at, reply)) => format!("reply {} was {reply}", at + 1),
            },
        );
        self.report.numbers.insert("acknowledged_writes".into(), (count as u64 + record.keys).into());
        if record.broken.is_some() {
            self.report.check("same TCP connection", false, record.broken.unwrap_or_default());
            return Ok(());
        }
        let back = match record.read_back() {
            Ok(back) => back,
            Err(error) => {
                self.report.check("no acknowledged write missing", false, error.chain());
                return Ok(());
            }
        };
        self.report.check(
            "same TCP connection",
            back.client_id == record.client_id,
            format!(
                "{} to the guest, Redis client id {} at the start, {} at the end",
                record.local(),
                record.client_id,
                back.client_id
            ),
        );
        let missing: Vec<&str> = back.missing.iter().take(5).map(String::as_str).collect();
        self.report.check(
            "no acknowledged write missing",
            back.missing.is_empty(),
            match missing.is_empty() {
                true => format!("{} keys read back", record.keys),
                false => format!("{} of {} keys: {}...", back.missing.len(), record.keys, missing.join(", ")),
            },
        );
        let exact = i64::try_from(count).is_ok_and(|count| back.counter == count);
        self.report.check("counter is what was acknowledged", exact, format!("{} in Redis", back.counter));
        Ok(())
    }

    fn judge_boot(&mut self, before: &Boot) {
        match agent::await_boot(&self.topology.client, AGENT_LIMIT) {
            Ok(after) => self.report.check(
                "guest uptime not reset",
                after.id == before.id && after.uptime_s >= before.uptime_s,
                format!(
                    "{:.1} s, then {:.1} s, same boot id: {}",
                    before.uptime_s,
                    after.uptime_s,
                    after.id == before.id
                ),
            ),
            Err(error) => self.report.check("guest uptime not reset", false, error.chain()),
        }
    }

    fn power_off(&mut self) -> Result<()> {
        let survivor = match (self.report.survivor, self.b.as_mut()) {
            (Some('b'), Some(b)) => b,
            _ => &mut self.a,
        };
        let off = survivor.api(&["power-button"]).and_then(|_| survivor.wait_off(OFF_LIMIT));
        let serial = survivor.serial();
        let closed = serial.contains("guest: disk closed");
        let seen = off.as_ref().err().map_or_else(|| format!("guest closed its disk: {closed}"), Error::chain);
        let (fsck, aof) = if off.is_ok() {
            let scratch = self.artifacts.path("aof");
            (image::fsck(survivor.image())?, image::check_aof(survivor.image(), self.artifacts.guest_tree(), &scratch)?)
        } else {
            ((false, "not looked at: the guest did not power off".to_owned()), (false, "not looked at".to_owned()))
        };
        self.report.check("guest powered off by the power button", off.is_ok() && closed, seen);
        self.report.check("e2fsck -fn clean", fsck.0, fsck.1);
        self.report.check("redis-check-aof clean", aof.0, aof.1);
        if !self.report.passed() {
            let logs = self.logs();
            self.say(&logs);
        }
        Ok(())
    }

    fn say(&mut self, line: &str) {
        (self.tell)(line);
    }

    fn with_logs(&self, error: Error) -> Error {
        if matches!(error, Error::Interrupted) {
            return error;
        }
        Error::Command { command: "run".into(), status: error.chain(), output: format!("\n{}", self.logs()) }
    }

    fn logs(&self) -> String {
        let mut text = String::new();
        for host in std::iter::once(&self.a).chain(self.b.as_ref()) {
            let letter = host::letter(host.index);
            let serial = host.serial();
            let lines: Vec<&str> = serial.lines().collect();
            let tail = lines[lines.len().saturating_sub(15)..].join("\n");
            let events = match host.ft_events() {
                Ok(events) => events.iter().map(|event| format!("{event}\n")).collect(),
                Err(error) => format!("{}\n", error.chain()),
            };
            let vmm = host.vmm.last_words();
            text.push_str(&format!(
                "--- host {letter}, events:\n{events}--- host {letter}, VMM:\n{vmm}\n--- host {letter}, serial:\n{tail}\n"
            ));
        }
        text
    }
}

impl Fault {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Blackout => "witness hangs, both host-to-host links cut",
            Self::Device => "SIGKILL to the disk process of the primary",
            Self::Host => "SIGKILL to every process of host A at once",
            Self::Link => "both host-to-host links cut",
            Self::Standby => "SIGKILL to every process of the standby at once",
            Self::Vmm => "SIGKILL to the primary's VMM",
        }
    }
}

/// An emulated machine whose host is busy stalls for longer than the product's default of 300 ms now and
/// then.
///
/// `None` outside of the lab: the default.
#[must_use]
pub fn patience(in_lab: u64) -> Option<u64> {
    env::var_os("POLLUX_LAB").map(|_| in_lab)
}

fn pairing<'a>(options: &Options, witness: &'a Witness) -> Pairing<'a> {
    Pairing { witness: witness.address(), detect_ms: options.detect_ms }
}

/// Whether this host's VMM lives and runs the VM.
fn runs(host: &mut Host) -> bool {
    if !matches!(host.vmm.ended(), Ok(None)) {
        return false;
    }
    // A standby waits for the witness, too.
    let running = |status: &Value| match state_of(status).as_str() {
        "solo" | "syncing" | "protected" | "degraded" | "leaving" => true,
        "awaiting-witness" => status["role"] == "primary",
        _ => false,
    };
    host.ft_status().is_ok_and(|status| running(&status))
}

fn answer_of(status: &Value) -> Error {
    Error::Protocol { from: "ft status".into(), answer: status.to_string() }
}

fn state_of(status: &Value) -> String {
    status["state"].as_str().unwrap_or_default().to_lowercase()
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
