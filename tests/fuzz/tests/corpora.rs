//! Each target does what it should with every input of its corpus, and with changed ones of it.
//!
//! `cargo test -p fuzz` needs no fuzzing engine; `scripts/fuzz` makes new inputs up. An input that fails
//! stays in the corpus.

#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]

use std::fs;
use std::path::{Path, PathBuf};

use fuzz::{TARGETS, Target};

/// Changed inputs of each target: a second or so for all of them.
const CHANGED: u64 = 500;
/// The most files of a corpus, and bytes of all of them.
const FILES_MAX: usize = 200;
const BYTES_MAX: u64 = 1 << 20;

fn corpus(name: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

/// Names the input of a target that fails.
struct Naming<'a>(&'a str);

impl Drop for Naming<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input was {}", self.0);
        }
    }
}

fn replay((name, run): &Target) {
    let files = corpus(name);
    assert!(!files.is_empty(), "{name} has no corpus");
    run(&[]);
    for file in &files {
        let input = fs::read(file).unwrap();
        let _naming = Naming(&file.display().to_string());
        run(&input);
    }
}

/// A generator that is good enough for this: splitmix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// One input of the corpus with a few bytes changed, removed or repeated.
fn changed(inputs: &[Vec<u8>], state: &mut u64) -> Vec<u8> {
    let mut input = inputs[next(state) as usize % inputs.len()].clone();
    for _ in 0..=next(state) % 4 {
        let (what, word) = (next(state), next(state));
        if input.is_empty() {
            input.push(word as u8);
            continue;
        }
        let at = what as usize % input.len();
        let len = (word >> 8) as usize % 16 % (input.len() - at + 1);
        match what >> 60 & 3 {
            0 => input[at] = word as u8,
            1 => input[at] ^= 1 << (word % 8),
            2 => drop(input.drain(at..at + len)),
            _ => drop(
                input
                    .splice(at..at, inputs[word as usize % inputs.len()].iter().copied().take(len).collect::<Vec<_>>()),
            ),
        }
    }
    input
}

fn change((name, run): &Target) {
    let inputs: Vec<_> = corpus(name).iter().map(|file| fs::read(file).unwrap()).collect();
    for number in 0..CHANGED {
        let input = changed(&inputs, &mut number.clone());
        let _naming = Naming(&format!("{name}, changed, number {number}: {}", input.escape_ascii()));
        run(&input);
    }
}

/// Declares the two tests of each target, and one that no target is without.
macro_rules! tests {
    ($($name:ident)+) => {
        const TESTED: &[&str] = &[$(stringify!($name)),+];

        $(
            mod $name {
                const TARGET: fuzz::Target = (stringify!($name), fuzz::$name::run);

                #[test]
                fn corpus_is_replayed() {
                    super::replay(&TARGET);
                }

                #[test]
                fn changed_inputs_are_taken() {
                    super::change(&TARGET);
                }
            }
        )+
    };
}

tests! {
    api audit_log beats block_chains delta disk_record ft_ctl http kernel messages mirror net_chains options packing
    pages virtio_pci vm_state wire witness_record
}

#[test]
fn every_target_is_tested_and_built() {
    let manifest = include_str!("../Cargo.toml");
    for (name, _) in TARGETS {
        assert!(TESTED.contains(name), "{name} has no test");
        let binary = format!("[[bin]]\nname = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"\n");
        assert!(manifest.contains(&binary), "{name} has no program");
    }
}

#[test]
fn seeds_are_what_the_encoders_write() {
    for seed in fuzz::seeds::all() {
        let file =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(seed.target).join(format!("seed-{}", seed.name));
        let is_current = fs::read(&file).is_ok_and(|input| input == seed.input);
        assert!(is_current, "{} is outdated: cargo run -p fuzz --bin seeds", file.display());
    }
}

#[test]
fn corpora_are_small() {
    let mut bytes = 0;
    for (name, _) in TARGETS {
        let files = corpus(name);
        assert!(files.len() <= FILES_MAX, "{name} has {} files", files.len());
        bytes += files.iter().map(|file| fs::metadata(file).unwrap().len()).sum::<u64>();
    }
    assert!(bytes <= BYTES_MAX, "{bytes} bytes");
}
