//! Test bench: a toy guest, a toy VMM, images that can be held up, and what serves them.
#![allow(dead_code, unused_imports, missing_docs, reason = "every test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]

mod gated;
mod guest;
pub mod hosts;
pub mod peer;
pub mod program;
mod vmm;

pub use gated::*;
pub use guest::*;
pub use vmm::*;

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;
use vhost::vhost_user::Listener;
use vhost_user_blk_repl::image::{FileImage, Image};
use vhost_user_blk_repl::record::Opened;
use vhost_user_blk_repl::{Device, Options};

pub const LIMIT: Duration = Duration::from_secs(60);

/// A small, seeded random number generator (SplitMix64).
pub struct Rng(pub u64);

impl Rng {
    /// From `SEED`, or from the clock; printed, so that a failure can be repeated.
    pub fn from_env(name: &str) -> Self {
        let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(clock);
        println!("{name}: SEED={seed}");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len.next_multiple_of(8)];
        bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&self.next().to_le_bytes()));
        bytes.truncate(len);
        bytes
    }
}

/// Tries until it works: a listener in another process is seen before it listens.
pub fn soon<T>(attempt: impl Fn() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        match attempt() {
            Some(value) => return value,
            None if Instant::now() < end => thread::yield_now(),
            None => panic!("did not happen"),
        }
    }
}

pub fn wait_readable(fd: &impl AsRawFd, limit: Duration) -> bool {
    // SAFETY: the descriptor is open for as long as its owner is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    let timeout = PollTimeout::try_from(limit.as_millis()).unwrap();
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout).unwrap() > 0
}

/// An image file of random content.
pub fn make_image(dir: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

/// A device served in this process.
pub struct Served {
    pub dir: TempDir,
    pub socket: PathBuf,
    pub exited: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

pub struct Setup {
    pub queues: u16,
    pub read_only: bool,
    pub serial: &'static str,
    pub record: Option<Opened>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { queues: 1, read_only: false, serial: "disk-1", record: None }
    }
}

impl Served {
    pub fn new(image: Arc<dyn Image>, setup: Setup, control: Option<OwnedFd>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vhost");
        let listener = Listener::from(UnixListener::bind(&socket).unwrap());
        let options = Options {
            block_size: 512,
            read_only: setup.read_only,
            serial: setup.serial.to_owned(),
            queues: setup.queues,
            queue_size: 256,
            threads: 4,
            record: setup.record,
            counters: None,
        };
        let exited = Arc::new(AtomicBool::new(false));
        let exit = exited.clone();
        let exit = Arc::new(move || exit.store(true, Ordering::Release));
        let mut device = Device::new(image, options, exit).unwrap();
        if let Some(fd) = control {
            device.attach_control(fd).unwrap();
        }
        let thread = thread::spawn(move || {
            device.accept(listener).unwrap();
            device.serve().unwrap();
        });
        Self { dir, socket, exited, thread: Some(thread) }
    }

    pub fn file(path: &Path) -> Self {
        Self::new(Arc::new(FileImage::open(path, false, false).unwrap()), Setup::default(), None)
    }

    /// After every frontend is gone: waits for the end.
    pub fn join(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Two ends of a TCP connection over loopback.
pub fn tcp_pair() -> (OwnedFd, OwnedFd) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client.into(), server.into())
}
