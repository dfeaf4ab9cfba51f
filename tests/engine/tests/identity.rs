//! Nobody runs a VM by accident: hosts that come back after a blackout, without their witness, with a word of
//! yesterday, with other disks; and strangers who speak.
#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

use std::fs::{self, File};
use std::io::Write;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use engine_tests::{Client, Pair, Vm, VmOptions};
use serde_json::Value;

/// Long enough for whoever waits to ask again, more than once.
const A_WHILE: Duration = Duration::from_secs(6);
const LIMIT: Duration = Duration::from_secs(120);

fn busy() -> VmOptions {
    VmOptions::new().guest("bg_pages=100 rate=5000 disk_rate=200")
}

fn protected(pair: &Pair) -> [Vm; 2] {
    let first = pair.node(0, &busy());
    pair.client().echo();
    let second = pair.node(1, &busy());
    pair.wait_status(&first, "protected");
    pair.wait_status(&second, "standby-ready");
    [first, second]
}

fn work(client: &mut Client, requests: u64) {
    for i in 0..requests {
        client.work(i % 20, i % 2);
    }
}

/// The details of all events of this name.
fn told(vm: &Vm, name: &str) -> Vec<Value> {
    let events = vm.api().get("ft.events").body;
    let named = events.as_array().into_iter().flatten().filter(|event| event["event"] == name);
    named.map(|event| event["detail"].clone()).collect()
}

fn wait_told(vm: &Vm, name: &str, words: &str) {
    let start = Instant::now();
    while !told(vm, name).iter().any(|detail| detail.to_string().contains(words)) {
        assert!(start.elapsed() < LIMIT, "no {name} with {words:?}\n{}", vm.log());
        sleep(Duration::from_millis(20));
    }
}

/// For a while this host is a standby without a session.
fn stays_a_standby(pair: &Pair, vm: &Vm) {
    pair.wait_status(vm, "standby-empty");
    let start = Instant::now();
    while start.elapsed() < A_WHILE {
        let status = vm.api().get("ft.status").body;
        assert_eq!(status["state"], "standby-empty", "{status}\n{}", vm.log());
        sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_standby_whose_witness_is_not_mounted_stays_one() {
    let pair = Pair::new();
    let [first, mut second] = protected(&pair);
    let mut client = pair.client();
    work(&mut client, 10);
    second.kill_host();
    pair.wait_solo(&first);
    let unmounted = pair.machine.dir().join("unmounted");
    fs::create_dir(&unmounted).unwrap();
    let mut second = pair.starting(1, &busy(), "role=auto", &unmounted.join("witness"));
    second.wait_api();
    stays_a_standby(&pair, &second);
    wait_told(&second, "started-as-standby", "no record of this VM");
    let made: Vec<_> = fs::read_dir(&unmounted).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(made.iter().all(|name| name == "witness.lock"), "{made:?}");
    work(&mut client, 10);
    second.kill_host();
    let _second = pair.node(1, &busy());
    pair.wait_status(&first, "protected");
}

#[test]
fn a_word_of_force_that_was_left_in_a_unit_is_used_up() {
    let pair = Pair::new();
    let [mut first, second] = protected(&pair);
    let mut client = pair.client();
    work(&mut client, 10);
    let term = pair.wait_status(&first, "protected")["term"].as_u64().unwrap();
    first.kill_host();
    work(&mut client, 10);
    pair.wait_solo(&second);
    // Its own term, and whatever the witness is in now: the host that runs the VM answers at its address.
    for force in [term, term + 1, term + 2] {
        let mut first = pair.starting(0, &busy(), &format!("role=primary,force={force}"), pair.witness());
        assert_eq!(first.wait().code(), Some(1), "force={force}");
        assert!(first.log().contains("runs"), "force={force}: {}", first.log());
        work(&mut client, 5);
    }
    let _first = pair.node(0, &busy());
    pair.wait_status(&second, "protected");
}

#[test]
fn after_a_blackout_the_last_runner_boots_the_vm_whoever_is_back_first() {
    let pair = Pair::new();
    let mut vms = protected(&pair);
    for (round, order) in [[0, 1], [1, 0], [0, 1], [1, 0]].into_iter().enumerate() {
        let mut client = pair.client();
        work(&mut client, 20);
        let runner = usize::from(vms[1].api().get("ft.status").body["state"] == "protected");
        vms.iter_mut().for_each(Vm::kill_host);
        pair.images[runner].check(&client.last());
        for host in order {
            vms[host] = pair.node(host, &busy());
            if host != runner && host == order[0] {
                stays_a_standby(&pair, &vms[host]);
                wait_told(&vms[host], "started-as-standby", "the disks here are a copy");
            }
        }
        pair.wait_status(&vms[runner], "protected");
        assert!(told(&vms[1 - runner], "takeover-completed").is_empty(), "round {round}");
        if round % 2 == 1 {
            // The next blackout finds it on the other host.
            vms[runner].api().put("ft.switchover", None).ok();
            pair.wait_status(&vms[1 - runner], "protected");
        }
    }
}

/// The second host has run the VM alone, and both were killed: started again as `nodes`, it boots the VM, and
/// the first one is its standby.
fn boots_what_it_ran_alone(pair: &Pair, nodes: [VmOptions; 2]) -> [Vm; 2] {
    let [mut first, mut second] = protected(pair);
    let mut client = pair.client();
    first.kill_host();
    work(&mut client, 20);
    pair.wait_solo(&second);
    second.kill_host();
    pair.images[1].check(&client.last());
    let [first, second] = nodes;
    let first = pair.node(0, &first);
    stays_a_standby(pair, &first);
    let second = pair.node(1, &second);
    pair.wait_status(&second, "protected");
    pair.wait_status(&first, "standby-ready");
    [first, second]
}

#[test]
fn a_host_that_ran_the_vm_alone_boots_it_again() {
    boots_what_it_ran_alone(&Pair::new(), [busy(), busy()]);
}

#[test]
fn a_host_that_ran_the_vm_alone_and_was_rebooted_boots_it_again() {
    let pair = Pair::new();
    let [first, second] = boots_what_it_ran_alone(&pair, [busy().host_boot(2), busy().host_boot(3)]);
    assert!(told(&second, "takeover-completed").is_empty());
    // Neither has the page of counters that a killed process leaves until its host reboots: the times on
    // record are the proof.
    assert_eq!(told(&first, "resync-started").last().unwrap()["kind"], "incremental");
}

#[test]
fn a_standby_goes_on_alone_where_an_operator_has_said_after_how_long() {
    let pair = Pair::new();
    let mut vms = protected(&pair);
    vms.iter_mut().for_each(Vm::kill_host);
    let mut second = pair.starting(1, &busy(), "role=auto,blackout_wait=3", pair.witness());
    second.wait_line("ready");
    let first = pair.node(0, &busy());
    pair.wait_status(&second, "protected");
    pair.wait_status(&first, "standby-ready");
}

#[test]
fn a_witness_that_loses_its_record_is_given_it_again() {
    let pair = Pair::new();
    let [mut first, second] = protected(&pair);
    let mut client = pair.client();
    work(&mut client, 10);
    // All that was ever written there.
    for entry in fs::read_dir(pair.witness().parent().unwrap()).unwrap().map(Result::unwrap) {
        if entry.file_name().to_string_lossy().starts_with("witness") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    wait_told(&first, "witness-record-lost", "");
    wait_told(&first, "witness-record-restored", "");
    first.kill_host();
    work(&mut client, 20);
    pair.wait_solo(&second);
}

#[test]
fn a_standbys_image_that_was_changed_while_its_host_was_down_is_compared() {
    let pair = Pair::new();
    let [first, mut second] = protected(&pair);
    let mut client = pair.client();
    work(&mut client, 10);
    second.kill_host();
    pair.wait_solo(&first);
    let place = (4 << 20) - 512;
    let image = File::options().write(true).open(pair.images[1].path()).unwrap();
    image.write_all_at(b"from a backup", place).unwrap();
    drop(image);
    let second = pair.node(1, &busy());
    pair.wait_status(&first, "protected");
    assert_eq!(told(&second, "resync-started").last().unwrap()["kind"], "compare");
    drop(first);
    work(&mut client, 10);
    let [ours, theirs] = [0, 1].map(|host| {
        let mut bytes = [0; 13];
        File::open(pair.images[host].path()).unwrap().read_exact_at(&mut bytes, place).unwrap();
        bytes
    });
    assert_eq!(ours, theirs, "it was made equal");
}

/// How many of something strangers send: as many as the environment says, or so few that it takes seconds.
fn count(name: &str, few: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(few)
}

/// Numbers without end, the same in every run.
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, words: usize) -> Vec<u8> {
        let next = |_| {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.to_le_bytes()
        };
        (0..words).flat_map(next).collect()
    }
}

/// Datagrams to `ports`: noise, and what begins as a beat does.
fn send_datagrams(many: u64, ports: &[SocketAddr]) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    for i in 0..many as usize {
        let mut datagram = noise.bytes(1 + i % 24);
        if i % 2 == 0 {
            datagram.resize(ft_wire::beat::LEN, 0);
            datagram[..6].copy_from_slice(b"PLXB\x03\x00");
        }
        let _ = socket.send_to(&datagram, ports[i / 2 % ports.len()]);
    }
}

/// Connections that say nothing, something, or what begins as a greeting does.
fn connect(many: u64, door: SocketAddr) {
    let mut noise = Noise(0x2545_f491_4f6c_dd1d);
    let mut open = std::collections::VecDeque::new();
    for i in 0..many as usize {
        let Ok(mut stream) = TcpStream::connect(door) else { continue };
        let mut words = noise.bytes(i % 9);
        if i % 3 == 0 {
            words.splice(..0, *b"PLXF\x07\x00\x01\x00");
        }
        if i % 3 == 1 {
            // A record of a TLS handshake, with more to come.
            words.splice(..0, [22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]);
        }
        let _ = stream.write_all(&words);
        open.push_back(stream);
        if open.len() > 32 {
            open.pop_front();
        }
    }
}

fn resident_kib(vm: &Vm) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", vm.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn data_that_no_vm_of_a_pair_has_written_is_overwritten_only_when_told() {
    let pair = Pair::new();
    let witness = pair.witness().display();
    let ft = format!("role=standby,listen=10.77.0.2:4700,heartbeat=10.77.1.2:4701,witness={witness}");
    let standby = VmOptions::new().disk(pair.images[1].path()).tap("tap0");
    let standby = standby.standby(&pair.machine, &pair.hosts[1], &ft);
    standby.wait_api();
    let first = pair.boot(0, &VmOptions::new());
    pair.client().echo();
    let answer = pair.ask_for_protection(&first, 1, &Value::Null);
    assert!(answer.status >= 400 && answer.body.to_string().contains("overwrite=on"), "{answer:?}");
    let mut last = [0];
    let image = File::open(pair.images[1].path()).unwrap();
    image.read_exact_at(&mut last, image.metadata().unwrap().len() - 1).unwrap();
    assert_eq!(last, [1], "it was not touched");
}

/// `DATAGRAMS=1000000 CONNECTIONS=100000` takes minutes.
#[test]
fn strangers_move_nothing() {
    let pair = Pair::new();
    let [first, second] = protected(&pair);
    let mut client = pair.client();
    let before = pair.wait_status(&first, "protected")["term"].clone();
    let memory = [&first, &second].map(resident_kib);
    let begun = Instant::now();
    let (datagrams, connections) = (count("DATAGRAMS", 120_000), count("CONNECTIONS", 2_000));
    std::thread::scope(|scope| {
        // Each from the other host, which is nobody to the process there.
        for (from, to) in [(0, 2), (1, 1)] {
            let host = &pair.hosts[from];
            let door = SocketAddr::from(([10, 77, 0, to], 4700));
            let published = [door, SocketAddr::from(([10, 77, 1, to], 4701))];
            // The primary's are drawn by its kernel: any of them.
            let drawn =
                (32_768..61_000).flat_map(|port| [0, 1].map(|link| SocketAddr::from(([10, 77, link, to], port))));
            let ports: Vec<_> = if to == 2 { published.to_vec() } else { drawn.collect() };
            scope.spawn(move || {
                host.run(|| send_datagrams(datagrams / 2, &ports));
                host.run(|| connect(connections / 2, door));
            });
        }
        work(&mut client, 200);
    });
    work(&mut client, 50);
    let status = pair.wait_status(&first, "protected");
    assert_eq!(status["term"], before);
    let ready = pair.wait_status(&second, "standby-ready");
    assert!(ready["ignored_beats"].to_string().bytes().any(|byte| byte.is_ascii_digit() && byte != b'0'), "{ready}");
    for (vm, memory) in [&first, &second].into_iter().zip(memory) {
        let (log, grown) = (vm.log(), resident_kib(vm).saturating_sub(memory));
        println!(
            "{datagrams} datagrams, {connections} connections in {:.0?}: {grown} KiB more memory, {} bytes of log, {}",
            begun.elapsed(),
            log.len(),
            vm.api().get("ft.status").body["ignored_beats"]
        );
        assert!(log.len() < 64 << 10, "{} bytes of log", log.len());
        assert!(grown < 64 << 10, "{grown} KiB more memory");
        assert!(told(vm, "takeover-completed").is_empty() && told(vm, "protection-lost").is_empty());
    }
}
