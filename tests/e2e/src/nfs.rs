//! A file server on the LAN: Linux's NFS server in the witness's namespace, and a mount of it on each host by
//! an NFS client of that host's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::artifacts::Artifacts;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::topology::{Topology, WITNESS};
use crate::{Error, Result, wait};

/// So long the server keeps what belongs to a client that it does not hear of, and waits for clients of
/// before when it starts.
pub const LEASE: Duration = Duration::from_secs(10);
/// What the server consists of, in Debian's nfs-kernel-server, and the client, in nfs-common.
const PROGRAMS: [&str; 4] =
    ["/usr/sbin/exportfs", "/usr/sbin/rpc.mountd", "/usr/sbin/rpc.nfsd", "/usr/sbin/mount.nfs4"];
/// The kernel has modules to load, and the machine may be emulated.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Serves the folder `$1` to whoever is on the LAN, until it is killed.
const SERVE: &str = r#"set -e
modprobe nfsd
mount -t tmpfs -o size=16m export "$1"
mount -t nfsd nfsd /proc/fs/nfsd
mkdir -p /var/lib/nfs/v4recovery /var/lib/nfs/rpc_pipefs
exportfs -i -o rw,sync,no_root_squash,no_subtree_check,fsid=0 "*:$1"
rpc.mountd --foreground --no-nfs-version 3 &
rpc.nfsd --no-nfs-version 3 --grace-time 10 --lease-time 10 4
wait"#;
/// Ends the server's threads, which are the kernel's.
const STOP: &str = "mount -t nfsd nfsd /proc/fs/nfsd && rpc.nfsd 0";

/// The server and its mounts; gone on drop.
#[derive(Debug)]
pub struct FileServer {
    mounts: Vec<PathBuf>,
    server: Process,
    stop: Command,
}

impl FileServer {
    /// Starts it and mounts it for both hosts; `None`: its programs are not there.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(artifacts: &Artifacts, topology: &Topology) -> Result<Option<Self>> {
        if !PROGRAMS.iter().all(|program| Path::new(program).exists()) {
            return Ok(None);
        }
        let export = folder(artifacts, "export")?;
        let export = export.display().to_string();
        let args = ["--mount", "sh", "-c", SERVE, "sh", &export];
        let server =
            Process::start(&topology.witness, Path::new("/usr/bin/unshare"), &args, &artifacts.path("nfsd.log"))?;
        let mut stop = Command::new("ip");
        stop.args(["netns", "exec", topology.witness.name(), "unshare", "--mount", "sh", "-c", STOP]);
        let mut started = Self { mounts: Vec::new(), server, stop };
        for (host, name) in topology.hosts.iter().zip(["nfs-a", "nfs-b"]) {
            let at = folder(artifacts, name)?;
            wait::until("NFS mount", START_LIMIT, || match started.server.ended()? {
                Some(status) => Ok(Some(Err(Error::Command {
                    command: "NFS server".into(),
                    status: status.to_string(),
                    output: started.server.last_words(),
                }))),
                None => mount(host, &at).map(|()| Some(Ok(()))),
            })??;
            started.mounts.push(at);
        }
        Ok(Some(started))
    }

    /// What host `index` (0 or 1) sees of it.
    #[must_use]
    pub fn mount(&self, index: usize) -> &Path {
        &self.mounts[index]
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        for at in &self.mounts {
            // What is still in use goes with its last user.
            let _ = Command::new("umount").args(["--lazy", "--force"]).arg(at).status();
        }
        let _ = self.stop.status();
    }
}

fn folder(artifacts: &Artifacts, name: &str) -> Result<PathBuf> {
    let path = artifacts.path(name);
    fs::create_dir(&path).map_err(Error::file("create", &path))?;
    Ok(path)
}

fn mount(host: &Namespace, at: &Path) -> Result<()> {
    let mut mount = Command::new("mount.nfs4");
    mount.arg(format!("{WITNESS}:/")).arg(at).args(["-o", "sec=sys,retry=0"]);
    let output = host.run(|| mount.output().map_err(Error::io("cannot run mount.nfs4")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: format!("mount.nfs4 {WITNESS}:/"),
        status: output.status.to_string(),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
