//! Builds the bare-metal guest, a workspace of its own, into `OUT_DIR`; `POLLUX_GUEST` tells where.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    let dir =
        |name: &str| PathBuf::from(std::env::var_os(name).unwrap_or_else(|| panic!("no {name}: not run by cargo")));
    let guest = dir("CARGO_MANIFEST_DIR").join("../guest");
    let target = dir("OUT_DIR").join("guest");
    println!("cargo:rerun-if-changed={}", guest.join("../hostile/src").display());
    for part in ["src", "Cargo.toml", "Cargo.lock", "build.rs", "link.ld", ".cargo/config.toml"] {
        println!("cargo:rerun-if-changed={}", guest.join(part).display());
    }
    let mut cargo = Command::new(dir("CARGO"));
    // In its folder, for its .cargo/config.toml; without what this build says about compilers and flags.
    cargo
        .current_dir(&guest)
        .args(["build", "--release", "--locked", "--bin", "pollux-guest", "--target-dir"])
        .arg(&target);
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC_WORKSPACE_WRAPPER"] {
        cargo.env_remove(name);
    }
    let status = cargo.status().unwrap_or_else(|error| panic!("cargo does not start: {error}"));
    assert!(status.success(), "the guest does not build: {status}");
    let elf = target.join("x86_64-unknown-linux-gnu/release/pollux-guest");
    println!("cargo:rustc-env=POLLUX_GUEST={}", elf.display());
}
