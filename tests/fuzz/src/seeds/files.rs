//! Files: records, kernels, and the state in a checkpoint.

use ft_proto::witness::{Claim, DiskState, Record as WitnessRecord, Replicas};
use ft_proto::{NodeId, Term, VmId};
use ft_wire::device_ctl;
use pollux_api::audit::{Call, Chain, Client, Event, Outcome};
use pollux_vmm::machine::state::StateWriter;
use vhost_user_blk_repl::record::{Base, Record, Role, encode};

use crate::pci_machine::PciMachine;
use crate::seed::Seeds;
use crate::vm_state;

pub(super) fn add(seeds: &mut Seeds) {
    add_disk_records(seeds);
    add_witness_records(seeds);
    add_audit_logs(seeds);
    add_kernels(seeds);
    let (ram, mut state) = (PciMachine::ram(), Vec::new());
    let machine = PciMachine::new(&ram, &[]);
    vm_state::save(&vm_state::rtc(), &machine, &mut StateWriter::new(&mut state)).unwrap();
    seeds.add("vm_state", "fresh", state);
}

fn add_disk_records(seeds: &mut Seeds) {
    let mut record = Record {
        vm: Some(VmId(7)),
        base: Some(Base(8)),
        role: Role::Protected,
        term: Term(3),
        ended: Term(2),
        ..Record::new(9, 100 << 20)
    };
    record.marks.insert(5);
    let (old, new) = (encode(&Record::new(9, 100 << 20), 1), encode(&record, 2));
    seeds.add("disk_record", "whole", [&[0][..], &old, &new].concat());
    seeds.add("disk_record", "first", [&[0][..], &new, &vec![0; new.len()]].concat());
    // Without padding, behind the length of the first slot: the target puts the checksums in.
    let body = &new[..32 + u32::from_le_bytes([new[12], new[13], new[14], new[15]]) as usize];
    let len = (body.len() as u16).to_le_bytes();
    seeds.add("disk_record", "slots", [&[1], &len[..], body, body].concat());
    seeds.add("disk_record", "slots-1", [&[2], &len[..], &slot_of_version_1(), &slot_of_version_1()].concat());
}

fn add_audit_logs(seeds: &mut Seeds) {
    let client = Client { pid: 7, uid: 0, gid: 0, comm: Some("pollux".to_owned()) };
    let path = "/api/v1/vm.create".to_owned();
    let call = Call { number: 1, client, method: "PUT".to_owned(), path, parameters: serde_json::json!({"a": 1}) };
    let outcome = Outcome { status: 500, code: Some("busy".to_owned()), duration_us: 3 };
    let events = [
        Event::Opened { vmm: 1, version: "0.1.0".to_owned() },
        Event::Begun(call.clone()),
        Event::Ended { call: call.clone(), outcome: outcome.clone() },
        Event::Refused { call, outcome },
        Event::Lost { entries: 2, reason: "no space".to_owned() },
        Event::Closed,
    ];
    let (mut chain, mut log) = (Chain::default(), Vec::new());
    for event in events {
        let line = chain.entry("2026-01-01T00:00:00Z", event);
        chain.written(&line);
        log.extend([&line[..], b"\n"].concat());
    }
    seeds.add("audit_log", "whole", log.clone());
    seeds.add("audit_log", "cut", &log[..log.len() - 9]);
    let cut = &log[..log.len() - 9];
    let next = Chain::after(cut).unwrap().entry("t", Event::Closed);
    seeds.add("audit_log", "torn", [cut, b"\n", &next, b"\n"].concat());
}

fn slot_of_version_1() -> Vec<u8> {
    let mut slot = b"PLXDISK\0".to_vec();
    slot.extend([1_u16, 2, 7, 0].map(u16::to_le_bytes).concat());
    slot.extend([1_u64, 100 << 20, 5].map(u64::to_le_bytes).concat());
    slot.extend([7_u128, 9].map(u128::to_le_bytes).concat());
    slot.extend(0_u64.to_le_bytes());
    slot.extend([0_u32, 16].map(u32::to_le_bytes).concat());
    slot.extend([0; 8]);
    slot.extend([0; 16]);
    slot.extend(3_u64.to_le_bytes());
    slot
}

fn add_witness_records(seeds: &mut Seeds) {
    let (a, b): (NodeId, NodeId) = ("a/0000000000000001".parse().unwrap(), "b/0000000000000002".parse().unwrap());
    let term = Term(7);
    let records = [
        WitnessRecord::Protected { primary: a, in_sync: Replicas::one(b), term },
        WitnessRecord::Solo { owner: a, term, since: term },
        WitnessRecord::Stopped { term, disks: term },
    ];
    let claims = [
        Claim::Own { node: a, term, first: false },
        Claim::Start { node: a, disks: DiskState::Ended(term), waited: true },
        Claim::Register { primary: a, standby: b, term },
        Claim::Restore { primary: a, in_sync: Replicas::one(b), term },
        Claim::GoAlone { primary: a, in_sync: Replicas::one(b), term },
        Claim::TakeOver { primary: a, standby: b, term },
        Claim::Force { node: b, term },
        Claim::Withdraw { primary: a, standby: b, term },
        Claim::Stop { node: a, term, disks: term },
    ];
    let mut buffer = [0; 256];
    for (number, claim) in claims.iter().enumerate() {
        let claim = device_ctl::encode(claim, &mut buffer).unwrap();
        let record = serde_json::to_value(records[number % records.len()]).unwrap();
        let mut stored = serde_json::json!({
            "witness": format!("{:032x}", 5), "n": 3, "generation": 0, "vm": format!("{:032x}", 7),
        });
        stored.as_object_mut().unwrap().extend(record.as_object().unwrap().clone());
        let input = [&[claim.len() as u8], claim, &serde_json::to_vec(&stored).unwrap()].concat();
        seeds.add("witness_record", format!("{number}"), input);
    }
}

/// An image with one segment at 1 MiB that begins with a PVH note.
fn elf() -> Vec<u8> {
    let note = [&[4_u32, 4, 18].map(u32::to_le_bytes).concat()[..], b"Xen\0", &0x10_0000_u32.to_le_bytes()].concat();
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    image.extend([2_u16, 62].map(u16::to_le_bytes).concat());
    image.extend(1_u32.to_le_bytes());
    image.extend([0x10_0000_u64, 64, 0].map(u64::to_le_bytes).concat());
    image.extend(0_u32.to_le_bytes());
    image.extend([64_u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    let offset = image.len() as u64 + 2 * 56;
    for (kind, memory) in [(1_u32, 0x3000_u64), (4, note.len() as u64)] {
        image.extend([kind, 7].map(u32::to_le_bytes).concat());
        let fields = [offset, 0x10_0000, 0x10_0000, note.len() as u64, memory, 4];
        image.extend(fields.map(u64::to_le_bytes).concat());
    }
    image.extend(note);
    image
}

/// A kernel of one setup sector and 64 bytes of code.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024 + 64];
    image[0x1f1] = 1;
    image[0x1f4..0x1f8].copy_from_slice(&4_u32.to_le_bytes());
    image[0x1fe..0x200].copy_from_slice(&0xaa55_u16.to_le_bytes());
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&u32::MAX.to_le_bytes());
    image[0x238..0x23c].copy_from_slice(&2048_u32.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&0x10_0000_u64.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x1000_u32.to_le_bytes());
    image
}

fn add_kernels(seeds: &mut Seeds) {
    for (name, image) in [("elf", elf()), ("bzimage", bzimage())] {
        seeds.add("kernel", name, [&[0, 0, 0][..], &image].concat());
        seeds.add("kernel", format!("{name}-initramfs"), [&[3, 4, 5][..], b"quiet", b"init", &image].concat());
    }
}
