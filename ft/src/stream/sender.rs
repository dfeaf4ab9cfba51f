//! The primary's sending thread: the network transfer of a checkpoint never happens inside the pause, nor on
//! the engine's thread.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use ft_proto::{Epoch, Term};
use ft_transport::stream::Stream;

use crate::clock::Clock;
use crate::stream::coder::Coder;
use crate::stream::ends::{Done, Job, SendingEnd, Sent};
use crate::stream::history::History;
use crate::stream::outgoing::perform;
use host_kit::sandbox::Needs;

/// How long a session's last message may take to leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// The thread, as its engine sees it. Dropping it breaks the stream: what is queued is lost.
#[derive(Debug)]
pub struct SenderHandle {
    jobs: Option<Sender<Job>>,
    stream: Stream,
    ended: Receiver<()>,
    thread: Option<thread::JoinHandle<()>>,
}

impl SenderHandle {
    /// Starts sending on `stream`. `history` is made on the thread, since it takes a while.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        stream: Stream,
        clock: Clock,
        term: Term,
        history: impl FnOnce() -> History + Send + 'static,
        tell: impl Fn(Sent) + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, queue) = unbounded();
        let mut writer = stream.try_clone()?;
        let (ending, ended) = bounded(0);
        let thread = host_kit::thread::spawn("ft-send", Needs::MESSAGES | Needs::SCHEDULE, move || {
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
                        let (took, forms) = (started.elapsed(), coder.take_forms());
                        tell(Sent::Done(Done { image, packed, volume, took, forms }));
                    }
                    (Ok(_), Job::Progress(_)) => tell(Sent::Told),
                    (Ok(_), Job::Yield(..) | Job::Bye(_)) => {}
                    (Err(error), _) => return tell(Sent::Failed(error)),
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
        let _ = host_kit::thread::spawn("ft-send-end", Needs::MESSAGES, move || {
            self.stream.limit_writes(FAREWELL);
            // The worker never sends on this channel; it ends by being dropped.
            let _ = self.ended.recv_timeout(FAREWELL);
            self.stream.finish_and_drain(FAREWELL);
        });
    }
}

impl Drop for SenderHandle {
    fn drop(&mut self) {
        self.jobs = None;
        self.stream.break_off();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
