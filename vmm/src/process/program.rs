//! Where the programs of device processes are.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Program that serves disks.
pub(crate) const DISK_PROGRAM: &str = "vhost-user-blk-repl";
/// Program that serves network cards.
pub(crate) const NET_PROGRAM: &str = "vhost-user-net-buffer";

/// Directory with the device programs; without it they are looked for beside the VMM and then in `PATH`.
pub const DIRECTORY_VARIABLE: &str = "POLLUX_DEVICE_DIR";

/// The program's file: in the directory of the environment, beside the VMM (or one above, where test binaries
/// are), in PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let is_file = |path: PathBuf| path.is_file().then_some(path);
    if let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE).filter(|directory| !directory.is_empty()) {
        return is_file(Path::new(&directory).join(program));
    }
    let executable = std::env::current_exe().ok();
    let near = executable.iter().flat_map(|path| path.ancestors().skip(1).take(2)).map(Path::to_owned);
    let path = std::env::var_os("PATH").unwrap_or_default();
    near.chain(std::env::split_paths(OsStr::new(&path))).find_map(|directory| is_file(directory.join(program)))
}
