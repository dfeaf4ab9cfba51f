//! Nobody runs a VM by accident: hosts that come back after a blackout, without their witness, with a word of yesterday, with other
//! disks; and strangers who speak.

use std::fs::{self, File};
use std::net::UdpSocket;
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
    wait_told(&second, "waits-as-standby", "no record of this VM");
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
                wait_told(&vms[host], "waits-as-standby", "the disks here are a copy");
            }
        }
        pair.wait_status(&vms[runner], "protected");
        assert!(told(&vms[1 - runner], "took-over").is_empty(), "round {round}");
        if round % 2 == 1 {
            // The next blackout finds it on the other host.
            vms[runner].api().put("ft.switchover", None).ok();
            pair.wait_status(&vms[1 - runner], "protected");
        }
    }
}

#[test]
fn a_host_that_ran_the_vm_alone_boots_it_again() {
    let pair = Pair::new();
    let [mut first, mut second] = protected(&pair);
    let mut client = pair.client();
    first.kill_host();
    work(&mut client, 20);
    pair.wait_solo(&second);
    second.kill_host();
    pair.images[1].check(&client.last());
    let first = pair.node(0, &busy());
    stays_a_standby(&pair, &first);
    let second = pair.node(1, &busy());
    pair.wait_status(&second, "protected");
    pair.wait_status(&first, "standby-ready");
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

#[test]
fn strangers_move_nothing() {
    let pair = Pair::new();
    let [first, second] = protected(&pair);
    let mut client = pair.client();
    let before = pair.wait_status(&first, "protected")["term"].clone();
    // Both links' ports of both hosts, from one of them: noise, and beats of a stranger.
    pair.hosts[0].run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let mut word = 0x9e37_79b9_7f4a_7c15_u64;
        for i in 0..40_000_u64 {
            let mut datagram: Vec<u8> = (0..20)
                .flat_map(|_| {
                    word ^= word << 13;
                    word ^= word >> 7;
                    word ^= word << 17;
                    word.to_le_bytes()
                })
                .collect();
            if i % 2 == 0 {
                datagram[..6].copy_from_slice(b"PLXB\x02\x00");
            }
            let to = ["10.77.0.2:4700", "10.77.1.2:4701"][(i / 2 % 2) as usize];
            let _ = socket.send_to(&datagram, to);
        }
    });
    work(&mut client, 50);
    let status = pair.wait_status(&first, "protected");
    assert_eq!(status["term"], before);
    let ready = pair.wait_status(&second, "standby-ready");
    assert!(ready["ignored_beats"].to_string().bytes().any(|byte| byte.is_ascii_digit() && byte != b'0'), "{ready}");
    for vm in [&first, &second] {
        let log = vm.log();
        assert!(log.len() < 64 << 10, "{} bytes of log", log.len());
        assert!(told(vm, "took-over").is_empty() && told(vm, "protection-lost").is_empty());
    }
}
