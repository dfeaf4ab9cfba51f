//! `pollux audit verify` on logs as a VMM writes them.

#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]

use std::path::Path;
use std::process::Command;

use pollux_api::audit::{Chain, Event};

fn verify(arguments: &[&str], dir: &Path) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pollux"));
    let output = command.current_dir(dir).args(["audit", "verify"]).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

/// A log of so many entries.
fn write(path: &Path, chain: &mut Chain, entries: usize) {
    let mut text = Vec::new();
    for _ in 0..entries {
        let line = chain.entry("2026-01-02T03:04:05Z", Event::Lost { entries: 1, reason: "full".to_owned() });
        chain.written(&line);
        text.extend([&line[..], b"\n"].concat());
    }
    std::fs::write(path, text).unwrap();
}

#[test]
fn a_whole_log_is_summed_up_and_a_changed_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut chain = Chain::default();
    write(&dir.join("a.1"), &mut chain, 3);
    write(&dir.join("a"), &mut chain, 2);
    let (code, text) = verify(&["a.1", "a"], dir);
    assert_eq!(code, 0, "{text}");
    let start = "the chain is whole: 5 entries, 1 to 5; the last of 2026-01-02T03:04:05Z, hash ";
    assert!(text.starts_with(start), "{text}");
    assert!(text.ends_with("\n  5 entries could not be written: see the `lost` ones\n"), "{text}");
    let hash = text[start.len()..].lines().next().unwrap().to_owned();
    assert_eq!(verify(&["a", "--contains", &hash], dir).0, 0);
    assert!(verify(&["a"], dir).1.contains("\n  entry 4 follows others, which are in no file that was given\n"));
    let missing = verify(&["a.1", "--contains", &hash], dir);
    assert_eq!(missing.0, 1);
    assert!(missing.1.contains(&format!("has no entry with the hash {hash}")), "{}", missing.1);
    let json: serde_json::Value = serde_json::from_str(&verify(&["a.1", "a", "--json"], dir).1).unwrap();
    assert_eq!((&json["entries"], &json["hash"]), (&5.into(), &hash.into()));

    let text = std::fs::read_to_string(dir.join("a.1")).unwrap();
    std::fs::write(dir.join("a.1"), text.replacen("full", "fuel", 1)).unwrap();
    let (code, text) = verify(&["a.1", "a"], dir);
    let expected =
        "pollux: the chain of the audit log breaks: a.1 + a, line 2: it does not follow from the line before: ";
    assert!(code == 1 && text.starts_with(expected), "{text}");
}

#[test]
fn what_is_no_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("b"), "root:x:0\n\u{1b}[2J\n").unwrap();
    let other = verify(&["b"], dir);
    assert_eq!(other, (1, "pollux: the chain of the audit log breaks: b, line 1: it is not an entry\n".to_owned()));
    let none = verify(&["none"], dir);
    assert!(none.0 == 1 && none.1.starts_with("pollux: cannot read the audit log none: No such file"), "{}", none.1);
    std::fs::write(dir.join("empty"), "").unwrap();
    assert_eq!(verify(&["empty"], dir), (0, "there is no entry\n".to_owned()));
}
