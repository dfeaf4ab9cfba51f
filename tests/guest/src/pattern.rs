//! Patterns that prove where a page or a disk block comes from: any mix of two generations is detected.

/// 64-bit words in a page of memory and in a block on disk.
pub const WORDS: usize = 512;
/// Bytes in a page of memory and in a block on disk.
pub const PAGE: usize = WORDS * 8;

/// First word of a disk block.
pub const BLOCK_MAGIC: u64 = 0x4b4c_4258_554c_4c50;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A bijective scrambling of 64 bits (the finaliser of splitmix64).
#[must_use]
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn page_seed(page: u64, generation: u64) -> u64 {
    mix(mix(page) ^ generation)
}

/// Write the pattern of `page` at `generation` into the first words of `words`, as many as it has.
pub fn fill_page(words: &mut [u64], page: u64, generation: u64) {
    let mut value = page_seed(page, generation);
    for word in words {
        *word = value;
        value = value.wrapping_add(GOLDEN);
    }
}

/// Whether `words` hold what [`fill_page`] wrote.
#[must_use]
pub fn check_page(words: &[u64], page: u64, generation: u64) -> bool {
    let mut value = page_seed(page, generation);
    let mut difference = 0;
    for word in words {
        difference |= *word ^ value;
        value = value.wrapping_add(GOLDEN);
    }
    difference == 0
}

/// Write the piece of the endless stream that starts at `position` into `bytes`.
pub fn fill_stream(position: u64, bytes: &mut [u8]) {
    let mut word = position / 8;
    let mut next = || {
        let bytes = word.wrapping_mul(GOLDEN).to_le_bytes();
        word += 1;
        bytes
    };
    let skip = (position % 8) as usize;
    let (head, body) = bytes.split_at_mut(((8 - skip) % 8).min(bytes.len()));
    if !head.is_empty() {
        head.copy_from_slice(&next()[skip..][..head.len()]);
    }
    for chunk in body.chunks_mut(8) {
        chunk.copy_from_slice(&next()[..chunk.len()]);
    }
}

/// Whether `bytes` are the piece of the stream that starts at `position`.
#[must_use]
pub fn check_stream(mut position: u64, bytes: &[u8]) -> bool {
    let mut expected = [0; 4096];
    bytes.chunks(expected.len()).all(|chunk| {
        let expected = &mut expected[..chunk.len()];
        fill_stream(position, expected);
        position += chunk.len() as u64;
        expected == chunk
    })
}

/// What one page at one generation adds to the digest of its working set.
#[must_use]
pub fn page_digest(page: u64, generation: u64) -> u64 {
    mix(page_seed(page, generation))
}

/// The digest of a working set of `pages` pages after `rewrites` rewrites, which take page after page in
/// turn. A page starts at generation 1.
#[must_use]
pub fn set_digest(pages: u64, rewrites: u64) -> u64 {
    let mut digest = 0u64;
    for page in 0..pages {
        let generation = 1 + rewrites / pages + u64::from(page < rewrites % pages);
        digest = digest.wrapping_add(page_digest(page, generation));
    }
    digest
}

/// The value of a client's chain after request `seq` that carried `word`.
#[must_use]
pub fn chain_next(chain: u64, seq: u64, word: u64) -> u64 {
    mix(chain ^ mix(seq) ^ word)
}

/// What a disk block says of itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Block {
    /// Random number of the boot that wrote it.
    pub boot: u64,
    /// Where in the writer's region it belongs, in blocks.
    pub slot: u64,
    /// Number of the write, from 1.
    pub seq: u64,
}

impl Block {
    /// Fill `words` ([`WORDS`] of them) with this block.
    pub fn fill(&self, words: &mut [u64]) {
        let (head, body) = words.split_at_mut(4);
        head.copy_from_slice(&[BLOCK_MAGIC, self.boot, self.slot, self.seq]);
        fill_page(body, self.boot ^ self.slot, self.seq);
    }

    /// The block that `words` hold, or none if they are torn or were never written.
    #[must_use]
    pub fn parse(words: &[u64]) -> Option<Self> {
        let (&[magic, boot, slot, seq], body) = words.split_first_chunk::<4>()?;
        (magic == BLOCK_MAGIC && check_page(body, boot ^ slot, seq)).then_some(Self { boot, slot, seq })
    }
}
