//! The clients of chaos and the history check with real servers on this machine, without a VM: an honest
//! server passes, and one that forgets what it has acknowledged is found out.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use e2e::chaos::clients::{Clients, Testimony};
use e2e::chaos::history::{self, Ledger, Violation};
use e2e::image::guest_tool;
use e2e::namespace::Namespace;
use e2e::topology::GUEST;
use e2e::{Error, Result};

const LIMIT: Duration = Duration::from_secs(60);
/// User and group of PostgreSQL, which does not run as root.
const POSTGRES: u32 = 104;

/// Both servers of the guest in a namespace of their own, with the guest's address.
struct Servers {
    redis: Child,
    postgres: Child,
    files: tempfile::TempDir,
    tree: PathBuf,
    place: Namespace,
}

impl Servers {
    fn start(name: &str) -> Result<Self> {
        let tree =
            PathBuf::from(format!("{}-tree", std::env::var("POLLUX_GUEST_POSTGRES").expect("scripts/test sets it")));
        let place = Namespace::new(format!("pollux-{}-{name}", std::process::id()))?;
        place.ip(&format!("addr add {GUEST}/32 dev lo\n"))?;
        let files = tempfile::tempdir().map_err(Error::io("cannot make a folder"))?;
        run(Command::new("chmod").arg("755").arg(files.path()));
        run(Command::new("cp").arg("-r").arg(tree.join("var/lib/postgresql/main")).arg(files.path()));
        run(Command::new("chown").arg("-R").arg(format!("{POSTGRES}:{POSTGRES}")).arg(files.path().join("main")));
        let redis = redis(&place, &tree, files.path())?;
        let mut command = guest_tool(&tree, "usr/lib/postgresql/bin/postgres")?;
        command.arg("-D").arg(files.path().join("main")).uid(POSTGRES).gid(POSTGRES);
        command.arg("-c").arg(format!("unix_socket_directories={}", files.path().join("main").display()));
        let postgres = spawn(&place, command)?;
        Ok(Self { redis, postgres, files, tree, place })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in [&mut self.redis, &mut self.postgres] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn redis(place: &Namespace, tree: &Path, files: &Path) -> Result<Child> {
    let mut command = guest_tool(tree, "usr/bin/redis-server")?;
    command
        .args(["--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--appendonly", "no", "--dir"])
        .arg(files);
    spawn(place, command)
}

fn spawn(place: &Namespace, mut command: Command) -> Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    place.run(|| command.spawn().map_err(Error::io("cannot start a server")))
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

fn judge(testimony: &Testimony) -> Vec<Violation> {
    history::check(&testimony.operations, &testimony.contents)
}

#[test]
fn honest_servers_pass() {
    let servers = Servers::start("honest").unwrap();
    let clients = Clients::start(&servers.place, Instant::now(), Duration::from_millis(1), LIMIT).unwrap();
    clients.progress(300, LIMIT).unwrap();
    let testimony = clients.finish().unwrap();
    assert_eq!(judge(&testimony), []);
    assert!(testimony.breaks.is_empty() && testimony.other_sessions.is_empty());
    for ledger in [Ledger::Counter, Ledger::Keys, Ledger::Rows(0), Ledger::Rows(1)] {
        assert!(testimony.contents[&ledger].len() > 10, "{ledger}");
    }
}

#[test]
fn servers_that_forget_are_found_out() {
    let mut servers = Servers::start("forget").unwrap();
    let clients = Clients::start(&servers.place, Instant::now(), Duration::from_millis(1), LIMIT).unwrap();
    clients.progress(100, LIMIT).unwrap();
    // Without an append-only file Redis comes back empty. The rows are taken away and copied by the other
    // server's back door.
    servers.redis.kill().unwrap();
    servers.redis.wait().unwrap();
    servers.redis = redis(&servers.place, &servers.tree, servers.files.path()).unwrap();
    let mut back_door = servers.place.run(|| {
        let address = format!("host={GUEST} user=postgres dbname=postgres");
        postgres::Client::connect(&address, postgres::NoTls)
            .map_err(|error| Error::io("back door")(std::io::Error::other(error)))
    });
    let back_door = back_door.as_mut().unwrap();
    back_door.batch_execute("DELETE FROM ledger WHERE client = 0 AND seq = 2").unwrap();
    back_door.batch_execute("INSERT INTO ledger (client, seq, value) SELECT client, seq, value FROM ledger WHERE client = 1 AND seq = 3").unwrap();
    back_door.batch_execute("UPDATE ledger SET value = 'other' WHERE client = 1 AND seq = 4").unwrap();
    clients.progress(100, LIMIT).unwrap();
    let testimony = clients.finish().unwrap();
    let violations = judge(&testimony);
    let found = |wanted: &dyn Fn(&Violation) -> bool| assert!(violations.iter().any(wanted), "{violations:?}");
    found(&|v| matches!(v, Violation::Lost { ledger: Ledger::Keys, .. }));
    found(&|v| matches!(v, Violation::Repeated { ledger: Ledger::Counter, .. }));
    found(&|v| matches!(v, Violation::Lost { ledger: Ledger::Rows(0), seq: 2, .. }));
    found(&|v| matches!(v, Violation::Twice { ledger: Ledger::Rows(1), seq: 3, times: 2 }));
    found(&|v| matches!(v, Violation::Altered { ledger: Ledger::Rows(1), seq: 4 }));
    found(&|v| matches!(v, Violation::ReadWithHoles { .. }));
    assert!(testimony.breaks.iter().any(|(who, _, _)| who == "redis"), "{:?}", testimony.breaks);
    assert!(testimony.other_sessions.iter().any(|(who, _, _)| who == "redis"));
}
