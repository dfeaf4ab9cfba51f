//! Random guests over the whole way: staged, coded, framed, read, staged again, applied. The copy is what the
//! guest was.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use ft_transport::frames::{read_body, read_header};
use ft_wire::packing::Unpacker;
use ft_wire::pages::{DELTA_PAGE, ZERO_PAGE};
use ft_wire::session::{HEADER_LEN, Header};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::guest::{GuestError, Memory};
use crate::stream::image::{Image, WholeImage, apply_pages};

/// Guest memory has a hole and does not begin at zero.
const RAM: [Range<u64>; 2] = [3..20, 40..43];
const PAGES: usize = 20;
const TERM: Term = Term(5);

/// Pages of memory at [`RAM`].
#[derive(Clone)]
struct Ram(Arc<Mutex<Vec<Page>>>);

impl Ram {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(vec![[0; PAGE]; PAGES])))
    }

    fn with<R>(&self, page: u64, use_it: impl FnOnce(&mut Page) -> R) -> Result<R, GuestError> {
        let at = numbers().position(|number| number == page).ok_or(GuestError::plain("not RAM"))?;
        Ok(use_it(&mut self.0.lock().unwrap()[at]))
    }

    fn pages(&self) -> Vec<Page> {
        self.0.lock().unwrap().clone()
    }
}

impl Memory for Ram {
    fn ranges(&self) -> Vec<Range<u64>> {
        RAM.to_vec()
    }

    fn populated(&self) -> Result<Vec<Range<u64>>, GuestError> {
        Ok(self.ranges())
    }

    fn copy_out(&self, page: u64, into: &mut [u8]) -> Result<(), GuestError> {
        self.with(page, |bytes| into.copy_from_slice(bytes))
    }

    fn copy_in(&self, page: u64, from: &[u8]) -> Result<(), GuestError> {
        self.with(page, |bytes| bytes.copy_from_slice(from))
    }

    fn zero(&self, page: u64) -> Result<(), GuestError> {
        self.with(page, |bytes| bytes.fill(0))
    }

    fn clear(&self) -> Result<(), GuestError> {
        self.0.lock().unwrap().fill([0; PAGE]);
        Ok(())
    }
}

fn numbers() -> impl Iterator<Item = u64> {
    RAM.into_iter().flatten()
}

/// What a guest does to a page.
#[derive(Clone, Debug)]
enum Write {
    Byte(Index, u8),
    Everything(u8),
    Noise(u64),
    Zero,
    Nothing,
}

impl Write {
    fn to(&self, page: &mut Page) {
        match self {
            Self::Byte(at, byte) => page[at.index(PAGE)] = *byte,
            Self::Everything(byte) => page.fill(*byte),
            Self::Noise(seed) => {
                let mut state = *seed;
                for word in page.as_chunks_mut::<8>().0 {
                    state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                    *word = state.to_le_bytes();
                }
            }
            Self::Zero => page.fill(0),
            Self::Nothing => {}
        }
    }
}

fn a_write() -> impl Strategy<Value = (Index, Write)> {
    let write = prop_oneof![
        6 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Write::Byte(at, byte)),
        1 => any::<u8>().prop_map(Write::Everything),
        1 => any::<u64>().prop_map(Write::Noise),
        1 => Just(Write::Zero),
        1 => Just(Write::Nothing),
    ];
    (any::<Index>(), write)
}

/// One cut: what was written before it, whether it is packed, whether its capture is aborted, whether the
/// standby applies one epoch that waits before it reads this one.
type Cut = (Vec<(Index, Write)>, bool, bool, bool);

fn cuts() -> impl Strategy<Value = Vec<Cut>> {
    let aborted = prop::bool::weighted(0.1);
    vec((vec(a_write(), 0..30), any::<bool>(), aborted, any::<bool>()), 1..40)
}

/// The standby's side of a stream.
struct Standby {
    memory: Ram,
    waiting: VecDeque<WholeImage>,
    next: Epoch,
}

impl Standby {
    fn read(&mut self, mut wire: &[u8]) -> Result<(), TransportError> {
        let mut image = Image::new(self.next, RAM.into());
        let mut unpacker = Unpacker::new()?;
        while !wire.is_empty() {
            let (header, mut body) = (read_header(&mut wire)?, Vec::new());
            read_body(&mut wire, &header, &mut body, &mut unpacker)?;
            match header.kind {
                Kind::Copy => apply_pages(header.kind, &body, &self.memory).map_err(std::io::Error::other)?,
                Kind::End => {
                    self.waiting.push_back(image.close(&header, &body)?);
                    self.next = self.next.next();
                    image = Image::new(self.next, RAM.into());
                }
                _ => image.add(&header, body)?,
            }
        }
        Ok(())
    }

    fn apply_one(&mut self) -> Option<Epoch> {
        let image = self.waiting.pop_front()?;
        image.apply(&self.memory).unwrap();
        Some(image.epoch())
    }
}

/// A staged epoch of all `pages`.
fn staged(memory: &Ram, epoch: Epoch, pages: Vec<u64>) -> Staging {
    let mut staging = Staging::default();
    staging.clear(epoch);
    staging.pages = pages;
    staging.copy_pages(memory).unwrap();
    staging.state = vec![epoch.0 as u8; 100];
    staging
}

/// Writes to some pages; returns which, each once.
fn write(memory: &Ram, writes: &[(Index, Write)], dirty: &mut Vec<u64>) {
    for (page, write) in writes {
        let number = numbers().nth(page.index(PAGES)).unwrap();
        memory.with(number, |bytes| write.to(bytes)).unwrap();
        if !dirty.contains(&number) {
            dirty.push(number);
        }
    }
}

/// The first copy and `cuts`, at a standby that may be two epochs behind.
fn run(cuts: &[Cut], slots: u64) -> Result<(), TestCaseError> {
    let guest = Ram::new();
    let mut standby = Standby { memory: Ram::new(), waiting: VecDeque::new(), next: Epoch(1) };
    let mut coder = Coder::new(History::new(&RAM, slots * PAGE as u64));
    let (mut wire, mut dirty) = (Vec::new(), Vec::new());
    write(&guest, &cuts[0].0, &mut dirty);
    coder.send_copy(&staged(&guest, Epoch(0), numbers().collect()), cuts[0].1, &mut wire, TERM).unwrap();
    standby.read(&wire).unwrap();
    prop_assert!(standby.memory.pages() == guest.pages(), "after the first copy");
    dirty.clear();
    let (mut epoch, mut cut_as) = (Epoch(1), VecDeque::new());
    let applied = |standby: &mut Standby, cut_as: &mut VecDeque<Vec<Page>>| {
        let epoch = standby.apply_one();
        let right = epoch.is_none() || cut_as.pop_front() == Some(standby.memory.pages());
        prop_assert!(right, "epoch {epoch:?} is not what was cut");
        Ok(())
    };
    for (writes, pack, aborted, apply) in cuts {
        write(&guest, writes, &mut dirty);
        let staging = staged(&guest, epoch, dirty.clone());
        if *aborted {
            // Its pages are put back, and nothing was sent.
            continue;
        }
        dirty.clear();
        wire.clear();
        let volume = coder.send_epoch(&staging, *pack, &mut wire, TERM).unwrap();
        prop_assert!(volume.sent <= volume.raw && volume.sent < wire.len() as u64);
        if *apply || standby.waiting.len() == 2 {
            applied(&mut standby, &mut cut_as)?;
        }
        standby.read(&wire).unwrap();
        cut_as.push_back(guest.pages());
        epoch = epoch.next();
    }
    while !standby.waiting.is_empty() {
        applied(&mut standby, &mut cut_as)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_copy_is_what_the_guest_was_at_each_cut(cuts in cuts(), slots in 0..2 * PAGES as u64) {
        run(&cuts, slots)?;
    }

    #[test]
    fn a_corrupt_stream_is_refused_and_nothing_of_it_applied(
        cuts in cuts(), at in any::<Index>(), bit in 0..8_u8,
    ) {
        let (guest, mut coder) = (Ram::new(), Coder::new(History::new(&RAM, 1 << 20)));
        let (mut wire, mut dirty) = (Vec::new(), Vec::new());
        for (cut, epoch) in cuts.iter().take(3).zip([1, 1, 2]) {
            write(&guest, &cut.0, &mut dirty);
            wire.clear();
            coder.send_epoch(&staged(&guest, Epoch(epoch), dirty.clone()), cut.1, &mut wire, TERM).unwrap();
        }
        let at = at.index(wire.len());
        wire[at] ^= 1 << bit;
        let next = if cuts.len() < 3 { Epoch(1) } else { Epoch(2) };
        let mut standby = Standby { memory: Ram::new(), waiting: VecDeque::new(), next };
        prop_assert!(standby.read(&wire).is_err());
        prop_assert!(standby.waiting.is_empty());
    }

    /// Whoever can forge hashes, too, gets a refusal or an epoch that stays within guest memory, and never a
    /// crash.
    #[test]
    fn a_forged_body_does_no_harm(
        cuts in cuts(), wrong in vec((any::<Index>(), any::<u8>()), 1..6), raw in prop::option::of(any::<u32>()),
    ) {
        let (guest, mut coder) = (Ram::new(), Coder::new(History::new(&RAM, 1 << 20)));
        let (mut wire, mut dirty) = (Vec::new(), Vec::new());
        for cut in cuts.iter().take(2) {
            write(&guest, &cut.0, &mut dirty);
            wire.clear();
            coder.send_epoch(&staged(&guest, Epoch(1), dirty.clone()), cut.1, &mut wire, TERM).unwrap();
        }
        let header = Header::decode(wire.first_chunk().unwrap()).unwrap();
        let mut body = wire[HEADER_LEN..][..header.len as usize].to_vec();
        for (at, byte) in wrong {
            let at = at.index(body.len());
            body[at] = byte;
        }
        let parts = [&body[..]];
        let stamp = Stamp { kind: header.kind, term: TERM, epoch: header.epoch };
        let mut forged = Vec::new();
        let raw = raw.unwrap_or(header.raw);
        write_frames(&mut forged, &[Frame::packed(stamp, &parts, raw)]).unwrap();
        let mut from = &forged[..];
        let Ok(header) = read_header(&mut from) else { return Ok(()) };
        let mut unpacked = Vec::new();
        if read_body(&mut from, &header, &mut unpacked, &mut Unpacker::new()?).is_ok() && header.kind == Kind::Pages {
            let memory = Ram::new();
            if Image::new(Epoch(1), RAM.into()).add(&header, unpacked.clone()).is_ok() {
                apply_pages(header.kind, &unpacked, &memory).unwrap();
            }
        }
    }
}

/// Sends one page again and again; the bytes of each time.
fn sizes(history: u64, times: usize, change: impl Fn(usize, &mut Page)) -> Vec<u64> {
    let (guest, mut coder) = (Ram::new(), Coder::new(History::new(&RAM, history)));
    let mut send = |at| {
        guest.with(7, |page| change(at, page)).unwrap();
        let mut wire = Vec::new();
        coder.send_copy(&staged(&guest, Epoch(0), vec![7]), false, &mut wire, TERM).unwrap().sent
    };
    (0..times).map(&mut send).collect()
}

#[test]
fn a_page_with_a_changed_word_costs_a_few_bytes() {
    let sizes = sizes(1 << 20, 10, |at, page| {
        Write::Noise(1).to(page);
        page[100] = at as u8;
    });
    assert_eq!(sizes[0], 8 + 8 + PAGE as u64);
    assert_eq!(sizes[1..], [8 + 8 + 1 + 8 + 8; 9]);
}

#[test]
fn a_page_that_did_not_change_is_not_sent() {
    assert_eq!(sizes(1 << 20, 3, |_, page| page.fill(3)), [16 + PAGE as u64, 0, 0]);
}

#[test]
fn a_page_that_is_sent_whole_in_vain_is_told() {
    // With nothing to compare it with but a digest.
    let (guest, mut coder) = (Ram::new(), Coder::new(History::new(&RAM, 0)));
    let mut told = Vec::new();
    for noise in [Some(1), None, Some(2), None] {
        if let Some(noise) = noise {
            guest.with(7, |page| Write::Noise(noise).to(page)).unwrap();
        }
        // Page 8 is zeroes all the time.
        let staging = staged(&guest, Epoch(1), vec![7, 8]);
        let volume = coder.send_epoch(&staging, false, &mut Vec::new(), TERM).unwrap();
        assert!(volume.sent > PAGE as u64);
        told.push(coder.take_forms());
    }
    let (new, old) = ([(7, Form::Whole), (8, Form::Same)], [(7, Form::WholeAgain), (8, Form::Same)]);
    assert_eq!(told, [[(7, Form::Whole), (8, Form::Delta)], old, new, old]);
}

#[test]
fn a_page_that_is_always_rewritten_is_hardly_ever_looked_at() {
    let (guest, mut history) = (Ram::new(), History::new(&RAM, 1 << 20));
    let mut looked_at = 0;
    for at in 0..10_000 {
        guest.with(7, |page| Write::Noise(at).to(page)).unwrap();
        let before = history.is_known(7);
        let form = guest.with(7, |page| history.form(7, page, &mut Vec::new())).unwrap();
        assert_eq!(form, Form::Whole);
        looked_at += usize::from(before || history.is_known(7));
    }
    assert!(looked_at < 10_000 / 100, "{looked_at} times");
}

#[test]
fn a_list_says_which_pages_are_deltas() {
    let guest = Ram::new();
    let mut lister = Lister { history: History::new(&RAM, 1 << 20), ..Lister::default() };
    for round in 0..2 {
        for (number, fill) in [(3, 0), (4, 1), (40, 2)] {
            guest
                .with(number, |page| {
                    page.fill(fill);
                    page[9] = fill * round;
                })
                .unwrap();
        }
        let staging = staged(&guest, Epoch(1), vec![3, 4, 40]);
        let (numbers, contents) = staging.chunks().next().unwrap();
        lister.fill(numbers, contents);
    }
    let index = lister.list.parts(&[])[0];
    let entries: Vec<_> = index.as_chunks().0.iter().map(|entry| u64::from_le_bytes(*entry)).collect();
    assert_eq!(entries, [3, 3 | ZERO_PAGE, 4 | DELTA_PAGE, 40 | DELTA_PAGE]);
}
