//! Two QEMU processes under COLO on the network of a [`Pair`], with the same guest, and what is measured of
//! it.
//!
//! The set-up is that of QEMU's own documentation, without a disk: a mirror sends the client's frames to the
//! secondary, whose answers a comparator on the primary checks against the primary's.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use engine_tests::{Client, GUEST, GUEST_IP, Pair, die_with_us};
use serde_json::{Value, json};

use super::qmp::{Qmp, pauses};
use crate::load::{Effort, requests, stalls, writer_speed};
use crate::record::{Report, Spread};
use crate::setup::Setup;

/// Folder with the unpacked packages; scripts/bench sets it.
const QEMU: &str = "POLLUX_QEMU_COLO";
/// Until COLO runs.
const LIMIT: Duration = Duration::from_secs(30);
/// A checkpoint takes tens of milliseconds: a client that repeats itself earlier only makes work.
const REPEAT: Duration = Duration::from_secs(2);
/// Longest epoch of the page writer's run.
const WRITER_DELAY_MS: u64 = 20;
/// COLO's own default. Replies of the guest carry its clock: each of them differs, and is a checkpoint of its
/// own.
const DEFAULT_DELAY_MS: u64 = 20_000;

/// One QEMU process. Killed when dropped.
struct Qemu {
    child: Child,
    monitor: Qmp,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Ended already: fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Latency of requests alone and under COLO.
pub fn latency(setup: &Setup, effort: &Effort, report: &mut Report) {
    let pair = Pair::new();
    let mut primary = boot(&pair, setup, false);
    let mut client = client(&pair);
    let alone = Spread::of(&requests(&mut client, setup.pages, effort));
    report.add(setup, "latency_alone", "us", alone, None);
    let _secondary = protect(&pair, &mut primary, setup, false);
    client.echo();
    primary.monitor.events();
    let protected = Spread::of(&requests(&mut client, setup.pages, effort));
    report.add(setup, "latency_protected", "us", protected, None);
    let added = Spread { p50: protected.p50 - alone.p50, p99: protected.p99 - alone.p50 };
    report.add(setup, "latency_added", "us", added, None);
    let pauses = pauses(&primary.monitor.events());
    if !pauses.is_empty() {
        report.add(setup, "pause", "us", Spread::of(&pauses), None);
    }
    still_protected(&mut primary);
}

/// Speed of a page writer alone and under COLO with a checkpoint 20 ms after the last one, and the stalls
/// that its guest sees.
pub fn writer(setup: &Setup, effort: &Effort, report: &mut Report) {
    let pair = Pair::new();
    let mut primary = boot(&pair, setup, true);
    let mut client = client(&pair);
    let alone = writer_speed(&mut client, effort);
    report.add_one(setup, "writer_alone", "pages/s", alone, None);
    let _secondary = protect(&pair, &mut primary, setup, true);
    client.echo();
    let protected = writer_speed(&mut client, effort);
    report.add_one(setup, "writer_protected", "pages/s", protected, protected / alone);
    report.add(setup, "stall", "us", Spread::of(&stalls(&mut client, effort)), None);
    still_protected(&mut primary);
}

fn client(pair: &Pair) -> Client {
    let mut client = pair.client();
    client.echo();
    client.repeat_after = REPEAT;
    client
}

fn start(pair: &Pair, host: usize, setup: &Setup, writer: bool, role: &[String]) -> Qemu {
    let packages = PathBuf::from(std::env::var_os(QEMU).unwrap_or_else(|| panic!("no {QEMU}: run scripts/bench")));
    let (share, lib) = (packages.join("usr/share"), packages.join("usr/lib/x86_64-linux-gnu"));
    let monitor = pair.machine.dir().join(format!("qmp{host}"));
    let log = std::fs::File::create(pair.machine.dir().join(format!("qemu{host}.log"))).expect("log file");
    let mut command = Command::new("nice");
    command.args(["-n", "-10"]).arg(packages.join("usr/bin/qemu-system-x86_64")).env("LD_LIBRARY_PATH", lib);
    command.arg("-L").arg(share.join("qemu")).arg("-L").arg(share.join("seabios"));
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "pc,accel=kvm"]);
    // A KVM on page-table virtualisation reports an MSR of this feature that it refuses to set.
    command.args(["-cpu", "host,-arch-capabilities", "-smp", &setup.vcpus.to_string()]);
    command.args(["-m", &setup.mem_mib.to_string(), "-kernel", GUEST, "-append"]);
    command.arg(format!("ip={GUEST_IP} vcpus={} {}", setup.vcpus, setup.words(writer)));
    command.args(["-netdev", "tap,id=net0,ifname=tap0,script=no,downscript=no,vhost=off,vnet_hdr=off"]);
    command.args(["-device", "virtio-net-pci,netdev=net0,mac=52:54:00:77:00:02,disable-legacy=on,romfile="]);
    command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", monitor.display())).args(role);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    pair.hosts[host].enter_on_exec(&mut command);
    die_with_us(&mut command);
    let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    Qemu { child, monitor: Qmp::connect(&monitor) }
}

/// A guest on host 0 that nobody protects, with the sockets that COLO needs later.
fn boot(pair: &Pair, setup: &Setup, writer: bool) -> Qemu {
    let socket = |name: &str, address: &str, more: &str| format!("socket,id={name},{address}{more}");
    let listening = ",server=on,wait=off";
    let chardevs = [
        socket("mirror0", "host=10.77.0.1,port=9003", listening),
        socket("compare1", "host=10.77.0.1,port=9004", listening),
        socket("compare0", "host=127.0.0.1,port=9001", listening),
        socket("compare0-0", "host=127.0.0.1,port=9001", ""),
        socket("compare_out", "host=127.0.0.1,port=9005", listening),
        socket("compare_out0", "host=127.0.0.1,port=9005", ""),
    ];
    let mut role: Vec<String> = chardevs.into_iter().flat_map(|chardev| ["-chardev".to_owned(), chardev]).collect();
    role.extend(["-object", "iothread,id=iothread1"].map(str::to_owned));
    start(pair, 0, setup, writer, &role)
}

/// Starts the secondary on host 1 and COLO between the two; returns when it runs.
fn protect(pair: &Pair, primary: &mut Qemu, setup: &Setup, writer: bool) -> Qemu {
    // Frames reach the secondary through the mirror only.
    pair.hosts[1].ip("link set tap0 down\n");
    let role = [
        "-chardev",
        "socket,id=red0,host=10.77.0.1,port=9003,reconnect=1",
        "-chardev",
        "socket,id=red1,host=10.77.0.1,port=9004,reconnect=1",
        "-object",
        "filter-redirector,id=f1,netdev=net0,queue=tx,indev=red0",
        "-object",
        "filter-redirector,id=f2,netdev=net0,queue=rx,outdev=red1",
        "-object",
        "filter-rewriter,id=rew0,netdev=net0,queue=all",
        "-incoming",
        "tcp:10.77.0.2:9998",
    ];
    let mut secondary = start(pair, 1, setup, writer, &role.map(str::to_owned));
    let colo = json!({"capabilities": [{"capability": "x-colo", "state": true}]});
    secondary.monitor.ask("migrate-set-capabilities", &colo);
    let monitor = &mut primary.monitor;
    monitor.ask("stop", &json!({}));
    for object in filters() {
        monitor.ask("object-add", &object);
    }
    monitor.ask("migrate-set-capabilities", &colo);
    let delay_ms = if writer { WRITER_DELAY_MS } else { DEFAULT_DELAY_MS };
    monitor.ask("migrate-set-parameters", &json!({"x-checkpoint-delay": delay_ms, "max-bandwidth": 10_u64 << 30}));
    monitor.ask("cont", &json!({}));
    monitor.ask("migrate", &json!({"uri": "tcp:10.77.0.2:9998"}));
    let start = Instant::now();
    while mode(monitor) != "primary" {
        assert!(start.elapsed() < LIMIT, "COLO does not start: {}", monitor.ask("query-migrate", &json!({})));
        thread::sleep(Duration::from_millis(10));
    }
    secondary
}

fn filters() -> [Value; 4] {
    [
        json!({"qom-type": "filter-mirror", "id": "m0", "netdev": "net0", "queue": "tx", "outdev": "mirror0"}),
        json!({"qom-type": "filter-redirector", "id": "r0", "netdev": "net0", "queue": "rx", "indev": "compare_out"}),
        json!({"qom-type": "filter-redirector", "id": "r1", "netdev": "net0", "queue": "rx", "outdev": "compare0"}),
        json!({"qom-type": "colo-compare", "id": "comp0", "primary_in": "compare0-0", "secondary_in": "compare1",
               "outdev": "compare_out0", "iothread": "iothread1"}),
    ]
}

fn mode(monitor: &mut Qmp) -> String {
    monitor.ask("query-colo-status", &json!({}))["mode"].as_str().unwrap_or_default().to_owned()
}

/// A COLO that has given up lets everything through at full speed: such figures are none.
fn still_protected(primary: &mut Qemu) {
    let mode = mode(&mut primary.monitor);
    assert_eq!(mode, "primary", "COLO ended while it was measured");
}
