//! A protected guest outlives its host: what was answered is never lost, what is not committed is never seen.

use std::fs::File;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use engine_tests::pattern::{PAGE, WORDS, fill_page};
use engine_tests::wire::op;
use engine_tests::{GUEST, GUEST_IP, Pair, Proxy, Stream, Vm, VmOptions};
use nix::sys::signal::{Signal, kill};
use serde_json::json;

/// A busy guest: answers, writes pages in the background, writes and reads its disk.
fn busy() -> VmOptions {
    VmOptions::new().guest("bg_pages=200 rate=20000 disk_rate=300")
}

#[test]
fn the_standby_takes_over_when_the_host_dies() {
    let pair = Pair::new();
    let [mut vm, mut standby] = pair.protected(&busy(), &json!({}));
    let mut client = pair.client();
    for i in 0..300 {
        client.work(i % 50, i % 3);
    }
    let before = client.last();
    vm.kill_host();
    client.longest = Duration::ZERO;
    for i in 0..300 {
        client.work(i % 50, i % 3);
    }
    println!("longest wait for a reply: {:?}", client.longest);
    assert!(client.last().background > before.background && client.last().disk_checked > before.disk_checked);
    assert_eq!(pair.wait_status(&standby, "solo")["role"], "solo");
    assert_eq!(standby.power_off(&mut client).code(), Some(0));
    pair.images[1].check(&client.last());
}

#[test]
fn a_guest_that_its_host_cannot_boot_again_goes_on_at_the_standby() {
    let pair = Pair::new();
    let kernel = pair.machine.dir().join("kernel");
    std::fs::copy(GUEST, &kernel).expect("copy the guest");
    let [vm, mut standby] = pair.protected(&busy().kernel(&kernel), &json!({}));
    let mut client = pair.client();
    client.work(10, 2);
    // As on a file server that has lost its files.
    File::options().write(true).open(&kernel).and_then(|file| file.set_len(64)).expect("truncate the guest");
    let answer = vm.api().put("vm.reboot", None);
    assert_eq!(answer.status, 500, "{}", answer.body);
    client.work(10, 2);
    assert_eq!(pair.wait_status(&standby, "solo")["role"], "solo");
    assert_eq!(pair.wait_status(&vm, "fenced")["role"], "none");
    assert_eq!(standby.power_off(&mut client).code(), Some(0));
    pair.images[1].check(&client.last());
}

#[test]
fn drivers_that_have_taken_no_feature_are_taken_over() {
    let pair = Pair::new();
    let [mut vm, mut standby] =
        pair.protected(&VmOptions::new().guest("bare=1 bg_pages=50 rate=2000 disk_rate=300"), &json!({}));
    let mut client = pair.client();
    for i in 0..100 {
        client.work(i % 50, i % 3);
    }
    let before = client.last();
    vm.kill_host();
    for i in 0..100 {
        client.work(i % 50, i % 3);
    }
    assert!(client.last().disk_checked > before.disk_checked);
    assert_eq!(standby.power_off(&mut client).code(), Some(0));
    pair.images[1].check(&client.last());
}

#[test]
fn tcp_streams_outlive_the_host() {
    let pair = Pair::new();
    let [mut vm, standby] = pair.protected(&VmOptions::new(), &json!({}));
    let [mut to, mut from] = [Stream::to_guest(&pair.lan, GUEST_IP), Stream::from_guest(&pair.lan, GUEST_IP)];
    let mut both = |bytes: u64| {
        let (mut sent, mut received) = (0, 0);
        while sent < bytes || received < bytes {
            sent += to.send();
            received += from.receive();
        }
    };
    both(8 << 20);
    vm.kill_host();
    both(8 << 20);
    assert_eq!(pair.wait_status(&standby, "solo")["role"], "solo");
    // The guest has checked what it was sent.
    pair.client().echo();
}

#[test]
fn requests_in_flight_survive() {
    let pair = Pair::new();
    let [mut vm, standby] = pair.protected(&busy(), &json!({}));
    let mut client = pair.client();
    for i in 0..20 {
        client.work(i, 2);
    }
    // Killed by another thread, while requests are under way.
    let killer = std::thread::spawn(move || {
        vm.wait_line("print 1");
        vm.kill_host();
    });
    client.ask(op::PRINT, 1);
    for i in 0..500 {
        client.work(i % 50, i % 2);
    }
    killer.join().expect("killer");
    drop(standby);
}

#[test]
fn nothing_leaves_before_it_is_committed() {
    let pair = Pair::new();
    let vm = pair.boot(0, &busy());
    let standby = pair.standby(1, &busy());
    let mut client = pair.client();
    client.echo();
    pair.protect(&vm, 1, &json!({"detect_ms": 0}));
    client.work(10, 1);
    standby.freeze();
    let first = client.send();
    for _ in 1..50 {
        client.send();
    }
    let left = client.receive(Duration::from_secs(2));
    assert_eq!(left, None, "a reply left that the standby does not have: {}", vm.api().get("ft.events").body);
    standby.signal_all(Signal::SIGCONT);
    for seq in first..first + 50 {
        let reply = client.receive(Duration::from_secs(10));
        assert_eq!(reply.map(|reply| reply.seq), Some(seq), "in order, none missing");
    }
    client.work(10, 1);
}

#[test]
fn part_of_an_epoch_is_never_applied() {
    let pair = Pair::new();
    // Epochs of one request and nothing else.
    let options = VmOptions::new().guest("pages=2000 disk_rate=0");
    let (vm, standby) = (pair.boot(0, &options), pair.standby(1, &options));
    let (listen, to) = (SocketAddr::from(([10, 77, 0, 2], 4800)), SocketAddr::from(([10, 77, 0, 2], 4700)));
    let proxy = Proxy::new(&pair.hosts[1], listen, to);
    let mut client = pair.client();
    client.echo();
    pair.protect(&vm, 1, &json!({"peer": listen, "detect_ms": 0}));
    client.work(100, 1);
    // Much less than the pages of the next request.
    proxy.stall_after(1 << 20);
    client.send_work(1900, 0);
    proxy.wait_stalled();
    assert_eq!(client.receive(Duration::from_millis(300)), None, "a reply left that the standby does not have");
    assert_one_point_in_time(&memory_at_rest(&standby));
    proxy.stall_after(1 << 20);
    proxy.wait_stalled();
    assert_eq!(client.receive(Duration::from_millis(300)), None, "a reply left that the standby does not have");
    let before = memory_at_rest(&standby);
    assert_one_point_in_time(&before);
    proxy.cut();
    pair.wait_status(&standby, "standby-empty");
    assert!(standby.memory() == before, "the standby has applied part of an epoch");
}

/// The memory of a standby whose stream is held up, when what had come before is applied.
fn memory_at_rest(standby: &Vm) -> Vec<u8> {
    let (mut memory, mut equal) = (standby.memory(), 0);
    while equal < 5 {
        std::thread::sleep(Duration::from_millis(200));
        let now = standby.memory();
        equal = if now == memory { equal + 1 } else { 0 };
        memory = now;
    }
    memory
}

/// The guest's pages must be what its own table of generations, which lies behind them, says. Only the one
/// page that it was rewriting may differ.
fn assert_one_point_in_time(memory: &[u8]) {
    const PAGES: usize = 2000;
    // The last page has not been rewritten yet: it has not been sent.
    let last = page_bytes(PAGES as u64 - 1, 1);
    let last = memory.chunks_exact(PAGE).position(|chunk| chunk == last).expect("the working set in guest RAM");
    let set = &memory[(last + 1 - PAGES) * PAGE..];
    let (generations, _) = set[PAGES * PAGE..].as_chunks::<8>();
    let generation = |page: usize| u64::from_le_bytes(generations[page]);
    let wrong = (0..PAGES).filter(|page| set[page * PAGE..][..PAGE] != page_bytes(*page as u64, generation(*page)));
    let wrong: Vec<_> = wrong.collect();
    assert!(wrong.len() <= 1, "the standby's memory mixes epochs: pages {wrong:?}");
    assert!((0..100).all(|page| generation(page) == 2), "an answered request is not there");
}

fn page_bytes(page: u64, generation: u64) -> Vec<u8> {
    let mut words = [0; WORDS];
    fill_page(&mut words, page, generation);
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn a_standby_that_is_not_built_like_the_primary_is_found_out_before_the_first_checkpoint() {
    let pair = Pair::new();
    let mut vm = pair.boot(0, &busy());
    let standby = pair.standby(1, &busy().flag("--serial", "off"));
    let mut client = pair.client();
    client.work(10, 1);
    let refused = pair.ask_for_protection(&vm, 1, &json!({}));
    let reason = "serial port: none here, one at the primary: start the standby with the same";
    assert!(refused.status == 500 && refused.body.to_string().contains(reason), "{refused:?}");
    let events = vm.api().get("ft.events").ok().to_string();
    assert!(!events.contains("memory-copy-started"), "{events}");
    pair.wait_status(&vm, "unprotected");
    pair.wait_status(&standby, "standby-empty");
    client.work(10, 1);
    assert_eq!(vm.power_off(&mut client).code(), Some(0));
}

#[test]
fn the_primary_goes_on_alone_when_the_standby_dies() {
    let pair = Pair::new();
    let [mut vm, mut standby] = pair.protected(&busy(), &json!({}));
    let mut client = pair.client();
    client.work(10, 1);
    standby.kill_host();
    for i in 0..200 {
        client.work(i % 50, i % 2);
    }
    pair.wait_solo(&vm);
    assert_eq!(vm.power_off(&mut client).code(), Some(0));
    pair.images[0].check(&client.last());
}

#[test]
fn a_dead_device_process_is_a_dead_host() {
    for name in ["vhost-user-blk-repl", "vhost-user-net-buffer"] {
        let pair = Pair::new();
        let [vm, standby] = pair.protected(&busy(), &json!({}));
        let mut client = pair.client();
        client.work(10, 1);
        kill(vm.device(name), Signal::SIGKILL).expect("kill a device process");
        for i in 0..200 {
            client.work(i % 50, i % 2);
        }
        pair.wait_solo(&standby);
        // Its VMM stays, to tell why.
        pair.wait_status(&vm, "fenced");
    }
}

#[test]
fn takeovers_back_and_forth() {
    back_and_forth(4);
}

/// `cargo test -p engine-tests --test takeover -- --ignored`; `TAKEOVERS=N` says how many.
#[test]
#[ignore = "takes a long time"]
fn a_thousand_takeovers() {
    let takeovers = std::env::var("TAKEOVERS").ok().and_then(|text| text.parse().ok()).unwrap_or(1000);
    back_and_forth(takeovers);
}

fn back_and_forth(takeovers: usize) {
    let pair = Pair::new();
    let mut vm = pair.boot(0, &busy());
    let mut client = pair.client();
    client.echo();
    for i in 1..=takeovers {
        let standby = pair.standby(i % 2, &busy());
        pair.protect(&vm, i % 2, &json!({}));
        for n in 0..50 {
            client.work(n % 30, n % 2);
        }
        vm.kill_host();
        vm = standby;
        for n in 0..20 {
            client.work(n % 30, n % 2);
        }
        pair.wait_solo(&vm);
    }
    assert_eq!(vm.power_off(&mut client).code(), Some(0));
    pair.images[takeovers % 2].check(&client.last());
}

#[test]
fn protection_ends_when_asked() {
    let pair = Pair::new();
    let [mut vm, mut standby] = pair.protected(&busy(), &json!({}));
    let mut client = pair.client();
    client.work(10, 1);
    vm.api().put("ft.stop", None).ok();
    pair.wait_solo(&vm);
    client.work(10, 1);
    standby.signal(Signal::SIGTERM);
    assert_eq!(standby.wait().code(), Some(0));
    client.work(10, 1);
    assert_eq!(vm.power_off(&mut client).code(), Some(0));
}

#[test]
fn two_vcpus_are_taken_over() {
    let pair = Pair::new();
    // Some epochs are so large that both copy them.
    let options = VmOptions::new().guest("pages=600 bg_pages=200 rate=20000 disk_rate=300").vcpus(2);
    let [mut vm, mut standby] = pair.protected(&options, &json!({}));
    let mut client = pair.client();
    for i in 0..100 {
        client.work(i * 7 % 600, i % 2);
    }
    let before = client.last();
    assert!(before.vcpus == 2 && before.background > 0);
    vm.kill_host();
    while client.work(5, 1).background < before.background + 1000 {}
    assert_eq!(standby.power_off(&mut client).code(), Some(0));
    pair.images[1].check(&client.last());
}

#[test]
fn one_side_goes_on_when_the_hosts_are_cut_off_from_each_other() {
    let pair = Pair::new();
    let vms = pair.protected(&busy(), &json!({}));
    let mut client = pair.client();
    client.work(10, 1);
    pair.hosts[0].ip("link set repl down\nlink set beat down\n");
    for i in 0..300 {
        client.work(i % 50, i % 2);
    }
    let state = |vm: &Vm| vm.api().get("ft.status").ok()["state"].as_str().map(str::to_owned);
    // Which of them answered is for the witness to say; the other one must not run.
    let start = Instant::now();
    loop {
        let states = vms.each_ref().map(state);
        let count = |names: &[&str]| states.iter().flatten().filter(|state| names.contains(&state.as_str())).count();
        assert!(count(&["solo"]) < 2, "both run: {states:?}");
        if count(&["solo"]) == 1 && count(&["fenced", "standby-empty", "standby-ready"]) == 1 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{states:?}");
        client.work(1, 0);
    }
}

#[test]
fn a_primary_that_was_frozen_cannot_speak_any_more() {
    let pair = Pair::new();
    let [vm, mut standby] = pair.protected(&busy(), &json!({}));
    let mut client = pair.client();
    client.work(10, 1);
    vm.signal_all(Signal::SIGSTOP);
    for i in 0..50 {
        client.work(i % 50, i % 2);
    }
    pair.wait_solo(&standby);
    vm.signal_all(Signal::SIGCONT);
    // Its guest is behind: any reply of it fails the client's checks.
    for i in 0..300 {
        client.work(i % 50, i % 2);
    }
    pair.wait_status(&vm, "fenced");
    client.work(10, 1);
    assert_eq!(standby.power_off(&mut client).code(), Some(0));
}

#[test]
fn a_protected_guest_resets_pauses_and_ends() {
    let pair = Pair::new();
    let [mut vm, mut standby] = pair.protected(&busy(), &json!({}));
    let mut client = pair.client();
    client.work(10, 1);
    vm.api().put("vm.pause", None).ok();
    client.send();
    assert_eq!(client.receive(Duration::from_millis(100)), None, "a paused guest answers");
    vm.api().put("vm.resume", None).ok();
    client.work(10, 1);
    for how in 0..3 {
        vm.wait_line("ready");
        client.reset(how);
    }
    vm.wait_line("ready");
    client.work(10, 1);
    client.ask(op::POWER_OFF, 0);
    assert_eq!(vm.wait().code(), Some(0));
    // The VM has ended: the standby does not bring it back.
    client.send();
    assert_eq!(client.receive(Duration::from_secs(3)), None, "the guest is back from the dead");
    standby.signal(Signal::SIGTERM);
    assert_eq!(standby.wait().code(), Some(0));
}

#[test]
fn a_primary_that_is_told_to_end_hands_over() {
    let pair = Pair::new();
    let [mut vm, mut standby] = pair.protected(&busy(), &json!({}));
    let mut client = pair.client();
    for i in 0..20 {
        client.work(i, 1);
    }
    vm.signal(Signal::SIGTERM);
    assert_eq!(vm.wait().code(), Some(0));
    for i in 0..50 {
        client.work(i, 1);
    }
    pair.wait_solo(&standby);
    assert_eq!(standby.power_off(&mut client).code(), Some(0));
    pair.images[1].check(&client.last());
}
