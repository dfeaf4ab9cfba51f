//! Tests of the configuration: defaults, round trip, and one line for each thing that is refused.

use serde_json::{Value, json};

use super::*;

fn config(value: Value) -> VmConfig {
    serde_json::from_value(value).unwrap()
}

#[test]
fn defaults_are_those_of_cloud_hypervisor() {
    let expected = json!({
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1, "kvm_hyperv": false, "max_phys_bits": 46, "features": {"amx": false},
                 "nested": true, "core_scheduling": "Vm", "profile": "Host"},
        "memory": {"size": 268435456u64, "mergeable": false, "hotplug_method": "Acpi", "shared": false, "hugepages": false,
                   "prefault": false, "reserve": false, "thp": true},
        "payload": {"kernel": "/k", "cmdline": "console=ttyS0", "initramfs": "/i"},
        "rng": {"pci_segment": 0, "src": "/dev/urandom"},
        "serial": {"file": "/s", "mode": "File"},
        "console": {"mode": "Off", "pci_segment": 0},
        "debug_console": {"mode": "Off", "iobase": 233},
        "pvpanic": false, "iommu": false, "watchdog": false, "landlock_enable": false,
    });
    let given = config(json!({
        "memory": {"size": 268435456u64},
        "payload": {"kernel": "/k", "cmdline": "console=ttyS0", "initramfs": "/i"},
        "serial": {"mode": "File", "file": "/s"},
    }));
    assert_eq!(serde_json::to_value(&given).unwrap(), expected);
    assert_eq!(config(expected), given);
    given.validate().unwrap();
}

#[test]
fn empty_object_is_a_config() {
    let empty = config(json!({}));
    assert_eq!(empty, VmConfig::default());
    assert_eq!(empty.memory.size, 512 << 20);
    assert_eq!(empty.serial.mode, ConsoleOutputMode::Null);
    assert_eq!(config(json!({"disks": [{"path": "/d"}]})).disks.unwrap()[0].queue_size, 128);
    assert_eq!(config(json!({"net": [{}]})).net.unwrap()[0].num_queues, 2);
    let platform = config(json!({"platform": {"uuid": "u", "serial_number": "s"}})).platform.unwrap();
    assert_eq!((platform.system_uuid.as_deref(), platform.system_serial_number.as_deref()), (Some("u"), Some("s")));
}

#[test]
fn unknown_fields_are_ignored_and_missing_ones_named() {
    assert_eq!(config(json!({"from_the_future": 1})), VmConfig::default());
    let error = serde_json::from_str::<VmConfig>(r#"{"memory":{"shared":true}}"#).unwrap_err();
    assert!(error.to_string().starts_with("missing field `size`"), "{error}");
}

/// The least that boots, changed by `patch` at the top level.
fn patched(patch: Value) -> VmConfig {
    let mut value = json!({"payload": {"kernel": "/k"}});
    let map = value.as_object_mut().unwrap();
    for (key, part) in patch.as_object().unwrap() {
        map.insert(key.clone(), part.clone());
    }
    config(value)
}

#[test]
fn what_is_accepted() {
    for patch in [
        json!({}),
        json!({"fs": [], "vsock": null, "generic-vhost-user": []}),
        json!({"console": {"mode": "Null"}}),
        json!({"disks": [{"path": "/a", "image_type": "Raw"}, {"vhost_user": true, "vhost_socket": "/s"}]}),
        json!({"disks": [{"path": "/a", "id": "clock"}, {"path": "/b", "id": "vcpu0"}, {"path": "/c", "id": "A-1_b.c:d@e"}]}),
        json!({"disks": [{"path": "/a", "id": "i".repeat(64), "serial": "Gerät 1"}], "net": [{"id": "_pci"}]}),
        json!({"net": [{"tap": "t0", "mac": "02:00:00:00:00:01"}, {"ip": "10.0.0.1", "mask": "255.255.255.0"}]}),
        json!({"memory": {"size": 2 << 20, "hugepages": true}}),
    ] {
        patched(patch.clone()).validate().unwrap_or_else(|error| panic!("{patch}: {error}"));
    }
}

/// Each of these patches is refused with a text that starts so.
fn refused<const N: usize>(cases: [(Value, &str); N]) {
    for (patch, start) in cases {
        let error = patched(patch.clone()).validate().unwrap_err().to_string();
        assert!(error.starts_with(start), "{patch}: {error}");
    }
}

#[test]
fn what_is_refused_names_its_field() {
    refused([
        (json!({"payload": null}), "payload: nothing to boot"),
        (json!({"payload": {"kernel": "/k", "firmware": "/f"}}), "payload.firmware: "),
        (json!({"payload": {"firmware": "/f", "initramfs": "/i"}}), "payload.initramfs: "),
        (json!({"cpus": {"boot_vcpus": 0, "max_vcpus": 1}}), "cpus.boot_vcpus: must be 1 to 254, not 0"),
        (json!({"cpus": {"boot_vcpus": 2, "max_vcpus": 1}}), "cpus.max_vcpus: "),
        (json!({"cpus": {"boot_vcpus": 1, "max_vcpus": 1, "kvm_hyperv": true}}), "cpus.kvm_hyperv is not supported"),
        (
            json!({"cpus": {"boot_vcpus": 2, "max_vcpus": 2, "topology":
                {"threads_per_core": 1, "cores_per_die": 1, "dies_per_package": 1, "packages": 1}}}),
            "cpus.topology: has 1 vCPUs in all, but cpus.max_vcpus is 2",
        ),
        (
            json!({"cpus": {"boot_vcpus": 1, "max_vcpus": 2, "affinity": [{"vcpu": 1, "host_cpus": [0]}]}}),
            "cpus.affinity: there is no vCPU 1, the last is 0",
        ),
        (json!({"disks": [{"path": "/a", "pci_device_id": 32}]}), "disks[0].pci_device_id: must be 1 to 31"),
        (json!({"memory": {"size": 2 << 20, "hugepages": true, "hugepage_size": 4096}}), "memory.hugepage_size: "),
        (json!({"memory": {"size": 0}}), "memory.size: must be at least"),
        (json!({"memory": {"size": 1_u64 << 62}}), "memory.size: must be at most 17592186044416 bytes"),
        (json!({"memory": {"size": (2 << 20) + 1}}), "memory.size: must be a multiple of 4096"),
        (
            json!({"memory": {"size": (2 << 20) + 4096, "hugepages": true}}),
            "memory.size: must be a multiple of 2097152",
        ),
        (json!({"memory": {"size": 2 << 20, "hugepage_size": 2 << 20}}), "memory.hugepage_size: "),
        (json!({"memory": {"size": 2 << 20, "hotplug_size": 1}}), "memory.hotplug_size is not supported"),
        (json!({"memory": {"size": 2 << 20, "zones": [{}]}}), "memory.zones is not supported"),
        (json!({"serial": {"mode": "File"}}), "serial.file: is missing"),
        (json!({"serial": {"mode": "Socket", "socket": "/s"}}), "serial.mode Socket is not supported"),
        (json!({"console": {"mode": "Tty"}}), "console.mode Tty is not supported"),
        (json!({"watchdog": true}), "watchdog is not supported"),
        (json!({"vsock": {"cid": 3, "socket": "/s"}}), "vsock is not supported"),
        (json!({"generic-vhost-user": [{}]}), "generic_vhost_user is not supported"),
        (json!({"platform": {"num_pci_segments": 2}}), "platform.num_pci_segments is not supported"),
    ]);
}

#[test]
fn what_is_refused_of_a_device_names_its_field() {
    refused([
        (json!({"disks": [{"path": "/a"}, {}]}), "disks[1].path: is missing"),
        (json!({"disks": [{"path": "/a", "queue_size": 100}]}), "disks[0].queue_size: must be a power of two"),
        (json!({"disks": [{"path": "/a", "num_queues": 0}]}), "disks[0].num_queues: "),
        (json!({"disks": [{"path": "/a", "vhost_user": true, "vhost_socket": "/s"}]}), "disks[0].path: "),
        (json!({"disks": [{"vhost_user": true}]}), "disks[0].vhost_socket: "),
        (json!({"disks": [{"path": "/a", "image_type": "Qcow2"}]}), "disks[0].image_type Qcow2 is not supported"),
        (json!({"disks": [{"path": "/a", "serial": "123456789012345678901"}]}), "disks[0].serial: "),
        (json!({"disks": [{"path": "/a", "id": "__x"}]}), "disks[0].id: "),
        (json!({"disks": [{"path": "/a", "id": "_virtio-pci-x"}]}), "disks[0].id: \"_virtio-pci-x\": ids that start"),
        (json!({"disks": [{"path": "/a", "id": ""}]}), "disks[0].id: must have 1 to 64 characters, not 0"),
        (json!({"disks": [{"path": "/a", "id": "\u{0}"}]}), "disks[0].id: \"\\0\" must not have '\\0': use ASCII"),
        (json!({"net": [{"id": "a/b"}]}), "net[0].id: \"a/b\" must not have '/'"),
        (json!({"net": [{"id": "n".repeat(65)}]}), "net[0].id: must have 1 to 64 characters, not 65"),
        (json!({"net": [{"tap": "tap%d"}]}), "net[0].tap: \"tap%d\" must not have '%'"),
        (json!({"net": [{"tap": "a\u{0}b"}]}), "net[0].tap: "),
        (json!({"disks": [{"path": "/a\u{0}"}]}), "disks[0].path: "),
        (json!({"disks": [{"path": "/a", "serial": "\u{0}"}]}), "disks[0].serial: "),
        (json!({"disks": [{"vhost_user": true, "vhost_socket": "/s\u{0}"}]}), "disks[0].vhost_socket: "),
        (json!({"rng": {"src": "\u{0}"}}), "rng.src: "),
        (json!({"serial": {"mode": "File", "file": "\u{0}"}}), "serial.file: "),
        (json!({"disks": [{"path": "/a", "id": "x"}], "net": [{"id": "x"}]}), "net[0].id: "),
        (json!({"net": [{"num_queues": 3}]}), "net[0].num_queues: must be even"),
        (json!({"net": [{"tap": "a-name-far-too-long"}]}), "net[0].tap: "),
        (json!({"net": [{"mac": "01:00:00:00:00:01"}]}), "net[0].mac: "),
        (json!({"net": [{"mtu": 100}]}), "net[0].mtu: "),
        (json!({"net": [{"mask": "255.0.0.0"}]}), "net[0].mask: needs an ip"),
    ]);
}

/// What a device process would refuse when the VM boots is refused when it is created.
#[test]
fn limits_of_device_processes_hold_when_the_vm_is_created() {
    let told = |patch: Value| patched(patch).validate_limits().map_err(|error| error.to_string());
    let queues = |count: usize, own: bool| json!({"disks": [{"num_queues": count, "vhost_user": !own}], "net": [{"num_queues": 2, "vhost_user": !own}]});
    assert_eq!(told(queues(32, true)), Ok(()));
    assert_eq!(told(queues(33, true)), Err("disks[0].num_queues: must be 1 to 32, not 33".to_owned()));
    assert_eq!(told(queues(62, false)), Ok(()));
    assert_eq!(told(queues(63, false)), Err("disks[0].num_queues: must be 1 to 62, not 63".to_owned()));
    for (net, expected) in [
        (json!({"num_queues": 34}), "net[0].num_queues: must be 1 to 32, not 34"),
        (json!({"queue_size": 2}), "net[0].queue_size: must be a power of two from 4 to 32768, not 2"),
        (json!({"mtu": 65522}), "net[0].mtu: must be 1280 to 65521, not 65522"),
        (json!({"mac": "00:00:00:00:00:00"}), "net[0].mac: must not be zero"),
        (json!({"tap": "täp"}), "net[0].tap: \"täp\" must not have 'ä': give the name of a tap"),
        (json!({"pci_device_id": 32}), "net[0].pci_device_id: must be 1 to 31, not 32"),
    ] {
        assert_eq!(told(json!({"net": [net]})), Err(expected.to_owned()));
    }
    assert_eq!(told(json!({"net": [{"tap": ""}], "disks": [{"serial": "Gerät 1"}]})), Ok(()));
}
