//! What is wrong with the way between the hosts is told in words that help.

use engine_tests::{Pair, VmOptions};
use serde_json::json;

#[test]
fn a_path_that_loses_large_packets_is_told_with_the_size_that_was_lost_and_the_mtu() {
    let pair = Pair::new();
    let switch = pair.lose_large_packets(1400);
    let (vm, standby) = (pair.boot(0, &VmOptions::new()), pair.standby(1, &VmOptions::new()));
    let mut client = pair.client();
    client.work(10, 1);
    let refused = pair.ask_for_protection(&vm, 1, &json!({}));
    let reasons = refused.body.to_string();
    assert_eq!(refused.status, 500, "{reasons}");
    let (_, told) = reasons.split_once("no answer in time (the ").unwrap_or_else(|| panic!("{reasons}"));
    let (size, told) = told.split_once(" bytes that were sent").unwrap_or_else(|| panic!("{reasons}"));
    assert!(size.parse::<u32>().is_ok_and(|size| size > 1400), "the lost greeting had {size} bytes: {reasons}");
    for words in ["through repl, whose MTU is 1500", "ping -M do -s 1472 10.77.0.2"] {
        assert!(told.contains(words), "{words:?} is not in: {reasons}");
    }
    pair.wait_status(&vm, "unprotected");
    pair.wait_status(&standby, "standby-empty");
    switch.ip("link set host1 mtu 1500\n");
    pair.protect(&vm, 1, &json!({}));
    client.work(10, 1);
}
