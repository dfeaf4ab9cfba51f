//! The patterns detect what they are for: torn, swapped, stale and foreign contents.

use engine_tests::pattern::{
    Block, WORDS, chain_next, check_page, check_stream, fill_page, fill_stream, page_digest, set_digest,
};
use engine_tests::wire::{Reply, Request, op};

fn page(number: u64, generation: u64) -> Vec<u64> {
    let mut words = vec![0; WORDS];
    fill_page(&mut words, number, generation);
    words
}

#[test]
fn a_page_is_only_itself() {
    let words = page(3, 7);
    assert!(check_page(&words, 3, 7));
    assert!(!check_page(&words, 3, 6) && !check_page(&words, 4, 7) && !check_page(&words, 7, 3));
    for i in 0..WORDS {
        let mut torn = words.clone();
        torn[i..].copy_from_slice(&page(3, 6)[i..]);
        assert!(!check_page(&torn, 3, 7), "torn at word {i}");
    }
}

#[test]
fn a_piece_of_the_stream_is_only_itself() {
    let mut whole = [0; 9000];
    fill_stream(0, &mut whole);
    for (start, end) in [(0, 9000), (0, 1), (3, 5), (7, 9), (8, 16), (13, 8999), (4095, 8195)] {
        let mut piece = vec![0; end - start];
        fill_stream(start as u64, &mut piece);
        assert_eq!(piece, &whole[start..end], "{start}..{end}");
        assert!(check_stream(start as u64, &piece));
        assert!(!check_stream(start as u64 + 8, &piece), "{start}..{end} one word later");
        piece[(end - start) / 2] ^= 1;
        assert!(!check_stream(start as u64, &piece), "{start}..{end} with a wrong byte");
    }
}

#[test]
fn the_digest_follows_rewrites_in_turn() {
    let mut generations = [1u64; 5];
    for rewrites in 0..23 {
        let sum = generations.iter().zip(0..).fold(0u64, |sum, (g, page)| sum.wrapping_add(page_digest(page, *g)));
        assert_eq!(set_digest(5, rewrites), sum);
        generations[(rewrites % 5) as usize] += 1;
    }
}

#[test]
fn a_block_knows_its_place_and_is_whole() {
    let block = Block { boot: 9, slot: 3, seq: 1027 };
    let mut words = vec![0; WORDS];
    assert_eq!(Block::parse(&words), None, "never written");
    block.fill(&mut words);
    assert_eq!(Block::parse(&words), Some(block));
    let mut newer = vec![0; WORDS];
    Block { seq: 2051, ..block }.fill(&mut newer);
    for i in (8..WORDS).step_by(8) {
        let mut torn = newer.clone();
        torn[i..].copy_from_slice(&words[i..]);
        assert_eq!(Block::parse(&torn), None, "torn at word {i}");
    }
}

#[test]
fn chains_tell_lost_and_repeated_requests() {
    let chain = |seqs: &[u64]| seqs.iter().fold(0, |chain, seq| chain_next(chain, *seq, seq * 11));
    assert_ne!(chain(&[1, 2, 3]), chain(&[1, 3]));
    assert_ne!(chain(&[1, 2, 3]), chain(&[1, 2, 2, 3]));
    assert_ne!(chain(&[1, 2, 3]), chain(&[1, 3, 2]));
}

#[test]
fn datagrams_come_back_as_they_were() {
    let request = Request { op: op::WORK, seq: 5, pages: 6, reply_len: 1400, ..Request::default() };
    let mut bytes = request.encode().to_vec();
    assert_eq!(Request::decode(&bytes[..Request::LEN - 1]), None);
    bytes.extend([1; 100]);
    assert_eq!(Request::decode(&bytes), Some(request));
    let reply = Reply { vcpus: 2, magic: 1, digest: u64::MAX, ..Reply::default() };
    assert_eq!(Reply::decode(&reply.encode()), Some(reply));
}
