//! The primary's sending thread: the network transfer of a checkpoint never happens inside the pause, nor on
//! the engine's thread.

use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use ft_proto::{Epoch, Term};

use crate::clock::Clock;
use crate::stream::coder::Coder;
use crate::stream::ends::{Done, Job, SendingEnd, Sent};
use crate::stream::history::History;
use crate::stream::outgoing::perform;
use crate::transport::path::explain;

/// How long a session's last message may take to leave.
const FAREWELL: Duration = Duration::from_secs(1);
/// More than the peer has to say until it closes its side.
const FAREWELL_BYTES: usize = 64 << 10;

/// The thread, as its engine sees it. Dropping it breaks the stream: what is queued is lost.
#[derive(Debug)]
pub struct SenderHandle {
    jobs: Option<Sender<Job>>,
    stream: TcpStream,
    ended: Receiver<()>,
    thread: Option<thread::JoinHandle<()>>,
}

impl SenderHandle {
    /// Starts sending on `stream`. `history` is made on the thread, since it takes a while.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        stream: TcpStream,
        clock: Clock,
        term: Term,
        history: impl FnOnce() -> Option<History> + Send + 'static,
        tell: impl Fn(Sent) + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, queue) = unbounded();
        let mut writer = stream.try_clone()?;
        let (ending, ended) = bounded(0);
        let thread = host_kit::thread::spawn("ft-send", move || {
            let _ending = ending;
            let mut coder = Coder::new(history());
            for job in queue {
                if let Job::Epoch(image, _, cpu) = &job
                    && image.epoch > Epoch(1)
                {
                    // The first copy and its epoch have time.
                    host_kit::sched::set_realtime(true);
                    host_kit::sched::pin_to_cpu(*cpu);
                }
                let started = Instant::now();
                let result = perform(&mut coder, &mut writer, term, &job, clock.now());
                match (result, job) {
                    (Ok(volume), Job::Copy(image, packed) | Job::Epoch(image, packed, _)) => {
                        tell(Sent::Done(Done { image, packed, volume, took: started.elapsed() }));
                    }
                    (Ok(_), Job::Progress(_)) => tell(Sent::Told),
                    (Ok(_), Job::Yield(..) | Job::Bye(_)) => {}
                    (Err(error), _) => return tell(Sent::Failed(explain(&error, &writer, None))),
                }
            }
        })?;
        Ok(Self { jobs: Some(jobs), stream, ended, thread: Some(thread) })
    }
}

impl SendingEnd for SenderHandle {
    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The thread has ended only after it told why.
            let _ = jobs.send(job);
        }
    }

    /// A peer that does not read has [`FAREWELL`] to change its mind.
    fn leave(mut self, last: Job) {
        self.send(last);
        self.jobs = None;
        // Without a thread to wait in, dropping breaks the stream at once: the peer notices either way.
        let _ = host_kit::thread::spawn("ft-send-end", move || {
            let _ = self.stream.set_write_timeout(Some(FAREWELL));
            // The worker never sends on this channel; it ends by being dropped.
            let _ = self.ended.recv_timeout(FAREWELL);
            // To close a stream with acknowledgements that nobody has read resets it, and the peer may lose
            // what it has not read yet: the last message.
            let _ = self.stream.shutdown(Shutdown::Write);
            read_until_closed(&self.stream);
        });
    }
}

/// Reads what a peer still says, but neither for ever nor without end.
fn read_until_closed(mut stream: &TcpStream) {
    let deadline = Instant::now() + FAREWELL;
    let (mut bytes, mut left) = ([0; 4096], FAREWELL_BYTES);
    while left > 0 {
        // Zero would mean for ever.
        let time = deadline.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
        let read = stream.set_read_timeout(Some(time)).and_then(|()| stream.read(&mut bytes));
        match read {
            Ok(len @ 1..) if Instant::now() < deadline => left = left.saturating_sub(len),
            _ => return,
        }
    }
}

impl Drop for SenderHandle {
    fn drop(&mut self) {
        self.jobs = None;
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
