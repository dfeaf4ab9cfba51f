//! With the feature `lab`: builds the hostile guest's first process, a workspace of its own, into `OUT_DIR`;
//! `POLLUX_HOSTILE_INIT` tells where.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    if std::env::var_os("CARGO_FEATURE_LAB").is_none() {
        return;
    }
    let dir =
        |name: &str| PathBuf::from(std::env::var_os(name).unwrap_or_else(|| panic!("no {name}: not run by cargo")));
    let hostile = dir("CARGO_MANIFEST_DIR").join("../hostile");
    let target = dir("OUT_DIR").join("hostile-init");
    for part in ["src", "init/src", "init/Cargo.toml", "init/Cargo.lock", "init/.cargo/config.toml"] {
        println!("cargo:rerun-if-changed={}", hostile.join(part).display());
    }
    let mut cargo = Command::new(dir("CARGO"));
    // In its folder, for its .cargo/config.toml; without what this build says about compilers and flags.
    cargo.current_dir(hostile.join("init")).args(["build", "--release", "--locked", "--target-dir"]).arg(&target);
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC_WORKSPACE_WRAPPER"] {
        cargo.env_remove(name);
    }
    let status = cargo.status().unwrap_or_else(|error| panic!("cargo does not start: {error}"));
    assert!(status.success(), "the hostile guest does not build: {status}");
    let program = target.join("x86_64-unknown-linux-gnu/release/hostile-init");
    println!("cargo:rustc-env=POLLUX_HOSTILE_INIT={}", program.display());
}
