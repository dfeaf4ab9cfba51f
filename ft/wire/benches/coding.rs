//! What it takes to code pages, by themselves: deltas written and applied, bodies packed and unpacked, and,
//! to compare with, a copy and the hash that every byte gets anyway.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use ft_proto::{Epoch, Term};
use ft_wire::delta::{Delta, encode};
use ft_wire::packing::{Packer, Unpacker};
use ft_wire::pages::{PAGE, Page};
use ft_wire::session::{Header, Kind};

/// Pages of a frame.
const FRAME: usize = 128;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    deltas(&mut criterion);
    packing(&mut criterion);
    criterion.final_summary();
}

/// A page of noise.
fn noise(seed: u64) -> Page {
    let (mut page, mut state) = ([0; PAGE], seed);
    for word in page.as_chunks_mut::<8>().0 {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        *word = (state ^ (state >> 29)).to_le_bytes();
    }
    page
}

/// `page` with so many of its words changed, evenly spread.
fn changed(page: &Page, words: usize) -> Page {
    let mut page = *page;
    page.as_chunks_mut::<8>().0.iter_mut().step_by(512 / words.max(1)).take(words).for_each(|word| word[3] ^= 1);
    page
}

fn deltas(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("page");
    group.throughput(Throughput::Bytes(PAGE as u64));
    let old = noise(1);
    let mut out = Vec::with_capacity(2 * PAGE);
    group.bench_function("copy", |bencher| bencher.iter(|| black_box(*black_box(&old))));
    group.bench_function("hash", |bencher| bencher.iter(|| twox_hash::XxHash3_64::oneshot(black_box(&old))));
    for (name, new) in [
        ("same", old),
        ("1 word", changed(&old, 1)),
        ("8 words", changed(&old, 8)),
        ("64 words", changed(&old, 64)),
        ("all words", noise(2)),
    ] {
        group.bench_function(format!("encode, {name}"), |bencher| {
            bencher.iter(|| {
                out.clear();
                encode(black_box(&old), black_box(&new), &mut out)
            });
        });
        out.clear();
        if encode(&old, &new, &mut out) {
            let mut page = old;
            group.bench_function(format!("check and apply, {name}"), |bencher| {
                bencher.iter(|| Delta::split(black_box(&out)).map(|(delta, _)| delta.apply(&mut page)));
            });
        }
    }
    group.finish();
}

/// A frame's worth of machine code: the middle of this program.
fn program() -> Vec<u8> {
    let file = std::env::current_exe().and_then(std::fs::read).expect("this program's file");
    file.into_iter().skip(1 << 20).take(FRAME * PAGE).collect()
}

fn packing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame of 128 pages");
    group.throughput(Throughput::Bytes((FRAME * PAGE) as u64));
    let noise: Vec<u8> = (0..FRAME as u64).flat_map(noise).collect();
    // Records of 64 bytes that differ in a counter, half of each a text: what a heap looks like.
    let records: Vec<u8> = (0..(FRAME * PAGE / 64) as u64)
        .flat_map(|at| {
            [&at.to_le_bytes()[..], &(at / 7).to_le_bytes(), &[0; 16], b"a value that does not vary much."].concat()
        })
        .collect();
    let mut packer = Packer::default();
    for (name, body) in [("noise", &noise), ("records", &records), ("program", &program())] {
        let ratio = packer.pack(&[body]).map_or(1.0, |packed| body.len() as f64 / packed.parts[0].len() as f64);
        group.bench_function(format!("pack {name}, 1 to {ratio:.1}"), |bencher| {
            bencher.iter(|| packer.pack(&[black_box(body)]).is_some());
        });
    }
    let packed = packer.pack(&[&records]).expect("records repeat themselves");
    let len = u32::try_from(packed.parts[0].len()).expect("shorter than a frame");
    let header = Header { kind: Kind::Pages, term: Term(1), epoch: Epoch(1), len, raw: packed.raw, body_hash: 0 };
    let (mut unpacker, mut body) = (Unpacker::new().expect("memory"), Vec::new());
    unpacker.packed().extend_from_slice(packed.parts[0]);
    group.bench_function("unpack records", |bencher| {
        bencher.iter(|| unpacker.unpack(black_box(&header), &mut body));
    });
    group.finish();
}
