//! What the processes of a protected VM could do to their host if somebody took them over.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use engine_tests::{Client, Image, Machine, Netns, Pair, RealTime, Vm, VmOptions};
use nix::unistd::Pid;
use serde_json::json;

/// Capabilities that some process keeps (capabilities(7)): CHOWN, DAC_OVERRIDE, FOWNER, NET_BIND_SERVICE,
/// NET_ADMIN, SYS_NICE.
const KEPT: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 10 | 1 << 12 | SYS_NICE;
const SYS_NICE: u64 = 1 << 23;
/// The launcher's, for namespaces.
const SYS_ADMIN: u64 = 1 << 21;
/// What the device processes of a VMM of root do not share with it, and what those of another user do not.
const OWN_OF_ROOT: [&str; 6] = ["mnt", "net", "ipc", "uts", "cgroup", "pid"];
const OWN_OF_OTHERS: [&str; 6] = ["user", "mnt", "net", "ipc", "uts", "cgroup"];

/// The value of a field of `/proc/PID/.../status`.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// (name, status) of each thread of a process.
fn threads(pid: Pid) -> Vec<(String, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads of a process").flatten();
    let told =
        tasks.map(|task| (read(task.path().join("comm")).trim_end().to_owned(), read(task.path().join("status"))));
    // One that has just ended has nothing to tell.
    told.filter(|(name, status)| !name.is_empty() && !status.is_empty()).collect()
}

/// Those that a thread may make use of.
fn capabilities(status: &str) -> u64 {
    u64::from_str_radix(&field(status, "CapPrm"), 16).expect("bits")
}

fn is_taken_over(pair: &Pair, [mut vm, standby]: [Vm; 2]) {
    let mut client = pair.client();
    client.work(10, 2);
    vm.kill_host();
    client.work(10, 2);
    pair.wait_solo(&standby);
    pair.images[1].check(&client.last());
}

fn check(vm: &Vm) {
    let processes = vm.processes();
    assert_eq!(processes.len(), 4, "the VMM, its launcher and two device processes:\n{}", vm.log());
    for pid in processes {
        for (name, status) in threads(pid) {
            assert_eq!(field(&status, "NoNewPrivs"), "1", "{name} of {pid}");
            let launcher = name == "pollux-launcher";
            let kept = if launcher { KEPT | SYS_ADMIN } else { KEPT };
            let filtered = field(&status, "Seccomp") == "2";
            assert_eq!(capabilities(&status) & !kept, 0, "{name} of {pid}: {status}");
            assert_ne!(filtered, launcher, "{name} of {pid}: {status}");
        }
        let dumped = u32::from_str_radix(read(format!("/proc/{pid}/coredump_filter")).trim(), 16).expect("bits");
        assert_eq!(dumped & 0b1010, 0, "shared memory is dumped");
    }
    assert_eq!(std::fs::metadata(vm.socket()).expect("the API's socket").permissions().mode() & 0o77, 0);
    devices_are_alone(vm, &OWN_OF_ROOT);
}

/// Namespaces of these kinds are the devices' own, and the only files there are those of the disk's record.
fn devices_are_alone(vm: &Vm, kinds: &[&str]) {
    let namespace = |pid: Pid, kind| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace");
    for program in ["vhost-user-blk-repl", "vhost-user-net-buffer"] {
        let device = vm.device(program);
        for kind in kinds {
            assert_ne!(namespace(device, kind), namespace(vm.pid(), kind), "{kind} of {program}:\n{}", vm.log());
        }
        let root = std::fs::read_dir(format!("/proc/{device}/root")).expect("its root").flatten();
        let mut names: Vec<_> = root.map(|entry| entry.file_name().into_string().expect("a name")).collect();
        names.sort();
        let expected: &[&str] = if program == "vhost-user-blk-repl" { &["proc", "run", "tmp"] } else { &[] };
        assert_eq!(names, expected, "{program}:\n{}", vm.log());
    }
}

#[test]
fn every_thread_has_its_filter_and_no_file_is_for_others() {
    let pair = Pair::new();
    let options = VmOptions::new().vcpus(2);
    let [vm, standby] = pair.protected(&options, &json!({}));
    pair.client().work(10, 2);
    check(&vm);
    check(&standby);
    for image in &pair.images {
        let record = image.path().with_added_extension("pollux");
        assert_eq!(std::fs::metadata(&record).expect("its record").permissions().mode() & 0o77, 0, "{record:?}");
    }
}

#[test]
fn device_processes_are_filtered_like_their_vmm() {
    let pair = Pair::new();
    let vm = pair.boot(0, &VmOptions::new().flag("--seccomp", "false"));
    pair.client().work(10, 2);
    for pid in vm.processes() {
        for (name, status) in threads(pid) {
            assert_eq!(
                (field(&status, "Seccomp").as_str(), field(&status, "NoNewPrivs").as_str()),
                ("0", "1"),
                "{name}"
            );
        }
    }
}

#[test]
fn a_pair_without_root_is_protected_and_taken_over() {
    let pair = Pair::new();
    let options = VmOptions::new().without_root(RealTime::Capability);
    let vms = pair.protected(&options, &json!({}));
    for pid in vms.iter().flat_map(Vm::processes) {
        for (name, status) in threads(pid) {
            assert_ne!(field(&status, "Uid").split('\t').next(), Some("0"), "{name} of {pid}: {status}");
            assert_eq!(capabilities(&status), SYS_NICE, "{name} of {pid}: {status}");
        }
    }
    is_taken_over(&pair, vms);
}

#[test]
fn a_pair_without_any_capability_is_protected_and_taken_over() {
    let pair = Pair::new();
    let vms = pair.protected(&VmOptions::new().without_root(RealTime::Limits), &json!({}));
    for vm in &vms {
        for (name, status) in vm.processes().into_iter().flat_map(threads) {
            assert_ne!(field(&status, "Uid").split('\t').next(), Some("0"), "{name}: {status}");
            assert_eq!(capabilities(&status), 0, "{name}: {status}");
        }
        let limits = read(format!("/proc/{}/limits", vm.pid()));
        let allowed = limits.lines().any(|line| line.starts_with("Max realtime priority     1 "));
        assert_ne!(vm.log().contains("no real-time priority"), allowed, "{}\n{limits}", vm.log());
        devices_are_alone(vm, &OWN_OF_OTHERS);
    }
    is_taken_over(&pair, vms);
}

#[test]
fn a_vmm_with_landlock_takes_over() {
    let pair = Pair::new();
    let options = VmOptions::new().switch("--landlock");
    is_taken_over(&pair, pair.protected(&options, &json!({})));
}

#[test]
fn a_vmm_with_landlock_opens_nothing_that_was_not_named() {
    let machine = Machine::claim();
    let (host, image) = (Netns::new(), Image::new(&machine.dir().join("disk"), 4));
    let vm = VmOptions::new().local_tap().disk(image.path()).switch("--landlock").boot(&machine, &host);
    Client::of_local_tap(&host).work(10, 2);
    let api = vm.api();
    let kernel = api.get("vm.info").ok()["config"]["payload"]["kernel"].clone();
    api.put("vm.shutdown", None).ok();
    api.put("vm.delete", None).ok();
    api.put("vm.create", Some(&json!({"payload": {"kernel": "/usr/bin/env"}}))).ok();
    let refused = api.put("vm.boot", None);
    assert!(refused.body.to_string().contains("Permission denied"), "{}", refused.body);

    // Nor does its launcher, by way of a device process.
    let elsewhere = tempfile::tempdir().expect("a folder");
    let other = Image::new(&elsewhere.path().join("other"), 4);
    api.put("vm.delete", None).ok();
    let config = json!({"payload": {"kernel": kernel}, "disks": [{"path": other.path()}]});
    api.put("vm.create", Some(&config)).ok();
    let refused = api.put("vm.boot", None);
    assert!(refused.body.to_string().contains("Permission denied"), "{}", refused.body);
}
