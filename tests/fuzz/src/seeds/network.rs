//! What crosses the network, or the socket of a device process.

use ft::Staging;
use ft::guest::{DiskShape, NetShape, Shape};
use ft::sim::{Coder, History};
use ft_proto::{Epoch, NodeId, Term, VmId};
use ft_wire::beat;
use ft_wire::device_ctl::{
    Command, DeviceInfo, Hold, InFlight, QueueState, Report, ResyncKind, StreamKeys, TrafficSecret, encode,
};
use ft_wire::mirror::{Begin, Digest, Frame, Greeting, Kind, Name, encode as frame, encode_fields};
use ft_wire::nonce::Nonce;
use ft_wire::pages::PAGE;
use ft_wire::session::{
    CopyProgress, DiskProgress, EpochEnd, Hello, Part, Purpose, Refusal, Standing, TookOver, Welcome, Yielding,
    encode_body,
};
use ft_wire::state::Position;
use vhost_user_blk_repl::image::regions::Regions;

use crate::memory::Ram;
use crate::seed::Seeds;
use crate::{beats, mirror};

pub(super) fn add(seeds: &mut Seeds) {
    add_messages(seeds);
    add_streams(seeds);
    add_mirror(seeds);
    add_ctl(seeds);
    seeds.add("beats", "runs", beat::encode(&beats::theirs(), beats::LINK, beats::NUMBER, Term(5), true));
    seeds.add("beats", "stands-by", beat::encode(&beats::theirs(), beats::LINK, beats::NUMBER, Term(6), false));
    seeds.add("beats", "changed", [&[1, 5, 0, 0, 0, 0, 0, 0, 0][..], &[40, 7]].concat());
}

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn shape() -> Shape {
    let disk = DiskShape { id: "_disk0".to_owned(), size: 1 << 30, ..DiskShape::default() };
    let net = NetShape { id: "_net1".to_owned(), ..NetShape::default() };
    Shape {
        memory: 1 << 29,
        vcpus: 2,
        cpuid: vec![3; 40],
        tsc_khz: 2_000_000,
        serial: true,
        disks: vec![disk],
        nets: vec![net],
    }
}

fn hello() -> Hello {
    let took_over = TookOver { from: node("a/0000000000000001"), silence_ms: Some(300), total_us: 9, gap_us: None };
    let purpose = Purpose::Session {
        check: false,
        shape: encode_body(&shape()),
        beats: ["10.0.0.1:1".to_owned(), "10.0.1.1:2".to_owned()],
        detect_ms: 300,
        disk_buffer: 64 << 20,
        took_over: Some(took_over),
        on_partition: None,
        base: Some(4),
        previous: Nonce::new(5),
    };
    Hello { vm: Some(VmId(7)), node: node("b/0000000000000002"), purpose }
}

fn bodies() -> Vec<(u8, Vec<u8>)> {
    let (me, peer) = (node("b/0000000000000002"), node("a/0000000000000001"));
    let disk = DiskProgress { kind: ResyncKind::Incremental, done: 1, total: 2, sent: 3 };
    let position = Position {
        id: "_disk0".to_owned(),
        queues: vec![QueueState { index: 0, next_avail: 5, next_used: 4 }],
        in_flight: vec![InFlight { queue: 0, head: 3 }],
        idle: false,
    };
    vec![
        (0, encode_body(&hello())),
        (0, encode_body(&Hello { vm: None, purpose: Purpose::Ask, ..hello() })),
        (0, encode_body(&Hello { purpose: Purpose::Disk { index: 1, session: 2, nonce: Nonce::new(3) }, ..hello() })),
        (1, encode_body(&Welcome { node: me, session: 3, nonce: Nonce::new(4), kept: true })),
        (2, encode_body(&Refusal { reasons: vec!["another memory size".to_owned(), "no disk".to_owned()] })),
        (3, encode_body(&EpochEnd { pages: 1, frames: 2, digest: 3 })),
        (4, encode_body(&Yielding { reason: "an operator".to_owned(), stopped_us: 100 })),
        (5, encode_body(&CopyProgress { memory: [1, 2], disks: vec![None, Some(disk)] })),
        (6, encode_body(&Standing { node: me, vm: Some(VmId(7)), term: Term(3), part: Part::WillTakeOver(peer) })),
        (7, encode_body(&shape())),
        (8, encode_body(&vec![position])),
    ]
}

fn add_messages(seeds: &mut Seeds) {
    for (number, (kind, body)) in bodies().into_iter().enumerate() {
        seeds.add("messages", format!("{number}"), [&[kind], &body[..]].concat());
    }
}

/// A first copy and an epoch, as the primary's sender writes them.
fn session(pack: bool) -> Vec<u8> {
    let (ram, mut stream) = (Ram::default(), vec![0, 99]);
    let mut coder = Coder::new(History::new(&ft::guest::Memory::ranges(&ram), 64 * PAGE as u64));
    for epoch in 0..4 {
        let mut staging = Staging::default();
        staging.clear(Epoch(epoch));
        staging.pages.extend([1, 2, 0x10_0000]);
        let mut page = [0; PAGE];
        page[..2000].fill(3);
        page[64] = epoch as u8;
        ft::guest::Memory::copy_in(&ram, 2, &page).unwrap();
        staging.copy_pages(&ram).unwrap();
        staging.state = vec![9; 40];
        if epoch == 0 {
            coder.send_copy(&staging, pack, &mut stream, Term(3)).unwrap();
        } else {
            coder.send_epoch(&staging, pack, &mut stream, Term(3)).unwrap();
        }
    }
    stream
}

fn add_streams(seeds: &mut Seeds) {
    seeds.add("wire", "session", session(false));
    seeds.add("wire", "session-packed", session(true));
    // In the form that the target puts headers around: kind, term, epoch, length, body.
    let kinds = [0, 0, 0, 1, 2, 6, 8, 10, 11];
    let mut framed = vec![1, 20];
    for (kind, (_, body)) in kinds.into_iter().zip(bodies()) {
        framed.extend([kind, 3, 1]);
        framed.extend((body.len() as u16).to_le_bytes());
        framed.extend(body);
    }
    seeds.add("wire", "messages", framed);
    seeds.add("wire", "ack", [1, 0, 7, 3, 1, 0, 0]);
    // Two epochs with changed, repeated and zero pages.
    let guest = [1, 5, 7, 3, 5, 0, 1, 2, 9, 9, 1, 6, 8, 0, 5, 2, 6, 3, 5, 1, 0, 1, 7, 0, 0];
    for settings in [0, 1, 2, 3, 0xff, 0x0f] {
        seeds.add("pages", format!("{settings}"), [&[settings], &guest[..]].concat());
    }
    seeds.add(
        "delta",
        "edits",
        [7, 2, 5, 0, 3, 1, 2, 3, 0, 2, 2, 8, 8, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8],
    );
    seeds.add("delta", "nothing", [0, 0, 0]);
    let text = b"memory repeats itself, memory repeats itself, noise does not";
    seeds.add("packing", "text", [&[64, 0, 0, 0, 15], &text[..]].concat());
    let mut packer = ft_wire::packing::Packer::default();
    if let Some(packed) = packer.pack(&[&text.repeat(20)]) {
        seeds.add("packing", "packed", [&packed.raw.to_le_bytes(), &[0][..], packed.parts[0]].concat());
    }
}

fn add_mirror(seeds: &mut Seeds) {
    let greeting = encode_fields(&Greeting { serial: "s".to_owned(), vm: Some(VmId(7)), term: Term(3) });
    let marks = Regions::new(mirror::SIZE).to_bytes();
    let begin = Begin { kind: ResyncKind::Incremental, disk: 1, common: Some(2), marks, base: 3, generation: 4 };
    let frames = [
        (Kind::Hello, 1, 0, mirror::SIZE, greeting),
        (Kind::Begin, 1, 0, 0, encode_fields(&begin)),
        (Kind::Hashes, 1, 0, 8192, vec![1; 32]),
        (Kind::Copy, 1, 4096, 512, vec![2; 512]),
        (Kind::CopyZero, 1, 8192, 4096, vec![]),
        (Kind::SyncDone, 1, 0, 0, vec![]),
        (Kind::Write, 2, 512, 1024, vec![3; 1024]),
        (Kind::Zeroes, 2, 512, 512, vec![]),
    ];
    let (mut stream, mut digest) = (vec![0], Digest::default());
    for (kind, epoch, offset, len, body) in frames {
        let (header, checksum) = frame(&Frame { kind, epoch: Epoch(epoch), offset, len }, &body);
        stream.extend([&header[..], &body].concat());
        if matches!(kind, Kind::Write | Kind::Zeroes) {
            digest.add(checksum);
        }
    }
    let last = [
        (Kind::End, digest.count, digest.sum, vec![]),
        (Kind::Persist, 0, 0, encode_fields(&Name { base: 8 })),
        (Kind::Renamed, 0, 0, vec![]),
    ];
    for (kind, offset, len, body) in last {
        let (header, _) = frame(&Frame { kind, epoch: Epoch(2), offset, len }, &body);
        stream.extend([&header[..], &body].concat());
    }
    seeds.add("mirror", "session", stream);
    // The same order in the form that the target puts headers around: kind, epoch, offset, length, the rest.
    let mut framed = vec![1];
    for kind in [0, 9, 1, 2, 5, 3, 4, 10, 12, 14] {
        framed.extend([kind, 2, 1, 0, 1]);
        match kind {
            0 => framed.extend([&[5][..], &[1, b's', 0, 3, 0]].concat()),
            9 => {
                let body = encode_fields(&begin);
                framed.push(body.len() as u8);
                framed.extend(body);
            }
            12 => framed.extend([1, 8]),
            1 | 3 | 10 => framed.push(7),
            _ => {}
        }
    }
    seeds.add("mirror", "framed", framed);
}

fn commands() -> Vec<Command> {
    vec![
        Command::Hello { version: 4 },
        Command::Standby(true),
        Command::Protect { epoch: Epoch(3), hold: Hold::on() },
        Command::Seal { epoch: Epoch(3), cpu: Some(1) },
        Command::Resume,
        Command::Discard { after: Epoch(2) },
        Command::Start { in_flight: vec![InFlight { queue: 0, head: 9 }], macs: vec![[2; 6]] },
        Command::Mirror { epoch: Epoch(3), max_uncommitted: 1 << 26, rate: 0 },
        Command::Unmirror,
        Command::Receive { max_uncommitted: 1 << 26 },
        Command::Own { vm: VmId(7), term: Term(3) },
        Command::End(Term(3)),
        Command::StreamKeys(StreamKeys {
            read: TrafficSecret { secret: vec![1; 48], records: 2 },
            write: TrafficSecret { secret: vec![2; 48], records: 3 },
        }),
    ]
}

fn reports() -> Vec<Report> {
    let info = DeviceInfo::Disk { size: 1 << 30, read_only: false, serial: "s".to_owned(), block_size: 512 };
    let net = DeviceInfo::Net { tap: "t".to_owned(), mtu: 1500 };
    let queues = vec![QueueState { index: 0, next_avail: 5, next_used: 4 }];
    vec![
        Report::Ready { version: 4, info },
        Report::Ready { version: 4, info: net },
        Report::Sealed {
            epoch: Epoch(3),
            queues,
            in_flight: vec![InFlight { queue: 0, head: 9 }],
            held_frames: 1,
            held_bytes: 2,
            idle: false,
        },
        Report::Held { epoch: Epoch(3) },
        Report::Discarded,
        Report::Resync { kind: ResyncKind::Compare, done: 1, total: 2, sent: 3 },
        Report::Complete { epoch: Epoch(3) },
        Report::MirrorLost { reason: "the peer closed\u{1b}[2J".to_owned() },
        Report::Failed { reason: "no space".to_owned() },
    ]
}

fn add_ctl(seeds: &mut Seeds) {
    let mut buffer = [0; 1024];
    for (number, command) in commands().iter().enumerate() {
        seeds.add("ft_ctl", format!("command-{number}"), encode(command, &mut buffer).unwrap());
    }
    for (number, report) in reports().iter().enumerate() {
        seeds.add("ft_ctl", format!("report-{number}"), encode(report, &mut buffer).unwrap());
    }
}
