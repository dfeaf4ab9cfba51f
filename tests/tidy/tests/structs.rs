//! Structs are small, and either data or objects: what has methods that change it keeps its fields to itself.

use tidy::structs::{Struct, structs};
use tidy::{Source, report, sources_ending};

const FIELDS_MAX: usize = 12;

/// Structs that may have more fields, and why: each mirrors something that is as large.
const LARGE: [(&str, &str); 6] = [
    ("Flags", "the command line"),
    ("Raw", "bytes of a disk record of an earlier release"),
    ("Status", "JSON of the API"),
    ("Unsupported", "JSON of the API"),
    ("VcpuState", "one field for each set of registers that KVM has"),
    ("VmConfig", "JSON of the API"),
];

/// Structs that may be changed from outside though they have methods that change them, and why.
const OPEN: [(&str, &str); 7] = [
    ("Cx", "what a transition of the core is lent; it has nothing of its own"),
    ("Digest", "what an End frame says"),
    ("Record", "what a disk record says; any combination of fields can be on disk"),
    ("Staging", "a buffer: whoever captures fills it, whoever sends reads it"),
    ("Unopened", "an answer: reasons, and whether they last"),
    ("Vcpu", "put together in one place and moved to its thread there"),
    ("VmConfig", "JSON of the API"),
];

/// All structs of crates that ship.
fn shipped() -> Vec<Struct> {
    let sources = sources_ending(".rs");
    let manifests = sources_ending("Cargo.toml");
    let folders = manifests.iter().map(|manifest| manifest.path.trim_end_matches("Cargo.toml"));
    let shipped = folders.filter(|folder| !folder.is_empty() && !folder.starts_with("tests/"));
    shipped.flat_map(|folder| structs(&sources, &format!("{folder}src/"))).collect()
}

#[test]
fn structs_have_few_fields() {
    let mut complaints = vec![];
    let shipped = shipped();
    for one in shipped.iter().filter(|one| one.fields > FIELDS_MAX) {
        if !LARGE.iter().any(|(name, _)| *name == one.name) {
            complaints.push(format!("{}: {} has {} fields, at most {FIELDS_MAX}", one.path, one.name, one.fields));
        }
    }
    for (name, _) in LARGE {
        if !shipped.iter().any(|one| one.name == name && one.fields > FIELDS_MAX) {
            complaints.push(format!("{name} needs no exception any more"));
        }
    }
    report("large structs: split them by what they are responsible for", &complaints);
}

#[test]
fn objects_keep_their_fields_to_themselves() {
    let mut complaints = vec![];
    let shipped = shipped();
    for one in shipped.iter().filter(|one| !one.open.is_empty() && !one.changed_by.is_empty()) {
        let Struct { path, name, open, changed_by, .. } = one;
        if OPEN.iter().any(|(other, _)| other == name) {
            continue;
        }
        complaints.push(format!("{path}: {name} has `{}` and shows {}", changed_by.join("`, `"), open.join(", ")));
    }
    for (name, _) in OPEN {
        if !shipped.iter().any(|one| one.name == name && !one.open.is_empty() && !one.changed_by.is_empty()) {
            complaints.push(format!("{name} needs no exception any more"));
        }
    }
    report("structs that change themselves and let others change them, too", &complaints);
}

#[test]
fn an_open_object_is_found_wherever_its_methods_are() {
    let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    let sources = [
        source("c/src/a.rs", "struct A { pub(crate) b: u8, c: u8 } #[cfg(test)] mod t { struct T { pub d: u8 } }"),
        source("c/src/b.rs", "impl<T> Iterator for crate::a::A { fn next(&mut self) {} fn seen(&self) {} }"),
        source("d/src/a.rs", "struct D { pub e: u8 }"),
    ];
    let a = Struct {
        path: "c/src/a.rs".to_owned(),
        name: "A".to_owned(),
        fields: 2,
        open: vec!["b".to_owned()],
        changed_by: vec!["next".to_owned()],
    };
    assert_eq!(structs(&sources, "c/src/"), [a]);
}
