//! Where the programs under test are: built once per test process, in the profile and target folder of the
//! test.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

const PACKAGES: [&str; 4] = ["pollux-vmm", "pollux", "vhost-user-blk-repl", "vhost-user-net-buffer"];

/// Build them, unless `POLLUX_BIN_DIR` names a folder that has them.
pub fn build() {
    dir();
}

/// Path of a program.
pub fn path(name: &str) -> PathBuf {
    dir().join(name)
}

fn dir() -> &'static PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        if let Some(dir) = std::env::var_os("POLLUX_BIN_DIR") {
            return PathBuf::from(dir);
        }
        // target/PROFILE/deps/TEST
        let exe = std::env::current_exe().expect("path of this test");
        let profile = exe.parent().and_then(|deps| deps.parent()).expect("test in a target folder");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).args(["build", "--quiet", "--target-dir"]);
        cargo.arg(profile.parent().expect("target folder"));
        for package in PACKAGES {
            cargo.args(["--package", package]);
        }
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        let status = cargo.status().unwrap_or_else(|error| panic!("cargo does not start: {error}"));
        assert!(status.success(), "the programs under test do not build: {status}");
        profile.to_path_buf()
    })
}
