//! Tests of what option strings become: fields, JSON, errors and help.

use std::path::PathBuf;

use super::*;
use crate::limits::{DISK_QUEUES_MAX, DISK_SERIAL_MAX, NET_QUEUE_PAIRS_MAX};
use crate::options::{OptionHelp, table};

/// Every field, as clients know it.
const GOLDEN: &str = concat!(
    r#"{"cpus":{"boot_vcpus":2,"max_vcpus":4,"topology":{"threads_per_core":1,"cores_per_die":4,"#,
    r#""dies_per_package":1,"packages":1},"kvm_hyperv":true,"max_phys_bits":40,"affinity":[{"vcpu":0,"#,
    r#""host_cpus":[1,2]}],"features":{"amx":true},"nested":false,"core_scheduling":"Off","#,
    r#""profile":"Other"},"memory":{"size":1,"mergeable":true,"hotplug_method":"VirtioMem","#,
    r#""hotplug_size":1,"hotplugged_size":2,"shared":true,"hugepages":true,"hugepage_size":3,"#,
    r#""prefault":true,"reserve":true,"thp":false,"zones":[1]},"payload":{"firmware":"/f","kernel":"/k","#,
    r#""cmdline":"c","initramfs":"/i"},"disks":[{"id":"d","path":"/p","readonly":true,"direct":true,"#,
    r#""iommu":true,"num_queues":3,"queue_size":5,"vhost_user":true,"vhost_socket":"/s","#,
    r#""rate_limiter_config":{"a":1},"rate_limit_group":"g","serial":"s","queue_affinity":[1],"#,
    r#""backing_files":true,"sparse":false,"image_type":"Qcow2","lock_granularity":"Full","#,
    r#""disable_io_uring":true,"disable_aio":true,"pci_segment":1,"pci_device_id":4,"force":true}],"#,
    r#""net":[{"id":"n","tap":"t","ip":"10.0.0.1","mask":"255.0.0.0","mac":"12:34:56:78:90:ab","#,
    r#""host_mac":"12:34:56:78:90:ac","mtu":1400,"iommu":true,"num_queues":4,"queue_size":7,"#,
    r#""vhost_user":true,"vhost_socket":"/v","vhost_mode":"Server","fds":[3],"rate_limiter_config":{},"#,
    r#""offload_tso":false,"offload_ufo":false,"offload_csum":false,"pci_segment":9,"pci_device_id":8}],"#,
    r#""rng":{"pci_segment":2,"src":"/r","iommu":true},"serial":{"file":"/x","mode":"File"},"#,
    r#""console":{"mode":"Pty","iommu":true,"pci_segment":0},"debug_console":{"mode":"Off"},"#,
    r#""pvpanic":false,"iommu":false,"watchdog":false,"platform":{"num_pci_segments":2,"#,
    r#""iommu_segments":[1],"iommu_address_width_bits":32,"system_serial_number":"s","system_uuid":"u","#,
    r#""oem_strings":["a"],"system_manufacturer":"m","system_product_name":"p","system_version":"v","#,
    r#""system_family":"f","system_sku_number":"k","chassis_asset_tag":"t","iommufd":true,"#,
    r#""vfio_p2p_dma":false},"landlock_enable":false}"#,
);

#[test]
fn cpus_and_memory() {
    let cpus = CpusConfig::from_option("boot=2,max=4,topology=1:2:1:2,affinity=[0@[0,2],1@[1]],nested=off").unwrap();
    assert_eq!((cpus.boot_vcpus, cpus.max_vcpus, cpus.nested), (2, 4, false));
    assert_eq!(cpus.topology.unwrap().cores_per_die, 2);
    assert_eq!(cpus.affinity.unwrap()[0], CpuAffinity { vcpu: 0, host_cpus: vec![0, 2] });
    assert_eq!(CpusConfig::from_option("boot=3").unwrap().max_vcpus, 3);
    let memory = MemoryConfig::from_option("size=1G,shared=on,hugepages=on,hugepage_size=2M,thp=off").unwrap();
    assert_eq!((memory.size, memory.shared, memory.hugepage_size, memory.thp), (1 << 30, true, Some(2 << 20), false));
}

#[test]
fn devices() {
    let disk = DiskConfig::from_option("path=/a,readonly=on,num_queues=2,image_type=raw,serial=s1,id=d").unwrap();
    assert!(!disk.force && DiskConfig::from_option("path=/a,force=on").unwrap().force);
    assert_eq!(disk.path, Some(PathBuf::from("/a")));
    assert_eq!((disk.readonly, disk.num_queues, disk.image_type), (true, 2, ImageType::Raw));
    let disk = DiskConfig::from_option("vhost_user=true,socket=/s").unwrap();
    assert_eq!((disk.vhost_user, disk.vhost_socket.as_deref()), (true, Some("/s")));
    let net = NetConfig::from_option("tap=,mac=12:34:56:78:90:ab,ip=10.0.0.1,mask=255.255.255.0,mtu=1400").unwrap();
    assert_eq!((net.tap, net.mtu), (None, Some(1400)));
    assert_eq!(NetConfig::from_option("vhost_mode=server").unwrap().vhost_mode, VhostMode::Server);
    assert_eq!(RngConfig::from_option("src=/dev/hwrng").unwrap().src, PathBuf::from("/dev/hwrng"));
}

#[test]
fn consoles_and_platform() {
    let serial = |text| SerialConfig::from_option(text).map(|serial| (serial.mode, serial.file, serial.socket));
    let path = Some(PathBuf::from("/p"));
    assert_eq!(serial("tty"), Ok((ConsoleOutputMode::Tty, None, None)));
    assert_eq!(serial("file=/p"), Ok((ConsoleOutputMode::File, path.clone(), None)));
    assert_eq!(serial("socket=/p"), Ok((ConsoleOutputMode::Socket, None, path)));
    assert!(serial("loud").unwrap_err().to_string().starts_with("--serial: unknown key \"loud\""));
    assert!(serial("file=").is_err() && serial("tty,pty").is_err() && serial("").is_err());
    let platform = PlatformConfig::from_option("uuid=u1,serial_number=s1,oem_strings=[a,b]").unwrap();
    assert_eq!((platform.system_uuid.as_deref(), platform.oem_strings.map(|list| list.len())), (Some("u1"), Some(2)));
}

#[test]
fn bad_values_name_flag_and_key() {
    let errors = [
        CpusConfig::from_option("boot=two").unwrap_err(),
        CpusConfig::from_option("topology=1:2").unwrap_err(),
        MemoryConfig::from_option("size=lots").unwrap_err(),
        DiskConfig::from_option("path=/a,image_type=zip").unwrap_err(),
        DiskConfig::from_option("path=/a,bw_size=1").unwrap_err(),
        NetConfig::from_option("mac=zz").unwrap_err(),
        NetConfig::from_option("speed=9").unwrap_err(),
    ];
    let starts = [
        "--cpus: boot=two is not a number",
        "--cpus: topology=1:2 is not four numbers",
        "--memory: size=lots is not a size",
        "--disk: image_type=zip is not raw or qcow2",
        "--disk: key \"bw_size\" is not supported",
        "--net: mac=zz is not a MAC address",
        "--net: unknown key \"speed\"",
    ];
    for (error, start) in errors.iter().zip(starts) {
        assert!(error.to_string().starts_with(start), "{error}");
    }
}
#[test]
fn json_has_the_fields_of_cloud_hypervisor_in_its_order() {
    let config: VmConfig = serde_json::from_str(GOLDEN).unwrap();
    assert_eq!(serde_json::to_string(&config).unwrap(), GOLDEN);
}

#[test]
fn what_must_be_there_is_missed_where_it_is_missing() {
    for (text, expected) in [
        (r#"{"memory":{"shared":true}}"#, "missing field `size` at line 1 column 25"),
        (r#"{"cpus":{"boot_vcpus":1}}"#, "missing field `max_vcpus` at line 1 column 24"),
        (r#"{"rng":{}}"#, "missing field `src` at line 1 column 9"),
    ] {
        assert_eq!(serde_json::from_str::<VmConfig>(text).unwrap_err().to_string(), expected);
    }
    assert!(serde_json::from_str::<VmConfig>(r#"{"disks":[{"num_queues":null}]}"#).is_err());
}

#[test]
fn options_without_a_value_are_those_of_an_empty_object() {
    let empty: VmConfig = serde_json::from_str(r#"{"disks":[{}],"net":[{}],"platform":{}}"#).unwrap();
    assert_eq!(DiskConfig::from_option("").unwrap(), empty.disks.unwrap()[0]);
    assert_eq!(NetConfig::from_option("").unwrap(), empty.net.unwrap()[0]);
    assert_eq!(PlatformConfig::from_option("").unwrap(), empty.platform.unwrap());
    assert_eq!(CpusConfig::from_option("").unwrap(), empty.cpus);
    assert_eq!(MemoryConfig::from_option("").unwrap(), empty.memory);
}

#[test]
fn help_has_each_key_once_with_its_default_and_its_limits() {
    let shown = |help: Vec<OptionHelp>| table(&help).split_whitespace().collect::<Vec<_>>().join(" ");
    let disk = shown(DiskConfig::help());
    for part in [
        "id=ID Device id;",
        "socket=PATH Socket of that backend",
        "num_queues=N Virtqueues;",
        "1 to 62 (1)",
        "queue_size=N Entries of each virtqueue, a power of two, 1 to 32768 (128)",
        "image_type=raw",
        "force=on|off",
    ] {
        assert!(disk.contains(part), "{part} is not in {disk}");
    }
    assert!(disk.contains(&format!("serves {DISK_QUEUES_MAX} at most")));
    assert!(disk.contains(&format!("at most {DISK_SERIAL_MAX} bytes")));
    assert!(!disk.contains("iommu") && !disk.contains("rate_limit"), "{disk}");
    assert!(shown(NetConfig::help()).contains(&format!("serves {} at most", 2 * NET_QUEUE_PAIRS_MAX)));
    assert!(shown(MemoryConfig::help()).contains("size=SIZE Bytes (512M)"));
    assert!(shown(CpusConfig::help()).contains("max_phys_bits=N Upper bound"));
    assert!(shown(RngConfig::help()).contains("(/dev/urandom)"));
    let serial = shown(SerialConfig::help());
    assert!(serial.contains("null output is dropped (default)") && serial.contains("file=PATH"), "{serial}");
    assert!(!serial.contains("socket"), "it is not supported: {serial}");
}
