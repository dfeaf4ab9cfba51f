//! The buffer against a model that is too simple to be wrong, under random operations.

use super::*;

/// xorshift64*: the seed that is printed repeats the run.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }
}

/// Every stored frame in full, and whether it was released.
#[derive(Default)]
struct Model(VecDeque<(Epoch, u16, Vec<u8>, bool)>);

impl Model {
    fn bytes(&self) -> usize {
        self.0.iter().map(|f| f.2.len()).sum()
    }
}

fn fill(slot: &mut [u8], id: u64) {
    for (i, byte) in slot.iter_mut().enumerate() {
        *byte = (id as usize * 31 + i) as u8;
    }
}

fn check(buffer: &EpochBuffer, model: &Model) {
    assert_eq!(buffer.frames(), model.0.len());
    assert_eq!(buffer.bytes(), model.bytes());
    assert_eq!(buffer.is_empty(), model.0.is_empty());
    assert_eq!(buffer.has_releasable(), model.0.iter().any(|f| f.3));
    let front = model.0.front().filter(|f| f.3).map(|f| (f.1, f.2.as_slice()));
    assert_eq!(buffer.front(), front);
    assert_eq!(buffer.newest_held(), model.0.back().filter(|f| !f.3).map(|f| f.0));
}

fn step(rng: &mut Rng, buffer: &mut EpochBuffer, model: &mut Model, epoch: &mut Epoch, id: u64) {
    match rng.below(20) {
        0..=9 => {
            let (len, queue) = (rng.below(300) as usize, rng.below(4) as u16);
            if let Some(slot) = buffer.push(*epoch, queue, len) {
                fill(slot, id);
                let mut bytes = vec![0; len];
                fill(&mut bytes, id);
                model.0.push_back((*epoch, queue, bytes, false));
            } else {
                // Refused: empty frame, too many frames, or no room in one piece; at the end of the ring less
                // than the longest frame is lost.
                assert!(len == 0 || model.0.len() >= 32 || model.bytes() + len + 300 > 1024, "refused without need");
            }
        }
        10..=14 => {
            buffer.pop_front();
            if model.0.front().is_some_and(|f| f.3) {
                model.0.pop_front();
            }
        }
        15 | 16 => *epoch = epoch.next(),
        17 => {
            let upto = Epoch(epoch.0 - rng.below(3).min(epoch.0));
            buffer.release(upto);
            model.0.iter_mut().filter(|f| f.0 <= upto).for_each(|f| f.3 = true);
        }
        18 => {
            let after = Epoch(epoch.0 - rng.below(3).min(epoch.0));
            let before = model.0.len();
            model.0.retain(|f| f.3 || f.0 <= after);
            assert_eq!(buffer.discard_after(after), before - model.0.len());
        }
        _ if rng.below(2) == 0 => {
            buffer.release_all();
            model.0.iter_mut().for_each(|f| f.3 = true);
        }
        _ => {
            let before = model.0.len();
            model.0.retain(|f| f.3);
            assert_eq!(buffer.discard_held(), before - model.0.len());
        }
    }
}

#[test]
fn agrees_with_the_model() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x5eed_0001_u64);
    println!("SEED={seed}");
    for run in 0..200 {
        let mut rng = Rng(seed.wrapping_add(run) | 1);
        let (mut buffer, mut model, mut epoch) = (EpochBuffer::new(1024, 32), Model::default(), Epoch(1));
        for id in 0..2_000 {
            step(&mut rng, &mut buffer, &mut model, &mut epoch, id);
            check(&buffer, &model);
        }
        // Whatever is left comes out in order, every byte of it.
        buffer.release_all();
        for (_, queue, bytes, _) in &model.0 {
            assert_eq!(buffer.front(), Some((*queue, bytes.as_slice())));
            buffer.pop_front();
        }
        assert!(buffer.is_empty() && buffer.bytes() == 0);
    }
}

#[test]
fn storage_is_not_reallocated() {
    let mut buffer = EpochBuffer::new(4096, 8);
    let (ring, index) = (buffer.ring.as_ptr(), buffer.frames.capacity());
    for n in 0..10_000_u64 {
        assert!(buffer.push(Epoch(n), 0, 1 + (n as usize * 7) % 500).is_some());
        if n % 3 == 2 {
            buffer.release(Epoch(n));
            while buffer.front().is_some() {
                buffer.pop_front();
            }
        }
    }
    assert_eq!((buffer.ring.as_ptr(), buffer.frames.capacity()), (ring, index));
}

#[test]
fn a_frame_as_large_as_the_ring_fits_once() {
    let mut buffer = EpochBuffer::new(100, 4);
    assert!(buffer.push(Epoch(1), 0, 101).is_none());
    assert!(buffer.push(Epoch(1), 0, 100).is_some());
    assert!(buffer.push(Epoch(1), 0, 1).is_none());
    buffer.release(Epoch(1));
    buffer.pop_front();
    assert!(buffer.push(Epoch(2), 0, 100).is_some());
}
