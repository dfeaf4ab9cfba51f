//! Where the bytes of a serial line go, and that they go nowhere before they may.
//!
//! In: bytes the guest wrote. Out: bytes on a terminal or in a file. Never: while holding, a byte that was
//! not released, since what a guest prints is output like a packet; and nobody but the thread that writes
//! ever waits for a terminal or file.
//!
//! Holding is by number: bytes are tagged with the number in force when they were written, `release(n)` lets
//! go of those with tags up to n. What is let go, and what is not held, waits in a buffer for the thread that
//! writes it. Both are bounded: what does not fit is lost, as on a real line without flow control, and
//! counted.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use host_kit::log_limit::Limit;
use host_kit::sandbox::Needs;

/// The most bytes that are held.
const HELD_MAX: usize = 4 << 20;
/// The most bytes that wait to be written. No less than are held, so that a release loses nothing if the sink
/// keeps up.
const READY_MAX: usize = HELD_MAX;
/// The most bytes that are handed to the sink at once.
const WRITE_MAX: usize = 64 << 10;
/// How long the sink has to take what is left when the line is closed.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why output is lost, as a rule.
const NOBODY: &str = "nobody reads it";
/// Nobody needs to know more often that output is lost: there may be a terminal that nobody ever looks at.
static LOSS_LOG: Limit = Limit::new(1, Duration::from_secs(60));

type Sink = Box<dyn Write + Send>;

/// Told the number of output that is held, once for each number.
type OnHeld = Arc<dyn Fn(u64) + Send + Sync>;

#[derive(Default)]
struct Queue {
    /// Number that bytes written now are tagged with; `None` = not holding.
    tag: Option<u64>,
    held: VecDeque<(u64, Vec<u8>)>,
    held_bytes: usize,
    /// Not held, not yet taken by the writer.
    ready: VecDeque<u8>,
    /// The writer is in the sink.
    writing: bool,
    lost: u64,
    exit: bool,
    /// For whoever decides what is let go.
    on_held: Option<OnHeld>,
}

impl Queue {
    /// Has the bytes written, as far as they fit.
    fn let_go(&mut self, bytes: &[u8]) {
        let fit = bytes.len().min(READY_MAX - self.ready.len().min(READY_MAX));
        self.ready.extend(&bytes[..fit]);
        self.lose(bytes.len() - fit, NOBODY);
    }

    fn lose(&mut self, bytes: usize, why: &str) {
        if bytes > 0 {
            self.lost += bytes as u64;
            if LOSS_LOG.admit().is_some() {
                tracing::warn!("output of the serial line is lost, {} bytes so far: {why}", self.lost);
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.ready.is_empty() && !self.writing
    }
}

struct Shared {
    queue: Mutex<Queue>,
    /// For the writer: something to write, or the end. For whoever waits for the writer: it is idle.
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer thread: writes what may leave, in order, until there is nothing left and it is told to end.
    fn drain(&self, mut sink: Sink) {
        let mut bytes = Vec::new();
        let mut queue = self.lock();
        loop {
            if queue.ready.is_empty() {
                self.changed.notify_all();
                if queue.exit {
                    return;
                }
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let count = queue.ready.len().min(WRITE_MAX);
            bytes.clear();
            bytes.extend(queue.ready.drain(..count));
            queue.writing = true;
            drop(queue);
            let (written, result) = write(&mut *sink, &bytes);
            queue = self.lock();
            queue.writing = false;
            if let Err(error) = result {
                let unread = error.kind() == io::ErrorKind::WouldBlock;
                queue.lose(bytes.len() - written, &if unread { NOBODY.to_owned() } else { error.to_string() });
            }
        }
    }
}

/// Writes all bytes; if that fails, tells how many it has written.
fn write(sink: &mut dyn Write, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match sink.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, sink.flush())
}

/// The outside end of a serial line. Shared in an `Arc`.
pub struct ConsoleOut {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

impl ConsoleOut {
    /// Has what is not held written to `sink`, by a thread that does nothing else.
    ///
    /// # Errors
    /// When there is no thread left.
    pub fn new(sink: Sink) -> io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new() });
        let of_thread = shared.clone();
        let writer = host_kit::thread::spawn("console-out", Needs::MESSAGES, move || of_thread.drain(sink))?;
        Ok(Self { shared, writer: Some(writer) })
    }

    /// Output of the guest. Never waits for the sink.
    pub fn write(&self, bytes: &[u8]) {
        let mut queue = self.shared.lock();
        let Some(tag) = queue.tag else {
            // The writer sleeps only when it has nothing to write.
            let asleep = queue.is_idle();
            queue.let_go(bytes);
            drop(queue);
            if asleep {
                self.shared.changed.notify_all();
            }
            return;
        };
        if queue.held_bytes + bytes.len() > HELD_MAX {
            return queue.lose(bytes.len(), "too much of it waits for the standby");
        }
        queue.held_bytes += bytes.len();
        match queue.held.back_mut() {
            Some((last, held)) if *last == tag => return held.extend_from_slice(bytes),
            _ => queue.held.push_back((tag, bytes.to_vec())),
        }
        let on_held = queue.on_held.clone();
        drop(queue);
        if let Some(on_held) = on_held {
            on_held(tag);
        }
    }

    /// From now on `told` hears the number of output that is held, once for each number, on the thread that
    /// writes it.
    pub fn on_held(&self, told: impl Fn(u64) + Send + Sync + 'static) {
        self.shared.lock().on_held = Some(Arc::new(told));
    }

    /// From now on bytes are held, tagged `tag`. Called again with every new number.
    pub fn hold(&self, tag: u64) {
        self.shared.lock().tag = Some(tag);
    }

    /// Lets go of all bytes with tags up to `tag`. Does not wait for the sink.
    pub fn release(&self, tag: u64) {
        let mut queue = self.shared.lock();
        while queue.held.front().is_some_and(|(of, _)| *of <= tag) {
            let Some((_, bytes)) = queue.held.pop_front() else { break };
            queue.held_bytes -= bytes.len();
            queue.let_go(&bytes);
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

    /// Whether all that may leave has been written.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.shared.lock().is_idle()
    }

    /// Bytes held now.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.shared.lock().held_bytes
    }

    /// Bytes lost so far because too many waited, or the sink did not take them.
    #[must_use]
    pub fn lost_bytes(&self) -> u64 {
        self.shared.lock().lost
    }
}

impl Drop for ConsoleOut {
    /// What may leave is still written, if the sink takes it within [`FAREWELL`]; what is held is not.
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.exit = true;
        self.shared.changed.notify_all();
        let waited = self.shared.changed.wait_timeout_while(queue, FAREWELL, |queue| !queue.is_idle());
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let in_time = queue.is_idle();
        queue.ready.clear();
        drop(queue);
        // A writer that is still in the sink ends when that lets it go, or with the process.
        if in_time && self.writer.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the console's writer has panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

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
        (ConsoleOut::new(Box::new(Channel(send))).unwrap(), receive)
    }

    /// All that has come out when the console is closed.
    fn rest(console: ConsoleOut, out: &mpsc::Receiver<Vec<u8>>) -> Vec<u8> {
        drop(console);
        out.iter().collect::<Vec<_>>().concat()
    }

    #[test]
    fn without_hold_bytes_go_straight_through() {
        let (console, out) = console();
        console.write(b"a");
        assert_eq!(out.recv().unwrap(), b"a");
    }

    #[test]
    fn held_bytes_come_out_by_number_and_in_order() {
        let (console, out) = console();
        console.hold(5);
        console.write(b"a");
        console.write(b"b");
        console.hold(6);
        console.write(b"c");
        assert_eq!(console.held_bytes(), 3);
        console.release(4);
        assert!(out.try_recv().is_err());
        console.release(5);
        assert_eq!(out.recv().unwrap(), b"ab");
        assert_eq!(console.held_bytes(), 1);
        console.stop_holding();
        console.write(b"d");
        assert_eq!(rest(console, &out), b"cd");
    }

    #[test]
    fn what_is_held_is_told_once_for_each_number() {
        let (console, _out) = console();
        let (told, numbers) = mpsc::channel();
        console.on_held(move |number| told.send(number).unwrap());
        console.write(b"not held");
        console.hold(5);
        console.write(b"a");
        console.write(b"b");
        console.hold(6);
        assert_eq!(numbers.try_iter().collect::<Vec<_>>(), [5]);
        console.write(b"c");
        console.release(6);
        console.write(b"d");
        assert_eq!(numbers.try_iter().collect::<Vec<_>>(), [6, 6], "what was released is not held any more");
    }

    #[test]
    fn discarded_and_unreleased_bytes_never_come_out() {
        let (console, out) = console();
        console.hold(1);
        console.write(b"lost");
        console.discard();
        console.release(1);
        console.write(b"held");
        assert_eq!(rest(console, &out), b"");
    }

    #[test]
    fn too_much_is_lost_not_kept() {
        let (console, _out) = console();
        console.hold(1);
        console.write(&vec![0; HELD_MAX]);
        console.write(b"abc");
        assert_eq!((console.held_bytes(), console.lost_bytes()), (HELD_MAX, 3));
    }

    /// A pipe that nobody reads, written to as standard output is.
    fn stuck() -> (ConsoleOut, std::fs::File) {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        (ConsoleOut::new(Box::new(std::fs::File::from(writer))).unwrap(), reader.into())
    }

    #[test]
    fn whoever_writes_never_waits_for_the_sink() {
        let (console, reader) = stuck();
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..8 {
            console.write(&piece);
        }
        // What the pipe and the buffer do not take is counted, held or not.
        let lost = console.lost_bytes();
        assert!((3 << 20..=4 << 20).contains(&lost), "{lost}");
        console.hold(1);
        for _ in 0..4 {
            console.write(&piece);
        }
        console.release(1);
        assert!(console.lost_bytes() > lost + (3 << 20), "{}", console.lost_bytes());
        let begun = Instant::now();
        drop(console);
        assert!(begun.elapsed() < FAREWELL * 10, "the end waits for a reader: {:?}", begun.elapsed());
        drop(reader);
    }

    #[test]
    fn what_fits_comes_out_whole_and_in_order() {
        let (console, mut reader) = stuck();
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        // One byte at a time, as a guest does.
        bytes.iter().for_each(|byte| console.write(std::slice::from_ref(byte)));
        let reading = std::thread::spawn(move || {
            let mut read = Vec::new();
            io::Read::read_to_end(&mut reader, &mut read).unwrap();
            read
        });
        drop(console);
        assert!(reading.join().unwrap() == bytes);
    }

    #[test]
    fn what_the_sink_refuses_is_counted() {
        let (console, out) = console();
        drop(out);
        console.write(b"abc");
        while console.lost_bytes() < 3 {
            std::thread::yield_now();
        }
    }
}
