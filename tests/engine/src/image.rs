//! A raw disk image that the guest's disk writer works on, and the check of what it must hold.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pollux_guest::pattern::{Block, PAGE};
use pollux_guest::wire::Reply;

/// A write of one page takes less.
const MOMENT: Duration = Duration::from_millis(10);

/// An image file.
pub struct Image {
    path: PathBuf,
}

fn read_words(file: &File, slot: u64) -> Vec<u64> {
    let mut bytes = [0; PAGE];
    file.read_exact_at(&mut bytes, slot * PAGE as u64).expect("read an image");
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
}

impl Image {
    /// An empty image of `mib` MiB.
    #[must_use]
    pub fn new(path: &Path, mib: u64) -> Self {
        let file = File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        file.set_len(mib << 20).expect("size of an image");
        // One hole would be taken for the place of a copy. Both hosts of a pair have overwrite=on.
        file.write_all_at(&[1], (mib << 20) - 1).expect("content of an image");
        Self { path: path.to_path_buf() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Panic unless the image holds every write that was complete when the guest sent `reply`; newer ones are
    /// fine. Returns the number of the newest write in it.
    pub fn check(&self, reply: &Reply) -> u64 {
        let file = File::open(&self.path).expect("open an image");
        let mut newest = 0;
        for slot in 0..reply.disk_slots {
            // The newest complete write to this slot, if any.
            let back = (reply.disk_done % reply.disk_slots + reply.disk_slots - slot) % reply.disk_slots;
            let Some(due) = reply.disk_done.checked_sub(back).filter(|seq| *seq > 0) else { continue };
            // A device process that still writes this slot may be caught in the middle of it.
            let block = (0..100)
                .find_map(|_| {
                    let block = Block::parse(&read_words(&file, slot));
                    block.is_none().then(|| std::thread::sleep(MOMENT));
                    block
                })
                .unwrap_or_else(|| panic!("slot {slot} is torn; write {due} should be there"));
            assert_eq!((block.boot, block.slot), (reply.boot, slot), "a block at the wrong place");
            assert!(block.seq >= due, "slot {slot} holds write {}, but {due} was complete", block.seq);
            newest = newest.max(block.seq);
        }
        newest
    }
}
