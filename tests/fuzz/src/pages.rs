//! Checkpoints, from the primary's memory to the standby's: after each epoch the two are equal, however the
//! pages were coded.
//!
//! Input: settings, then what the guest does: edits of pages, and ends of epochs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ft::Staging;
use ft::guest::Memory;
use ft_wire::state::Position;
use ft::sim::{Coder, History, Intake, Received};
use ft_transport::frames::{read_body, read_header};
use ft_wire::packing::Unpacker;
use ft_wire::pages::PAGE;
use ft_proto::{Epoch, Term, Time};

use crate::bytes::Bytes;
use crate::memory::Ram;

/// Epochs of one input.
const EPOCHS_MAX: u64 = 8;
const TERM: Term = Term(3);

/// The two hosts.
struct Pair {
    primary: Ram,
    standby: Arc<Ram>,
    coder: Coder,
    intake: Intake,
    committed: Arc<AtomicU64>,
    unpacker: Unpacker,
    pack: bool,
    dirty: Vec<u64>,
}

/// Sends what the input's guest writes.
pub fn run(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let settings = bytes.u8();
    let mut pair = Pair::new(settings);
    pair.first_copy();
    for epoch in 1..=EPOCHS_MAX {
        if bytes.is_empty() {
            break;
        }
        pair.guest(&mut bytes);
        pair.checkpoint(Epoch(epoch), bytes.take(8));
        assert!(pair.primary.contents() == pair.standby.contents(), "epoch {epoch} differs");
    }
}

impl Pair {
    fn new(settings: u8) -> Self {
        let (primary, standby) = (Ram::default(), Arc::<Ram>::default());
        let committed = Arc::<AtomicU64>::default();
        let cache = u64::from(settings >> 2) * PAGE as u64;
        let history = History::new(&primary.ranges(), if settings & 1 != 0 { cache } else { 0 });
        Self {
            primary,
            coder: Coder::new(history),
            intake: Intake::new(standby.clone(), committed.clone()),
            standby,
            committed,
            unpacker: Unpacker::new().unwrap(),
            pack: settings & 2 != 0,
            dirty: Vec::new(),
        }
    }

    /// Everything, page by page.
    fn first_copy(&mut self) {
        let all: Vec<u64> = self.primary.ranges().into_iter().flatten().collect();
        let staging = self.staged(Epoch(0), all);
        let mut stream = Vec::new();
        self.coder.send_copy(&staging, self.pack, &mut stream, TERM).unwrap();
        self.receive(&stream);
    }

    /// The guest runs until the input says that the epoch ends.
    fn guest(&mut self, bytes: &mut Bytes<'_>) {
        while !bytes.is_empty() {
            let (what, number) = (bytes.u8(), Ram::page(bytes.u8()));
            let mut page = [0; PAGE];
            self.primary.copy_out(number, &mut page).unwrap();
            match what % 4 {
                0 => return,
                1 => page.fill(bytes.u8()),
                2 => page.fill(0),
                _ => {
                    let (at, len) = (usize::from(bytes.u16()) % PAGE, usize::from(bytes.u8()));
                    let edit = bytes.take(len.min(PAGE - at));
                    page[at..at + edit.len()].copy_from_slice(edit);
                }
            }
            self.primary.copy_in(number, &page).unwrap();
            if !self.dirty.contains(&number) {
                self.dirty.push(number);
            }
        }
    }

    fn staged(&self, epoch: Epoch, pages: Vec<u64>) -> Staging {
        let mut staging = Staging::default();
        staging.clear(epoch);
        staging.pages.extend(pages);
        staging.copy_pages(&self.primary).unwrap();
        staging
    }

    fn checkpoint(&mut self, epoch: Epoch, state: &[u8]) {
        let pages = std::mem::take(&mut self.dirty);
        let mut staging = self.staged(epoch, pages);
        staging.positions = vec![Position { id: "_disk0".to_owned(), idle: true, ..Position::default() }];
        staging.state = [&[1], state].concat();
        let mut stream = Vec::new();
        self.coder.send_epoch(&staging, self.pack, &mut stream, TERM).unwrap();
        let image = self.receive(&stream).expect("an epoch that is not whole");
        let Received::Whole(image) = image else { panic!("not an epoch: {image:?}") };
        assert_eq!((image.epoch(), image.state()), (epoch, &staging.state[..]));
        assert!(image.is_idle("_disk0"));
        image.apply(&*self.standby).unwrap();
        self.committed.store(epoch.0, Ordering::Release);
    }

    fn receive(&mut self, stream: &[u8]) -> Option<Received> {
        let (mut stream, mut body, mut last) = (stream, Vec::new(), None);
        while !stream.is_empty() {
            assert!(last.is_none(), "frames after the end of an epoch");
            let header = read_header(&mut stream).unwrap();
            read_body(&mut stream, &header, &mut body, &mut self.unpacker).unwrap();
            last = self.intake.take(&header, &mut body, Time::default()).unwrap();
        }
        last
    }
}
