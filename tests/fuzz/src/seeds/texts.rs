//! Texts: options, JSON, requests in HTTP.

use crate::seed::Seeds;

const OPTIONS: [(u8, &str); 16] = [
    (0, "boot=2,max=4,topology=1:2:1:2,affinity=[0@[0,2],1@[1-3]],nested=off,max_phys_bits=46"),
    (1, "size=1G,shared=on,hugepages=on,hugepage_size=2M,prefault=on,thp=off,mergeable=off"),
    (2, "path=/a,readonly=on,direct=on,num_queues=2,queue_size=128,image_type=raw,serial=s1,id=d,force=on"),
    (2, "vhost_user=true,socket=/s,iommu=off,pci_segment=0,backing_files=off"),
    (3, "tap=t0,mac=12:34:56:78:90:ab,ip=10.0.0.1,mask=255.255.255.0,mtu=1400,num_queues=4,id=n"),
    (3, "vhost_user=true,socket=/s,vhost_mode=server,host_mac=12:34:56:78:90:ac,offload_tso=off"),
    (4, "src=/dev/hwrng,iommu=off"),
    (5, "file=/p"),
    (6, "tty,iommu=off"),
    (7, "uuid=u1,serial_number=s1,oem_strings=[a,\"b,c\"],num_pci_segments=1,iommu_segments=[0,2-4]"),
    (8, "peer=10.0.0.2:7000,heartbeat=[fd00::2]:7001,witness=\"etcd://h:2379/vm\",detect_ms=300,disk_buffer=64M"),
    (8, "peer=b:7000,heartbeat=c:7001,on_partition=both,compression=delta+zstd,delta_cache=1G,pause_share=5"),
    (9, "role=auto,listen=10.0.0.1:1,heartbeat=10.0.0.1:2,standby-peers=[10.0.0.2:1/10.0.0.2:2],witness=/w,node=a"),
    (10, "etcd://h:2379+i:2379/vm?cacert=/c&cert=/d&key=/e&user=u&password_file=/f"),
    (12, "path=/tmp/s"),
    (13, "fd=7"),
];

const CONFIG: &str = r#"{"cpus":{"boot_vcpus":2,"max_vcpus":2,"topology":{"threads_per_core":1,"cores_per_die":2,
"dies_per_package":1,"packages":1}},"memory":{"size":536870912,"shared":true},"payload":{"kernel":"/k","cmdline":"a=b"},
"disks":[{"path":"/d","serial":"s","num_queues":1}],"net":[{"tap":"t","mac":"12:34:56:78:90:ab","mtu":1500}],
"rng":{"src":"/dev/urandom"},"serial":{"mode":"File","file":"/s"},"console":{"mode":"Off"}}"#;
const PROTECT: &str =
    r#"{"peer":"10.0.0.2:7000","heartbeat":"10.0.0.2:7001","witness":"/w","detect_ms":300,"compression":"delta"}"#;
const EVENT: &str = r#"{"seq":1,"time":"2026-01-01T00:00:00Z","event":"primary-joined","detail":{"node":"a","address":"b",
"term":3,"took_over":{"from":"c","silence_ms":4,"total_us":5,"gap_us":null}}}"#;

pub(super) fn add(seeds: &mut Seeds) {
    for (number, (kind, text)) in OPTIONS.into_iter().enumerate() {
        seeds.add("options", format!("{number}"), [&[kind], text.as_bytes()].concat());
    }
    seeds.add("options", "size", *b"\x0b64M");
    for (name, body) in [("config", CONFIG), ("protect", PROTECT), ("event", EVENT)] {
        seeds.add("api", name, body);
    }
    let status = serde_json::to_vec(&pollux_api::Status::default()).unwrap_or_default();
    seeds.add("api", "status", status);
    for route in pollux_api::Route::ALL {
        let head = match route.method() {
            pollux_api::routes::Method::Get => "GET",
            pollux_api::routes::Method::Put => "PUT",
        };
        let body = if *route == pollux_api::Route::VmCreate { CONFIG } else { "" };
        let path = route.path();
        let length = body.len();
        let request = format!("{head} {path} HTTP/1.1\r\nHost: l\r\nContent-Length: {length}\r\n\r\n{body}");
        if *route != pollux_api::Route::FtProtect {
            seeds.add("http", route.name(), request);
        }
    }
    let chunked = "PUT /api/v1/vm.create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    let two = "GET /api/v1/vmm.ping HTTP/1.1\r\nExpect: 100-continue\r\n\r\nGET /api/v1/vm.info HTTP/1.0\r\n\
               Accept: application/problem+json\r\nConnection: close\r\n\r\n";
    for (name, request) in [("chunked", chunked), ("two", two), ("unknown", "PUT /api/v1/vm.resize HTTP/1.1\r\n\r\n")] {
        seeds.add("http", name, request);
    }
}
