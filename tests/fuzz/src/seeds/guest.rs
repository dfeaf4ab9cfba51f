//! What a guest's drivers write: virtqueues with requests and frames in memory, accesses to registers.

use crate::guest_ring::{AVAIL, STRIDE};
use crate::seed::Seeds;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Where buffers are.
const DATA: u64 = 0x1000;

/// Guest memory being filled.
#[derive(Default)]
struct Memory(Vec<u8>);

impl Memory {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        let at = at as usize;
        if self.0.len() < at + bytes.len() {
            self.0.resize(at + bytes.len(), 0);
        }
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A table entry: where, how long, flags, the next one.
    fn descriptor(&mut self, table: u64, index: u64, (addr, len, flags): (u64, u32, u16)) {
        let next = index as u16 + 1;
        let entry = [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
        self.put(table + 16 * index, &entry);
    }

    /// Makes chains with these heads available in a queue.
    fn available(&mut self, queue: u64, heads: &[u16]) {
        let ring = [&[0, heads.len() as u16][..], heads].concat();
        self.put(queue * STRIDE + AVAIL, &ring.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>());
    }
}

pub(super) fn add(seeds: &mut Seeds) {
    add_requests(seeds);
    add_frames(seeds);
    add_accesses(seeds);
}

/// A request of a kind: header, data, status.
fn request(kind: u32, sector: u64, data: (u32, u16)) -> Memory {
    let mut memory = Memory::default();
    let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
    memory.descriptor(0, 0, (DATA, 16, NEXT));
    memory.descriptor(0, 1, (DATA + 0x100, data.0, data.1 | NEXT));
    memory.descriptor(0, 2, (DATA + 0x80, 1, WRITE));
    memory.put(DATA, &header);
    memory.available(0, &[0]);
    memory
}

fn add_requests(seeds: &mut Seeds) {
    let kinds = [("read", 0, (512, WRITE)), ("write", 1, (1024, 0)), ("flush", 4, (0, 0)), ("id", 8, (20, WRITE))];
    for (name, kind, data) in kinds {
        seeds.add("block_chains", name, [&[3][..], &request(kind, 1, data).0].concat());
    }
    seeds.add("block_chains", "write-to-read-only", [&[0x83][..], &request(1, 1, (512, 0)).0].concat());
    for (name, kind) in [("discard", 11), ("zeroes", 13)] {
        let mut memory = request(kind, 0, (16, 0));
        memory.put(DATA + 0x100, &[&2_u64.to_le_bytes()[..], &4_u32.to_le_bytes(), &[0; 4]].concat());
        seeds.add("block_chains", name, [&[2][..], &memory.0].concat());
    }
    // The same read through an indirect table.
    let mut memory = request(0, 1, (512, WRITE));
    let table = memory.0[..48].to_vec();
    memory.put(0x800, &table);
    memory.descriptor(0, 0, (0x800, 48, INDIRECT));
    seeds.add("block_chains", "indirect", [&[7][..], &memory.0].concat());
}

fn add_frames(seeds: &mut Seeds) {
    let mut memory = Memory::default();
    for pair in 0..2 {
        let (receive, transmit) = (2 * pair * STRIDE, (2 * pair + 1) * STRIDE);
        memory.descriptor(receive, 0, (0x4000, 2048, WRITE));
        memory.descriptor(receive, 1, (0x5000, 100, WRITE));
        memory.available(2 * pair, &[0, 1]);
        memory.descriptor(transmit, 0, (DATA + 0x400, 12, NEXT));
        memory.descriptor(transmit, 1, (DATA + 0x500, 60, 0));
        memory.available(2 * pair + 1, &[0]);
    }
    memory.put(DATA + 0x506, &[2, 0, 0, 0, 0, 9]);
    // The driver wants two pairs.
    let control = 4 * STRIDE;
    memory.descriptor(control, 0, (DATA + 0x600, 2, NEXT));
    memory.descriptor(control, 1, (DATA + 0x602, 2, NEXT));
    memory.descriptor(control, 2, (DATA + 0x610, 1, WRITE));
    memory.put(DATA + 0x600, &[4, 0, 2, 0]);
    memory.available(4, &[0]);
    for (name, settings) in [("sent", 4), ("held", 5), ("merged", 14), ("legacy", 0)] {
        seeds.add("net_chains", name, [&[settings, 200, 0][..], &memory.0].concat());
    }
    // A checksum; then segments of TCP over IPv4, the second time without a frame that is one.
    memory.put(DATA + 0x400, &[1, 0, 0, 0, 0, 0, 20, 0, 10, 0]);
    seeds.add("net_chains", "checksum", [&[0x14, 200, 0][..], &memory.0].concat());
    memory.put(DATA + 0x400, &[1, 1, 54, 0, 8, 0, 34, 0, 16, 0]);
    seeds.add("net_chains", "no-segments", [&[0x15, 200, 0][..], &memory.0].concat());
    memory.put(DATA + 0x50c, &[8, 0, 0x45]);
    memory.put(DATA + 0x517, &[6]);
    memory.put(DATA + 0x52e, &[5 << 4]);
    seeds.add("net_chains", "segments", [&[0x14, 200, 0][..], &memory.0].concat());
}

/// Bytes of a write to the BAR: what (the size in bits 4 and 5), where in units of four bytes, the value.
fn write(at: u16, value: &[u8]) -> Vec<u8> {
    let what = 0x40 | (value.len().trailing_zeros() as u8) << 4;
    [&[what][..], &(at / 4).to_le_bytes(), value].concat()
}

/// A driver sets virtio-rng up and asks for entropy.
fn add_accesses(seeds: &mut Seeds) {
    const STATUS: u16 = 0x14;
    let mut memory = Memory::default();
    memory.descriptor(0, 0, (0x800, 64, WRITE));
    let chain = [&[3, 0, 0, 16][..], &memory.0].concat();
    let ring = [3, 0, 0x10, 6, 0, 0, 1, 0, 0, 0];
    let accesses = [
        // Memory and bus mastering on.
        vec![0x51, 4, 0, 6, 0],
        write(STATUS, &0x0103_0000_u32.to_le_bytes()[..1]),
        write(0x08, &0_u32.to_le_bytes()),
        write(0x0c, &0_u32.to_le_bytes()),
        chain,
        ring.to_vec(),
        write(0x20, &0_u32.to_le_bytes()),
        write(0x28, &0x1000_u32.to_le_bytes()),
        write(0x30, &0x1800_u32.to_le_bytes()),
        write(0x1c, &1_u16.to_le_bytes()),
        write(STATUS, &[0x0f]),
        write(0x6000, &0_u16.to_le_bytes()),
        write(0x8000, &0xfee0_0000_u32.to_le_bytes()),
        // Through the configuration ports, too.
        vec![0x62, 0, 0x10, 8, 0, 0x80, 0x62, 4, 0xff, 0xff, 0xff, 0xff, 0x22, 4],
    ];
    seeds.add("virtio_pci", "entropy", accesses.concat());
}
