//! `pollux witness` with a witness in a file, images that others tell of, and a VMM that answers what it is
//! told to.

#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;

const VM: &str = "6d0b1c3c9f7c4c5e8f0e5a6c3b2a1908";

fn pollux(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pollux")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// What it prints when it is done.
fn done(arguments: &[&str]) -> String {
    let output = pollux(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What it prints when it is not.
fn refused(arguments: &[&str]) -> String {
    let output = pollux(arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn json(place: &str) -> serde_json::Value {
    serde_json::from_str(&done(&["witness", "show", place, "--json"])).unwrap()
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

#[test]
fn a_record_is_made_once_and_shown() {
    let folder = Place::new();
    let place = folder.file("vm");
    assert!(refused(&["witness", "show", &place]).contains("has no record: see `pollux witness create --help`"));
    assert!(!Path::new(&place).exists(), "to look changes nothing");
    let create = ["witness", "create", &place, "--vm", VM, "--term", "12"];
    let words = done(&create);
    assert_eq!(
        words,
        format!("VM {VM} is shut down, in term 12; disks that it ran from in term 12 or later may start it\n")
    );
    assert_eq!(done(&["witness", "show", &place]), words);
    assert_eq!(json(&place), serde_json::json!({ "vm": VM, "state": "stopped", "term": 12, "disks": 12 }));
    let again = refused(&["witness", "create", &place, "--vm", VM, "--term", "13", "--disks", "0"]);
    assert!(
        again.contains("has a record already, which is not overwritten: the VM is shut down, in term 12"),
        "{again}"
    );
    assert_eq!(json(&place)["term"], 12);
}

#[test]
fn a_vm_that_runs_is_said_to() {
    let folder = Place::new();
    let place = folder.file("vm");
    done(&["witness", "create", &place, "--vm", VM, "--term", "3", "--runs", "alpha/000000000000beef"]);
    let expected = serde_json::json!({
        "vm": VM, "state": "solo", "term": 3, "since": 3, "owner": "alpha/000000000000beef",
    });
    assert_eq!(json(&place), expected);
}

/// A pollux beside a `vhost-user-blk-repl` that says this.
fn about_image(folder: &Place, says: &str, create: &[&str]) -> Output {
    let program = folder.file("pollux");
    fs::copy(env!("CARGO_BIN_EXE_pollux"), &program).unwrap();
    let script = folder.file("vhost-user-blk-repl");
    fs::write(&script, format!("#!/bin/sh\n[ \"$*\" = 'record /images/vm1 --json' ] && {says}\n")).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    Command::new(program).args(create).output().unwrap()
}

#[test]
fn an_image_says_whose_it_is_and_how_new() {
    let told = |vm: &str, role: &str, term: u64, state: &str| {
        format!(
            "echo '{{\"record\":\"/images/vm1.pollux\",\"vm\":{vm},\"role\":\"{role}\",\"term\":{term},\"ended\":5,\
             \"image\":\"same\",\"reason\":null,\"hole\":false,\"state\":{state}}}'"
        )
    };
    let quoted = format!("\"{VM}\"");
    for (says, disks, words) in [
        (told(&quoted, "alone", 7, r#"{"alone":7}"#), Some(7), "term 7 or later may start it"),
        (told(&quoted, "primary", 7, r#"{"protected":7}"#), Some(7), "term 7 or later may start it"),
        (told(&quoted, "alone", 5, r#"{"ended":5}"#), Some(5), "term 5 or later may start it"),
        (told(&quoted, "standby", 7, r#"{"copy":7}"#), Some(7), "--ft role=primary,force=7"),
        (told("null", "alone", 7, r#"{"alone":7}"#), None, "has no usable record"),
        (told(&quoted, "copying", 7, r#""unusable""#), None, "has no usable record"),
        (told(&quoted, "alone", u64::MAX, r#"{"alone":18446744073709551615}"#), None, "it names an impossible term"),
        (r#"echo '{"record":null,"hole":true,"state":"hole"}'"#.to_owned(), None, "it has no record"),
        ("echo no such file >&2; exit 1".to_owned(), None, "no such file"),
        ("echo role=standby".to_owned(), None, "cannot ask vhost-user-blk-repl"),
    ] {
        let folder = Place::new();
        let place = folder.file("vm");
        let output = about_image(&folder, &says, &["witness", "create", &place, "--image", "/images/vm1"]);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(text.contains(words), "{says}: {text}");
        assert_eq!(output.status.success(), disks.is_some(), "{says}: {text}");
        match disks {
            Some(disks) => assert_eq!((&json(&place)["disks"], &json(&place)["vm"]), (&disks.into(), &VM.into())),
            None => assert!(!Path::new(&place).exists(), "{says}"),
        }
    }
}

/// What comes of asking a VMM whose status is this.
fn from_vmm(folder: &Place, place: &str, status: String) -> Output {
    let socket = folder.file("api");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.extend(byte);
        }
        assert!(request.starts_with(b"GET /api/v1/ft.status "));
        write!(stream, "HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n{status}", status.len()).unwrap();
    });
    let output = pollux(&["witness", "create", place, "--from", &socket]);
    server.join().unwrap();
    output
}

#[test]
fn a_vmm_says_what_it_runs() {
    for (role, vm, granted) in [("solo", VM, true), ("primary", VM, false), ("standby", VM, false), ("solo", "", false)]
    {
        let folder = Place::new();
        let place = folder.file("vm");
        let vm = if vm.is_empty() { "null".to_owned() } else { format!("\"{vm}\"") };
        let status = format!(
            "{{\"role\":\"{role}\",\"state\":\"x\",\"term\":4,\"vm\":{vm},\"node\":\"alpha/000000000000beef\",\"epoch\":1}}"
        );
        let output = from_vmm(&folder, &place, status);
        assert_eq!(output.status.success(), granted, "{role}: {output:?}");
        assert_eq!(Path::new(&place).exists(), granted);
        if granted {
            assert_eq!((&json(&place)["owner"], &json(&place)["term"]), (&"alpha/000000000000beef".into(), &4.into()));
        }
    }
}

#[test]
fn the_help_says_when_and_when_not() {
    let help = done(&["witness", "create", "--help"]);
    for part in ["When:", "When not:", "is not mounted", "--from", "--image", "force="] {
        assert!(help.contains(part), "{part} is not in:\n{help}");
    }
    assert!(refused(&["ping"]).contains("--api-socket"));
    assert!(refused(&["witness", "show", "http://x"]).contains("no http:// witness"));
    assert!(refused(&["witness", "show", "/not/there/vm"]).contains("/not/there/vm"));
}
