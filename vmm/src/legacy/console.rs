//! Where the bytes of a serial line go, and that they go nowhere before they may.
//!
//! In: bytes the guest wrote. Out: bytes on a terminal or in a file. Never: while holding, a byte that was not released; what a
//! guest prints is output like a packet.
//!
//! Holding is by number: bytes are tagged with the number in force when they were written, `release(n)` lets go of those with
//! tags up to n. Released bytes are written by a thread of their own, so that a slow terminal does not hold up who releases.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// The most bytes that are held; what comes on top is lost, as on a real line without flow control.
const HELD_MAX: usize = 4 << 20;

type Sink = Box<dyn Write + Send>;

#[derive(Default)]
struct Queue {
    /// Number that bytes written now are tagged with; `None` = not holding.
    tag: Option<u64>,
    held: VecDeque<(u64, Vec<u8>)>,
    held_bytes: usize,
    lost: u64,
    /// Released, not yet taken by the writer.
    ready: VecDeque<Vec<u8>>,
    /// The writer is in the sink.
    writing: bool,
    exit: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    sink: Mutex<Sink>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_now(&self, bytes: &[u8]) {
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(e) = sink.write_all(bytes).and_then(|()| sink.flush()) {
            tracing::debug!("{} console bytes are lost: {e}", bytes.len());
        }
    }

    /// The writer thread: writes what is released, in order, until there is nothing left and it is told to end.
    fn drain(&self) {
        let mut queue = self.lock();
        loop {
            if let Some(bytes) = queue.ready.pop_front() {
                queue.writing = true;
                drop(queue);
                self.write_now(&bytes);
                queue = self.lock();
                queue.writing = false;
                self.changed.notify_all();
            } else if queue.exit {
                return;
            } else {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// The outside end of a serial line. Shared in an `Arc`.
pub struct ConsoleOut {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl ConsoleOut {
    /// Writes straight to `sink` until [`ConsoleOut::hold`].
    #[must_use]
    pub fn new(sink: Sink) -> Self {
        let shared = Shared { queue: Mutex::new(Queue::default()), changed: Condvar::new(), sink: Mutex::new(sink) };
        Self { shared: Arc::new(shared), writer: Mutex::new(None) }
    }

    /// Output of the guest. Waits for a slow sink only while nothing is held.
    pub fn write(&self, bytes: &[u8]) {
        let mut queue = self.shared.lock();
        if let Some(tag) = queue.tag {
            if queue.held_bytes + bytes.len() > HELD_MAX {
                if queue.lost == 0 {
                    tracing::warn!("output of the serial line is lost: {HELD_MAX} bytes wait for the standby already");
                }
                queue.lost += bytes.len() as u64;
                return;
            }
            queue.held_bytes += bytes.len();
            match queue.held.back_mut() {
                Some((last, held)) if *last == tag => held.extend_from_slice(bytes),
                _ => queue.held.push_back((tag, bytes.to_vec())),
            }
        } else if !queue.ready.is_empty() || queue.writing {
            queue.ready.push_back(bytes.to_vec());
            self.shared.changed.notify_all();
        } else {
            // The lock is kept, so nobody can start to hold in the middle.
            self.shared.write_now(bytes);
        }
    }

    /// From now on bytes are held, tagged `tag`. Called again with every new number.
    ///
    /// # Errors
    /// As for [`ConsoleOut::prepare`]; nothing is held then.
    pub fn hold(&self, tag: u64) -> io::Result<()> {
        self.prepare()?;
        self.shared.lock().tag = Some(tag);
        Ok(())
    }

    /// Does what would take time when output is held for the first time.
    ///
    /// # Errors
    /// When the thread that writes released bytes cannot be started.
    pub fn prepare(&self) -> io::Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer.is_none() {
            let shared = self.shared.clone();
            *writer = Some(std::thread::Builder::new().name("console-out".to_owned()).spawn(move || shared.drain())?);
        }
        Ok(())
    }

    /// Lets go of all bytes with tags up to `tag`. Does not wait for the sink.
    pub fn release(&self, tag: u64) {
        let mut queue = self.shared.lock();
        while queue.held.front().is_some_and(|(of, _)| *of <= tag) {
            let Some((_, bytes)) = queue.held.pop_front() else { break };
            queue.held_bytes -= bytes.len();
            queue.ready.push_back(bytes);
        }
        if !queue.ready.is_empty() {
            self.shared.changed.notify_all();
        }
    }

    /// Lets go of everything and stops holding.
    pub fn stop_holding(&self) {
        self.shared.lock().tag = None;
        self.release(u64::MAX);
    }

    /// Drops what is held. Goes on holding if it did.
    pub fn discard(&self) {
        let mut queue = self.shared.lock();
        queue.held.clear();
        queue.held_bytes = 0;
    }

    /// Bytes held now.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.shared.lock().held_bytes
    }

    /// Bytes lost because too many were held.
    #[cfg(test)]
    fn lost_bytes(&self) -> u64 {
        self.shared.lock().lost
    }
}

impl Drop for ConsoleOut {
    /// What is released is still written; what is held is not.
    fn drop(&mut self) {
        self.shared.lock().exit = true;
        self.shared.changed.notify_all();
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if writer.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the console's writer has panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Sends each write to the test.
    struct Channel(mpsc::Sender<Vec<u8>>);

    impl Write for Channel {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn console() -> (ConsoleOut, mpsc::Receiver<Vec<u8>>) {
        let (send, receive) = mpsc::channel();
        (ConsoleOut::new(Box::new(Channel(send))), receive)
    }

    #[test]
    fn without_hold_bytes_go_straight_through() {
        let (console, out) = console();
        console.write(b"a");
        assert_eq!(out.try_recv().unwrap(), b"a");
    }

    #[test]
    fn held_bytes_come_out_by_number_and_in_order() {
        let (console, out) = console();
        console.hold(5).unwrap();
        console.write(b"a");
        console.write(b"b");
        console.hold(6).unwrap();
        console.write(b"c");
        assert_eq!(console.held_bytes(), 3);
        console.release(4);
        assert!(out.try_recv().is_err());
        console.release(5);
        assert_eq!(out.recv().unwrap(), b"ab");
        assert_eq!(console.held_bytes(), 1);
        console.stop_holding();
        console.write(b"d");
        drop(console);
        assert_eq!(out.iter().collect::<Vec<_>>().concat(), b"cd");
    }

    #[test]
    fn discarded_and_unreleased_bytes_never_come_out() {
        let (console, out) = console();
        console.hold(1).unwrap();
        console.write(b"lost");
        console.discard();
        console.release(1);
        console.write(b"held");
        drop(console);
        assert_eq!(out.iter().count(), 0);
    }

    #[test]
    fn too_much_is_lost_not_kept() {
        let (console, _out) = console();
        console.hold(1).unwrap();
        console.write(&vec![0; HELD_MAX]);
        console.write(b"abc");
        assert_eq!((console.held_bytes(), console.lost_bytes()), (HELD_MAX, 3));
    }
}
