//! The first copy of a guest that writes its memory as fast as it can: it must come to an end.

use engine_tests::{Pair, VmOptions};

/// Memory that the guest rewrites all the time.
const WRITTEN_MIB: u64 = 64;
const MEMORY_MIB: u64 = 160;
/// Rounds of `ft::first_copy` at most. Two in vain are enough, but on an uneven machine not each that looks
/// useful is.
const ROUNDS: u64 = 16;

#[test]
fn the_first_copy_of_a_guest_that_never_stops_writing_ends() {
    let pages = (WRITTEN_MIB << 20) / 4096;
    let writer = format!("bg_pages={pages} rate=max disk_rate=0");
    let options = VmOptions::new().memory(MEMORY_MIB).vcpus(2).guest(&writer);
    let pair = Pair::new();
    let mut client = pair.client();
    let mut first = pair.node(0, &options);
    client.echo();
    let before = client.last();
    let second = pair.node(1, &options);
    let status = pair.wait_status(&first, "protected");
    let after = client.echo();
    let events = first.api().get("ft.events").ok();
    let done = events.as_array().into_iter().flatten().find(|event| event["event"] == "memory-copy-done");
    let detail = &done.unwrap_or_else(|| panic!("no end in {events}"))["detail"];
    let (bytes, ms) = (detail["bytes"].as_u64().unwrap_or(0), detail["ms"].as_u64().unwrap_or(u64::MAX));
    let rewritten = (after.background - before.background) / 256;
    println!(
        "first copy: {} MiB in {ms} ms while the guest wrote {rewritten} MiB; pauses {}, commits {}",
        bytes >> 20,
        status["pause_us"],
        status["commit_us"]
    );
    assert!(rewritten > 2 * WRITTEN_MIB, "it wrote too little to tell: {rewritten} MiB");
    let most = MEMORY_MIB + ROUNDS * WRITTEN_MIB;
    assert!((WRITTEN_MIB << 20..=most << 20).contains(&bytes), "{bytes}");
    // What came of it is a copy that the guest goes on from.
    first.kill_host();
    let last = client.work(20, 0);
    assert_eq!((last.boot, last.violations), (before.boot, 0));
    drop(second);
}
