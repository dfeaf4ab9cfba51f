//! Who may import whom: the arrows of ARCHITECTURE.md, one way only.

use tidy::imports::imports;
use tidy::{Source, report, sources_ending};

/// Crate folder, and which of our crates its code may depend on. Test crates (`tests/`) may use anything and
/// are used by nothing.
const ARROWS: [(&str, &[&str]); 13] = [
    ("device-kit", &["device-api", "ft-proto", "ft-wire", "host-kit", "pollux-api"]),
    ("device-kit/api", &["ft-wire"]),
    ("ft/proto", &[]),
    ("ft/wire", &["ft-proto"]),
    ("ft/transport", &["ft-proto", "ft-wire", "host-kit"]),
    ("ft", &["device-api", "ft-proto", "ft-transport", "ft-wire", "host-kit", "pollux-api"]),
    ("host-kit", &[]),
    ("ft/pair", &["ft-transport", "ft-wire", "host-kit"]),
    ("pollux", &["ft", "ft-pair", "ft-proto", "ft-transport", "ft-wire", "host-kit", "pollux-api"]),
    ("pollux-api", &[]),
    (
        "vhost-user-blk-repl",
        &["device-api", "device-kit", "ft-proto", "ft-transport", "ft-wire", "host-kit", "pollux-api"],
    ),
    ("vhost-user-net-buffer", &["device-api", "device-kit", "ft-proto", "ft-wire", "host-kit", "pollux-api"]),
    ("vmm", &["device-api", "ft", "ft-proto", "ft-wire", "host-kit", "pollux-api"]),
];

/// What is in the VMM's `src`, and what of it that may use: from the top to the bottom. `ft_adapter` and
/// `ft_api` may name the engine, too; all others are mechanism and know no epochs.
const VMM_ARROWS: [(&str, &[&str]); 18] = [
    ("run", &["api", "cli", "contract", "control", "files", "ft_adapter", "logging", "process"]),
    ("cli", &["api", "control", "ft_api"]),
    ("control", &["api", "contract", "ft_api", "vm"]),
    ("api", &["contract", "ft_api", "vm"]),
    ("ft_adapter", &["contract", "devices", "files", "ft_api", "legacy", "machine", "process", "virtio", "vm"]),
    ("files", &["ft_api", "process"]),
    ("contract", &["ft_api"]),
    ("ft_api", &[]),
    ("vm", &["boot", "devices", "legacy", "machine"]),
    ("devices", &["machine", "pci", "process", "vhost_user", "virtio"]),
    ("process", &[]),
    ("vhost_user", &["machine", "virtio"]),
    ("virtio", &["machine", "pci"]),
    ("pci", &["machine"]),
    ("boot", &["legacy", "machine"]),
    ("legacy", &["machine"]),
    ("machine", &[]),
    ("logging", &[]),
];
/// These two may name the engine.
const ENGINE_IN_VMM: [&str; 2] = ["vmm/src/ft_adapter/", "vmm/src/ft_api.rs"];

fn manifests() -> Vec<(String, Source)> {
    let folder = |path: &str| path.trim_end_matches("Cargo.toml").trim_end_matches('/').to_owned();
    sources_ending("Cargo.toml")
        .into_iter()
        .map(|s| (folder(&s.path), s))
        .filter(|(folder, _)| !folder.is_empty())
        .collect()
}

fn package(manifest: &Source) -> &str {
    let name = manifest.text.lines().find_map(|line| line.strip_prefix("name = "));
    name.unwrap_or_default().trim_matches('"')
}

/// (section, dependency) pairs of a manifest.
fn dependencies(manifest: &Source) -> Vec<(&str, &str)> {
    let mut section = "";
    let mut found = vec![];
    for line in manifest.text.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if section.ends_with("dependencies") && !line.starts_with('#') {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            found.push((section, name));
        }
    }
    found.retain(|(_, name)| !name.is_empty());
    found
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let manifests = manifests();
    let ours: Vec<&str> = manifests.iter().map(|(_, manifest)| package(manifest)).collect();
    let in_tests: Vec<&str> = manifests
        .iter()
        .filter(|(folder, _)| folder.starts_with("tests/"))
        .map(|(_, manifest)| package(manifest))
        .collect();
    let mut complaints = vec![];
    for (folder, manifest) in manifests.iter().filter(|(folder, _)| !folder.starts_with("tests/")) {
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| name == folder) else {
            complaints.push(format!("{}: a new crate needs its line in tests/tidy/tests/arrows.rs", manifest.path));
            continue;
        };
        for (section, name) in dependencies(manifest) {
            let test_only = section == "dev-dependencies" && !in_tests.contains(&name);
            if ours.contains(&name) && !allowed.contains(&name) && !test_only {
                complaints.push(format!("{}: must not depend on {name}", manifest.path));
            }
        }
    }
    report("dependencies go one way", &complaints);
}

#[test]
fn folders_of_the_vmm_use_each_other_along_the_arrows() {
    let mut complaints = vec![];
    for (at, (name, allowed)) in VMM_ARROWS.iter().enumerate() {
        let above = allowed.iter().filter(|other| VMM_ARROWS[..=at].iter().any(|(name, _)| name == *other));
        complaints.extend(above.map(|other| format!("{name}: {other} is not below it in the table")));
    }
    for (module, used) in imports(&sources_ending(".rs"), "vmm/src/") {
        let Some((_, allowed)) = VMM_ARROWS.iter().find(|(name, _)| *name == module[0]) else {
            complaints.push(format!("vmm/src/{}: needs its line in tests/tidy/tests/arrows.rs", module[0]));
            continue;
        };
        for other in used.iter().filter(|other| other[0] != module[0] && !allowed.contains(&other[0].as_str())) {
            complaints.push(format!("vmm: {} must not use {}", module.join("::"), other.join("::")));
        }
    }
    report("the VMM's folders use what is below them", &complaints);
}

#[test]
fn only_the_adapter_of_the_vmm_names_the_engine() {
    let mut complaints = vec![];
    for source in sources_ending(".rs") {
        if !source.path.starts_with("vmm/src/") || ENGINE_IN_VMM.iter().any(|at| source.path.starts_with(at)) {
            continue;
        }
        for (number, line) in source.text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let named = code.match_indices("ft::").any(|(at, _)| {
                let before = code[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
            });
            if named {
                complaints.push(format!("{}:{}: {}", source.path, number + 1, line.trim()));
            }
        }
    }
    report("the VMM is mechanism: only its FT adapter and its FT API know the engine", &complaints);
}

/// What a program does, and not its tests: (path and line, code) of each line of the product.
fn product_code() -> Vec<(String, String)> {
    let mut found = vec![];
    for source in sources_ending(".rs") {
        let path = &source.path;
        if path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs") {
            continue;
        }
        let code = source.text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap_or_default();
            found.push((format!("{path}:{}", number + 1), line.to_owned()));
        }
    }
    found
}

#[test]
fn core_and_codecs_are_pure() {
    let banned = ["std::thread", "std::net", "std::fs", "std::process", "Instant::now", "SystemTime", "unsafe "];
    let mut complaints = vec![];
    for folder in ["ft/proto/src/", "ft/wire/src/"] {
        for (at, code) in product_code().iter().filter(|(at, _)| at.starts_with(folder)) {
            if let Some(word) = banned.iter().find(|word| code.contains(**word)) {
                complaints.push(format!("{at}: {word}"));
            }
        }
        let lib = format!("{folder}lib.rs");
        let root = sources_ending("lib.rs").into_iter().find(|source| source.path == lib);
        if !root.is_some_and(|root| root.text.contains("#![forbid(unsafe_code)]")) {
            complaints.push(format!("{lib}: #![forbid(unsafe_code)] is gone"));
        }
    }
    report("ft-proto and ft-wire have no I/O, clock, thread or unsafe code", &complaints);
}

#[test]
fn the_core_does_not_know_how_anything_is_encoded() {
    let codecs = ["postcard", "twox-hash", "zerocopy", "zstd"];
    let mut complaints = vec![];
    for (folder, manifest) in manifests().iter().filter(|(folder, _)| folder == "ft/proto") {
        let found = dependencies(manifest).into_iter().filter(|(_, name)| codecs.contains(name));
        complaints.extend(found.map(|(_, name)| format!("{folder}: must not depend on {name}")));
    }
    report("bytes are the business of ft-wire", &complaints);
}

#[test]
fn sockets_between_hosts_are_in_the_transport_only() {
    let banned = ["TcpStream", "TcpListener", "UdpSocket", "socket2", "sockopt::Tcp"];
    let mut complaints = vec![];
    // A host joins a pair before there is anything that it could be protected with.
    let allowed = ["ft/transport/src/", "ft/pair/src/invitation.rs", "ft/pair/src/joining.rs"];
    for (at, code) in product_code().iter().filter(|(at, _)| !allowed.iter().any(|place| at.starts_with(place))) {
        if let Some(word) = banned.iter().find(|word| code.contains(**word)) {
            complaints.push(format!("{at}: {word}"));
        }
    }
    report("ft-transport is the only crate with sockets between hosts", &complaints);
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    // A manifest that is a workspace of its own (the bare-metal guest) repeats the lints instead.
    let bare = |(_, manifest): &&(String, Source)| {
        !manifest.text.contains("[lints]\nworkspace = true") && !manifest.text.contains("[workspace]")
    };
    let complaints: Vec<String> = manifests().iter().filter(bare).map(|(_, manifest)| manifest.path.clone()).collect();
    report("manifests without [lints] workspace = true", &complaints);
}
