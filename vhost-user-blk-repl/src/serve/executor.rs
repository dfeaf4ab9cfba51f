//! File I/O executor: a few threads that read, write, zero and sync the image through private buffers.
//!
//! In: [`Op`]s with an id. Out: [`Completion`]s in order of completion, announced on an eventfd. Never
//! touches guest memory.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex};

use crossbeam_channel::{Receiver, Sender, unbounded};
use host_kit::sandbox::Needs;
use host_kit::sync::lock;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::image::buffer::Buffer;
use crate::image::range::Range;
use crate::image::{Image, OpError};

/// One operation on the image.
pub enum Op {
    /// Fill the buffer from `offset` on.
    Read {
        /// Byte offset.
        offset: u64,
        /// Where the data goes; returned in [`Completion`].
        into: Buffer,
    },
    /// Write the buffer.
    Write {
        /// Byte offset.
        offset: u64,
        /// The data.
        from: Arc<Buffer>,
        /// Make it durable before it counts as done.
        sync: bool,
    },
    /// Make ranges read as zero.
    Zero {
        /// Which.
        ranges: Vec<Range>,
        /// Whether the space may be let go.
        unmap: bool,
        /// Make it durable before it counts as done.
        sync: bool,
    },
    /// Make completed writes durable.
    Flush,
}

impl Op {
    /// What it does and where, for an error.
    fn place(&self) -> (&'static str, u64, u64) {
        match self {
            Self::Read { offset, into } => ("read", *offset, into.len() as u64),
            Self::Write { offset, from, .. } => ("write", *offset, from.len() as u64),
            Self::Zero { ranges, .. } => {
                ("zeroing", ranges.first().map_or(0, |range| range.offset), ranges.iter().map(|range| range.len).sum())
            }
            Self::Flush => ("flush", 0, 0),
        }
    }
}

/// A finished operation.
pub struct Completion {
    /// As given to [`Executor::submit`].
    pub id: u64,
    /// How it went.
    pub result: Result<(), OpError>,
    /// The buffer of a read.
    pub buffer: Option<Buffer>,
}

struct Finished {
    list: Mutex<Vec<Completion>>,
    some: Condvar,
    event: EventFd,
}

/// The executor. Its threads end when it is dropped.
pub struct Executor {
    jobs: Sender<(u64, Op)>,
    finished: Arc<Finished>,
}

impl Executor {
    /// Starts `threads` I/O threads on `image`.
    ///
    /// # Errors
    /// When the kernel refuses an eventfd or a thread.
    pub fn new(image: Arc<dyn Image>, threads: usize) -> io::Result<Self> {
        let (jobs, queue) = unbounded();
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let finished = Arc::new(Finished { list: Mutex::default(), some: Condvar::new(), event });
        for index in 0..threads {
            let (image, queue, finished) = (image.clone(), queue.clone(), finished.clone());
            host_kit::thread::spawn(format!("blk_io{index}"), Needs::STORAGE, move || run(&*image, &queue, &finished))?;
        }
        Ok(Self { jobs, finished })
    }

    /// Queues an operation. Operations run in any order: the caller keeps overlapping ones apart.
    pub fn submit(&self, id: u64, op: Op) {
        // The receiving threads live as long as this sender.
        let _ = self.jobs.send((id, op));
    }

    /// Readable when [`Executor::take_finished`] has something.
    #[must_use]
    pub fn event(&self) -> RawFd {
        self.finished.event.as_raw_fd()
    }

    /// Has [`Executor::event`] be readable once, whether something has finished or not.
    pub fn wake(&self) {
        // As below.
        let _ = self.finished.event.write(1);
    }

    /// What has finished since the last call; resets the eventfd. Does not block.
    #[must_use]
    pub fn take_finished(&self) -> Vec<Completion> {
        let _ = self.finished.event.read();
        mem::take(&mut *lock(&self.finished.list))
    }

    /// Blocks until something has finished.
    pub fn wait(&self) {
        let list = lock(&self.finished.list);
        drop(self.finished.some.wait_while(list, |list| list.is_empty()));
    }
}

fn run(image: &dyn Image, queue: &Receiver<(u64, Op)>, finished: &Finished) {
    for (id, op) in queue {
        let (what, offset, len) = op.place();
        let (result, buffer) = perform(image, op);
        let result = result.map_err(|source| OpError { what, offset, len, source });
        lock(&finished.list).push(Completion { id, result, buffer });
        finished.some.notify_one();
        // Fails only when the counter is at its end, and then it is readable already.
        let _ = finished.event.write(1);
    }
}

fn perform(image: &dyn Image, op: Op) -> (io::Result<()>, Option<Buffer>) {
    let synced = |result: io::Result<()>, sync| result.and_then(|()| if sync { image.sync() } else { Ok(()) });
    match op {
        Op::Read { offset, mut into } => (image.read_at(offset, &mut into), Some(into)),
        Op::Write { offset, from, sync } => (synced(image.write_at(offset, &from), sync), None),
        Op::Zero { ranges, unmap, sync } => {
            let result = ranges.iter().try_for_each(|range| image.zero(range.offset, range.len, unmap));
            (synced(result, sync), None)
        }
        Op::Flush => (image.sync(), None),
    }
}
