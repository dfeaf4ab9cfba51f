//! No two files of a crate need each other: what is above uses what is below, never the other way round.

use tidy::imports::{circles, imports};
use tidy::{Source, report, sources_ending};

/// Crates that have circles today. One that has none any more leaves this list, and none joins it.
const OPEN: [&str; 2] = ["tests/bench/src/", "tests/e2e/src/"];

#[test]
fn no_files_import_each_other_in_a_circle() {
    let sources = sources_ending(".rs");
    let crates: Vec<String> = sources_ending("Cargo.toml")
        .iter()
        .map(|manifest| format!("{}src/", manifest.path.trim_end_matches("Cargo.toml")))
        .collect();
    let mut complaints = vec![];
    for src in crates {
        let imports = imports(&sources, &src);
        let circles = circles(&imports);
        if OPEN.contains(&src.as_str()) {
            if circles.is_empty() {
                complaints.push(format!("{src} has no circle any more: take it off the list"));
            }
            continue;
        }
        for circle in circles {
            let named: Vec<String> = circle.iter().map(|module| module.join("::")).collect();
            complaints.push(format!("{src}: {}", named.join(", ")));
            for module in &circle {
                for other in imports[module].iter().filter(|other| circle.contains(*other)) {
                    complaints.push(format!("    {} uses {}", module.join("::"), other.join("::")));
                }
            }
        }
    }
    report("files that need each other", &complaints);
}

#[test]
fn a_circle_is_found_whatever_way_it_is_written() {
    let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    let found = |a: &str, b: &str| {
        let sources = [source("c/src/a/mod.rs", a), source("c/src/a/b.rs", b), source("c/src/lib.rs", "mod a;")];
        circles(&imports(&sources, "c/src/")).len()
    };
    let below = "mod b; fn f() { b::g() }";
    for above in ["use crate::a::f;", "use super::{self, f};", "fn g() { super::f() }", "fn g() { crate::a::f() }"] {
        assert_eq!(found(below, above), 1, "{above}");
        assert_eq!(found("mod b; pub use b::g;", above), 0, "passing on is no use: {above}");
        assert_eq!(found(below, &format!("#[cfg(test)] mod tests {{ {above} }}")), 0, "of tests: {above}");
    }
    assert_eq!(found(below, "mod inner { use super::super::f; }"), 1);
    assert_eq!(found(below, "mod inner { use super::f; } fn f() {}"), 0);
    assert_eq!(found(below, "pub(super) fn g() {}"), 0, "whoever may use it, it uses nothing");
}
