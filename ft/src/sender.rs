//! The primary's sending thread: the network transfer of a checkpoint never happens inside the pause, nor on the engine's
//! thread.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::thread;

use crossbeam_channel::{Sender, unbounded};
use ft_proto::wire::{Kind, Refusal, encode_body};
use ft_proto::{Epoch, Term};

use crate::staging::Staging;
use crate::transport::{Stamp, TransportError, write_frame};
use crate::witness::chain;

/// What to send.
#[derive(Debug)]
pub enum Job {
    /// Pages of the first copy.
    Copy(Staging),
    /// A checkpoint.
    Epoch(Staging),
    /// This node has stopped: the standby shall take over.
    Yield,
    /// This node leaves the session in good order.
    Bye(String),
}

/// What became of a job.
#[derive(Debug)]
pub enum Sent {
    /// The buffer is free again; so many bytes went out.
    Done(Staging, u64),
    /// The stream broke; the buffer comes back, and nothing more is sent.
    Failed(Option<Staging>, String),
}

/// The thread, as its engine sees it. Dropping it sends what is queued, closes the stream and ends the thread.
#[derive(Debug)]
pub struct SenderHandle {
    jobs: Option<Sender<Job>>,
    stream: TcpStream,
    thread: Option<thread::JoinHandle<()>>,
}

impl SenderHandle {
    /// Starts sending on `stream`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(stream: TcpStream, term: Term, tell: impl Fn(Sent) + Send + 'static) -> io::Result<Self> {
        let (jobs, queue) = unbounded();
        let mut writer = stream.try_clone()?;
        let thread = thread::Builder::new().name("ft-send".to_owned()).spawn(move || {
            for job in queue {
                match perform(&mut writer, term, &job) {
                    Ok(bytes) => {
                        if let Job::Copy(staging) | Job::Epoch(staging) = job {
                            tell(Sent::Done(staging, bytes));
                        }
                    }
                    Err(error) => {
                        let staging =
                            if let Job::Copy(staging) | Job::Epoch(staging) = job { Some(staging) } else { None };
                        tell(Sent::Failed(staging, chain(&error)));
                        return;
                    }
                }
            }
        })?;
        Ok(Self { jobs: Some(jobs), stream, thread: Some(thread) })
    }

    /// Queues a job. Never blocks: what may be queued is bounded by the staging buffers there are.
    pub fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The thread has ended only after it told why.
            let _ = jobs.send(job);
        }
    }

    /// Ends a session whose peer may not read any more: what is queued is lost.
    pub fn abort(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Drop for SenderHandle {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn perform(stream: &mut TcpStream, term: Term, job: &Job) -> Result<u64, TransportError> {
    let stamp = |kind| Stamp { kind, term, epoch: Epoch(0) };
    match job {
        Job::Copy(staging) => staging.send_copy(stream, term),
        Job::Epoch(staging) => staging.send_epoch(stream, term),
        Job::Yield => Ok(write_frame(stream, stamp(Kind::Yield), &[])?.1),
        Job::Bye(reason) => {
            let body = encode_body(&Refusal { reasons: vec![reason.clone()] });
            Ok(write_frame(stream, stamp(Kind::Bye), &[&body])?.1)
        }
    }
}
