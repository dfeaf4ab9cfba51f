//! The measuring client: increments a counter and writes keys over one connection, remembering every reply it
//! got and when.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::namespace::Entrance;
use crate::resp::{Connection, Reply};
use crate::topology::GUEST;
use crate::{Error, Result, wait};

const REDIS_PORT: u16 = 6379;
/// A reply may take this long. What was said into a takeover comes by TCP's retransmissions, each twice as
/// late as the one before.
const REPLY_LIMIT: Duration = Duration::from_secs(120);
/// Keys asked for in one command when everything is read back.
const READ_BACK: usize = 500;

/// A running client.
#[derive(Debug)]
pub struct Workload {
    shared: Arc<Shared>,
    thread: JoinHandle<Record>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    rounds: AtomicU64,
    failed: AtomicBool,
}

/// What the client saw.
#[derive(Debug)]
pub struct Record {
    connection: Connection,
    /// Server's id of the connection at the start.
    pub client_id: i64,
    /// Every reply to INCR, in order.
    pub counter: Vec<i64>,
    /// When each reply (to INCR or SET) arrived.
    pub replies: Vec<Instant>,
    /// How many SETs were acknowledged: keys `key:1` to `key:<n>`.
    pub keys: u64,
    /// Why the client had to stop before it was told to.
    pub broken: Option<String>,
}

/// What was found when everything was read back.
#[derive(Clone, Debug)]
pub struct ReadBack {
    /// The server's id of the connection now.
    pub client_id: i64,
    /// The counter's value now.
    pub counter: i64,
    /// Acknowledged keys that are missing or have another value.
    pub missing: Vec<String>,
}

/// Connects to the guest's Redis as soon as it answers.
///
/// # Errors
/// When it does not answer within `limit`.
pub fn connect(client: &Entrance, limit: Duration) -> Result<Connection> {
    wait::until("answer of Redis in the guest", limit, || {
        let mut connection = Connection::open(client, SocketAddr::from((GUEST, REDIS_PORT)), REPLY_LIMIT)?;
        Ok((connection.call(&[b"PING"])? == Reply::Simple("PONG".into())).then_some(connection))
    })
}

impl Workload {
    /// Starts writing, one request at a time, resting `think` after each reply.
    ///
    /// # Errors
    /// When the server does not answer the first question.
    pub fn start(mut connection: Connection, think: Duration) -> Result<Self> {
        let client_id = connection.integer(&[b"CLIENT", b"ID"])?;
        let shared = Arc::new(Shared::default());
        let inside = Arc::clone(&shared);
        let mut record = Record {
            connection,
            client_id,
            counter: Vec::with_capacity(1 << 16),
            replies: Vec::with_capacity(1 << 17),
            keys: 0,
            broken: None,
        };
        let thread = thread::spawn(move || {
            while !inside.stop.load(Ordering::Relaxed) {
                if let Err(error) = record.round() {
                    record.broken = Some(error.chain());
                    inside.failed.store(true, Ordering::Relaxed);
                    break;
                }
                inside.rounds.fetch_add(1, Ordering::Relaxed);
                thread::sleep(think);
            }
            record
        });
        Ok(Self { shared, thread })
    }

    /// Rounds (one INCR and one SET, both acknowledged) so far.
    #[must_use]
    pub fn rounds(&self) -> u64 {
        self.shared.rounds.load(Ordering::Relaxed)
    }

    /// Waits for `more` further rounds; a broken connection ends the wait early and shows in the record.
    ///
    /// # Errors
    /// When they take longer than `limit`.
    pub fn progress(&self, more: u64, limit: Duration) -> Result<()> {
        let goal = self.rounds() + more;
        wait::until(&format!("{more} more rounds of the client"), limit, || {
            Ok((self.rounds() >= goal || self.shared.failed.load(Ordering::Relaxed)).then_some(()))
        })
    }

    /// Whether it had to stop before it was told to.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Ends the client after the round it is in.
    #[must_use]
    pub fn stop(self) -> Record {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Record {
    fn round(&mut self) -> Result<()> {
        let number = self.connection.integer(&[b"INCR", b"counter"])?;
        self.counter.push(number);
        self.replies.push(Instant::now());
        let n = self.keys + 1;
        match self.connection.call(&[b"SET", key(n).as_slice(), value(n).as_slice()])? {
            Reply::Simple(ok) if ok == "OK" => {}
            other => return Err(Error::Protocol { from: "redis".into(), answer: format!("{other:?}") }),
        }
        self.keys = n;
        self.replies.push(Instant::now());
        Ok(())
    }

    /// Where in the counter's replies a number was left out or given twice: (position, reply).
    #[must_use]
    pub fn first_jump(&self) -> Option<(usize, i64)> {
        let expected = 1i64..;
        self.counter.iter().zip(expected).position(|(got, want)| *got != want).map(|at| (at, self.counter[at]))
    }

    /// The time between two replies that `moment` lies in: (the last reply before, the first after).
    #[must_use]
    pub fn gap_at(&self, moment: Instant) -> Option<(Instant, Instant)> {
        let first_after = self.replies.partition_point(|reply| *reply < moment);
        Some((*self.replies.get(first_after.checked_sub(1)?)?, *self.replies.get(first_after)?))
    }

    /// Reads everything back over the same connection.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn read_back(&mut self) -> Result<ReadBack> {
        let client_id = self.connection.integer(&[b"CLIENT", b"ID"])?;
        let counter = self.connection.values(&[b"counter".to_vec()])?.pop().flatten().unwrap_or_default();
        let counter = String::from_utf8_lossy(&counter).parse().unwrap_or(-1);
        let mut missing = vec![];
        let all: Vec<u64> = (1..=self.keys).collect();
        for part in all.chunks(READ_BACK) {
            let keys: Vec<Vec<u8>> = part.iter().map(|n| key(*n)).collect();
            let values = self.connection.values(&keys)?;
            if values.len() != part.len() {
                return Err(Error::Protocol {
                    from: "redis".into(),
                    answer: format!("{} of {} values", values.len(), part.len()),
                });
            }
            let wrong = part.iter().zip(values).filter(|(n, got)| got.as_deref() != Some(&value(**n)));
            missing.extend(wrong.map(|(n, _)| format!("key:{n}")));
        }
        Ok(ReadBack { client_id, counter, missing })
    }

    /// This end's address of the one connection.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.connection.local()
    }
}

fn key(n: u64) -> Vec<u8> {
    format!("key:{n}").into_bytes()
}

fn value(n: u64) -> Vec<u8> {
    format!("value-{n}-{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes()
}
