//! A hostile guest breaks nothing but itself: after each of its cases the VMM and the device processes are
//! there, and the devices work once they are reset; also where a standby takes over in the middle of it.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use engine_tests::{Image, Machine, Netns, Pair, Vm, VmOptions};
use nix::unistd::Pid;
use serde_json::json;

/// Log lines that a run of all cases may cause: each place in the code has its limit, and there are not many.
const LOG_LINES_MAX: usize = 400;
/// Bytes that a process may have had in memory: all of the guest's, and what it needs itself.
const MEMORY_MAX: u64 = 384 << 20;

/// A guest that does nothing but these cases.
fn hostile(more: &str) -> VmOptions {
    let last = hostile::cases::all().count() - 1;
    let range = std::env::var("CASES").unwrap_or_else(|_| format!("0-{last}"));
    VmOptions::new().guest(&format!("hostile={range} {more}"))
}

/// Number and text of a line about a case.
fn case_of(line: &str) -> Option<(usize, &str)> {
    let (number, rest) = line.strip_prefix("case ")?.split_once(' ')?;
    Some((number.parse().ok()?, rest))
}

/// What a run has come to.
#[derive(Default)]
struct Seen {
    passed: BTreeSet<usize>,
    failed: Vec<String>,
    ended: bool,
}

impl Seen {
    /// Reads what the guest prints until it stands still; returns the address that has it go on, or `None`
    /// at its end.
    fn until_hold(&mut self, vm: &mut Vm) -> Option<u64> {
        loop {
            let line = vm.wait_line("");
            if let Some((number, text)) = case_of(&line) {
                println!("{line}");
                if text.contains(": ok, ") {
                    self.passed.insert(number);
                } else {
                    self.failed.push(line);
                }
            } else if let Some(rest) = line.strip_prefix("hold at 0x") {
                println!("{line}");
                let address = rest.split_once(':').expect("an address").0;
                return Some(u64::from_str_radix(address, 16).expect("a number"));
            } else if line.starts_with("hostile: ") {
                self.ended = true;
                return None;
            }
        }
    }

    fn check(&self) {
        assert!(self.failed.is_empty(), "{:#?}", self.failed);
        assert!(
            self.ended && (std::env::var_os("CASES").is_some() || self.passed.len() == hostile::cases::all().count())
        );
    }
}

/// Has the guest go on that stands still until somebody writes to `address`.
fn go_on(vm: &Vm, address: u64) {
    let memory = File::options().write(true).open(vm.memory_file()).expect("open guest RAM");
    memory.write_all_at(&1_u32.to_le_bytes(), address).expect("write guest RAM");
}

fn log_is_short(vm: &Vm) {
    let log = vm.log();
    let lines = log.lines().count();
    println!("{lines} lines of log");
    assert!(lines < LOG_LINES_MAX, "{lines} lines: {log}");
}

/// No process has needed much memory at any time.
fn memory_is_bounded(processes: &[Pid]) {
    for pid in processes {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status of a process");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("peak of its memory");
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
        assert!(peak << 10 < MEMORY_MAX, "{status}");
    }
}

#[test]
fn there_are_many_names_and_no_two_are_the_same() {
    let names: Vec<_> = hostile::cases::all().map(|case| case.to_string()).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    println!("{} cases", names.len());
    assert!(names.len() >= 120);
}

#[test]
fn a_hostile_guest_breaks_nothing() {
    let machine = Machine::claim();
    let (host, image) = (Netns::new(), Image::new(&machine.dir().join("disk"), 4));
    let mut vm = hostile("hold=50").local_tap().disk(image.path()).boot(&machine, &host);
    let mut seen = Seen::default();
    let mut first = Vec::new();
    while let Some(address) = seen.until_hold(&mut vm) {
        let processes = vm.processes();
        assert_eq!(processes.len(), 4, "the VMM, its launcher and two device processes");
        assert!(first.is_empty() || first == processes, "processes {first:?} have become {processes:?}");
        memory_is_bounded(&processes);
        first = processes;
        go_on(&vm, address);
    }
    assert_eq!(vm.wait().code(), Some(0));
    seen.check();
    log_is_short(&vm);
}

/// The guest is protected while it does its worst, and its host dies after every `every` cases, before
/// anything is repaired.
fn taken_over(every: usize) {
    let pair = Pair::new();
    let options = hostile(&format!("hold={every}"));
    let mut vm = pair.boot(0, &options);
    let mut seen = Seen::default();
    let mut host = 0;
    let mut takeovers = 0;
    let mut at = seen.until_hold(&mut vm);
    while let Some(address) = at {
        // Whoever ran it has died here before.
        let standby = pair.standby(1 - host, &options);
        pair.protect(&vm, 1 - host, &json!({}));
        go_on(&vm, address);
        at = seen.until_hold(&mut vm);
        log_is_short(&vm);
        if at.is_some() {
            vm.kill_host();
            vm = standby;
            pair.wait_solo(&vm);
            takeovers += 1;
            host = 1 - host;
        }
    }
    println!("{takeovers} takeovers");
    assert_eq!(vm.wait().code(), Some(0));
    seen.check();
}

#[test]
fn a_hostile_guest_is_taken_over_in_the_middle_of_it() {
    taken_over(25);
}

/// `cargo test -p engine-tests --test hostile -- --ignored`.
#[test]
#[ignore = "takes a long time"]
fn a_hostile_guest_is_taken_over_after_each_case() {
    taken_over(1);
}
