//! Other people's code: where it comes from, and under which licence. `cargo deny check`, with the same
//! `deny.toml`, looks at duplicates, advisories and yanked crates too, where it is installed.

use std::process::Command;

use serde_json::Value;
use tidy::{report, root, sources_ending};

/// The one registry.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The packages that are built for the one target, with every feature.
fn packages() -> Vec<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--offline", "--locked", "--all-features", "--format-version=1"];
    let output = Command::new(cargo)
        .args(arguments)
        .arg("--filter-platform=x86_64-unknown-linux-gnu")
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let nodes = metadata["resolve"]["nodes"].as_array().expect("a list of nodes");
    let is_used = |package: &&Value| nodes.iter().any(|node| node["id"] == package["id"]);
    metadata["packages"].as_array().expect("a list of packages").iter().filter(is_used).cloned().collect()
}

/// The list in `deny.toml`.
fn allowed() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml is there");
    let list = text.split_once("\nallow = [").and_then(|(_, rest)| rest.split_once(']')).expect("a list of licences").0;
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether one of the licences that an SPDX expression leaves the choice of is allowed, or all that it needs.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let expression = expression.trim();
    // `OR` binds less than `AND`.
    for (operator, all) in [(" OR ", false), (" AND ", true)] {
        let parts = split(expression, operator);
        if parts.len() > 1 {
            let mut parts = parts.into_iter().map(|part| is_allowed(part, allowed));
            return if all { parts.all(|part| part) } else { parts.any(|part| part) };
        }
    }
    match expression.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
        Some(inner) => is_allowed(inner, allowed),
        None => allowed.iter().any(|licence| licence == expression),
    }
}

/// The parts of an expression between operators that stand outside parentheses.
fn split<'a>(expression: &'a str, operator: &str) -> Vec<&'a str> {
    let depth = |text: &str| text.matches('(').count() - text.matches(')').count();
    let mut parts = vec![];
    let mut start = 0;
    for (at, _) in expression.match_indices(operator) {
        if depth(&expression[..at]) == 0 {
            parts.push(&expression[start..at]);
            start = at + operator.len();
        }
    }
    parts.push(&expression[start..]);
    parts
}

#[test]
fn licences_are_permissive_and_sources_known() {
    let allowed = allowed();
    let mut complaints = vec![];
    for package in packages() {
        let name = format!("{} {}", package["name"], package["version"]);
        let licence = package["license"].as_str().unwrap_or_default().replace('/', " OR ");
        if !is_allowed(&licence, &allowed) {
            complaints.push(format!("{name} is under {licence:?}, which deny.toml does not allow"));
        }
        if package["source"].as_str().is_some_and(|source| source != REGISTRY) {
            complaints.push(format!("{name} comes from {}", package["source"]));
        }
    }
    report("dependencies", &complaints);
}

#[test]
fn versions_are_named() {
    let mut complaints = vec![];
    for manifest in sources_ending("Cargo.toml") {
        for (number, line) in manifest.text.lines().enumerate() {
            if line.contains("= \"*\"") || line.contains("git = \"") {
                complaints.push(format!("{}:{}: {line}", manifest.path, number + 1));
            }
        }
    }
    report("dependencies without a version, or from a repository", &complaints);
}

#[test]
fn expressions_are_read() {
    let allowed = ["MIT", "ISC"].map(str::to_owned);
    for expression in ["MIT", "GPL-2.0 OR MIT", "MIT AND ISC", "(GPL-2.0 OR MIT) AND ISC", "GPL-2.0 AND MIT OR ISC"] {
        assert!(is_allowed(expression, &allowed), "{expression}");
    }
    for expression in ["", "GPL-2.0", "MIT AND GPL-2.0", "(MIT OR ISC) AND GPL-2.0", "MIT WITH some-exception"] {
        assert!(!is_allowed(expression, &allowed), "{expression}");
    }
}
