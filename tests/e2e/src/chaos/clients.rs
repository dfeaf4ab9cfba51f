//! The clients of a chaos run: real connections to Redis and PostgreSQL in the guest, each with a record of what it was told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::history::{Contents, Operation};
use super::log::Log;
use super::postgres::PostgresClient;
use super::redis::RedisClient;
use crate::namespace::Entrance;
use crate::{Error, Result, wait};

/// Clients of PostgreSQL beside the one of Redis.
const POSTGRES_CLIENTS: u8 = 2;
/// Between two attempts to connect again.
const RETRY: Duration = Duration::from_millis(250);

/// Something that asks a server in the guest over one connection.
pub trait Client: Send {
    /// A few operations.
    ///
    /// # Errors
    /// When the connection broke.
    fn step(&mut self, log: &Log) -> Result<()>;
    /// What tells this connection from another one, asked from the server over the connection.
    ///
    /// # Errors
    /// When the connection broke.
    fn session(&mut self) -> Result<String>;
    /// A new connection instead of the broken one.
    ///
    /// # Errors
    /// When the server does not answer.
    fn reconnect(&mut self) -> Result<()>;
    /// Everything that is in the ledgers of this client's server and belongs to this client.
    ///
    /// # Errors
    /// When the connection broke.
    fn read_back(&mut self) -> Result<Contents>;
}

/// A client at work on a thread of its own.
struct Worker {
    name: String,
    session: String,
    log: Log,
    thread: JoinHandle<Box<dyn Client>>,
}

/// All clients of a run.
pub struct Clients {
    workers: Vec<Worker>,
    stop: Arc<AtomicBool>,
}

/// What is known when all clients have ended.
pub struct Testimony {
    /// Every operation of every client.
    pub operations: Vec<Operation>,
    /// What is in the stores now.
    pub contents: Contents,
    /// Each connection that broke: whose, when, why.
    pub breaks: Vec<(String, Duration, String)>,
    /// Clients whose connection is not the one they began with: name, then, now.
    pub other_sessions: Vec<(String, String, String)>,
    /// Names and sessions of all clients.
    pub sessions: Vec<String>,
}

impl Clients {
    /// Connects to both servers as soon as they answer, and begins to ask.
    ///
    /// # Errors
    /// When a server does not answer within `limit`.
    pub fn start(lan: &Entrance, origin: Instant, think: Duration, limit: Duration) -> Result<Self> {
        let redis = wait::until("answer of Redis in the guest", limit, || RedisClient::connect(lan).map(Some))?;
        let mut clients: Vec<(String, Box<dyn Client>)> = vec![("redis".to_owned(), Box::new(redis))];
        for number in 0..POSTGRES_CLIENTS {
            let connect = || PostgresClient::connect(lan, number).map(Some);
            let client = wait::until("answer of PostgreSQL in the guest", limit, connect)?;
            clients.push((format!("postgres {number}"), Box::new(client)));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let workers = clients.into_iter().map(|(name, client)| Worker::start(name, client, origin, think, &stop));
        Ok(Self { workers: workers.collect::<Result<_>>()?, stop: Arc::clone(&stop) })
    }

    /// Waits until every client has had `more` further answers.
    ///
    /// # Errors
    /// When that takes longer than `limit`; the error names who waits.
    pub fn progress(&self, more: usize, limit: Duration) -> Result<()> {
        let goals: Vec<usize> = self.workers.iter().map(|worker| worker.log.answered() + more).collect();
        wait::until(&format!("{more} more answers for every client"), limit, || {
            let mut left = self.workers.iter().zip(&goals).filter(|(worker, goal)| worker.log.answered() < **goal);
            match left.next() {
                None => Ok(Some(())),
                Some((worker, _)) => Err(Error::Protocol { from: worker.name.clone(), answer: "none".into() }),
            }
        })
    }

    /// The longest time that any client waited for an answer since `from`.
    #[must_use]
    pub fn longest_wait(&self, from: Instant) -> Duration {
        self.workers.iter().map(|worker| worker.log.longest_wait(from)).max().unwrap_or_default()
    }

    /// Answers that all clients got so far.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.workers.iter().map(|worker| worker.log.answered()).sum()
    }

    /// Connections that broke so far: whose, when, why.
    #[must_use]
    pub fn breaks(&self) -> Vec<(String, Duration, String)> {
        self.workers.iter().flat_map(Worker::breaks).collect()
    }

    /// Ends the clients and has each read back what it wrote, over the connection it has.
    ///
    /// # Errors
    /// When a store cannot be read.
    pub fn finish(self) -> Result<Testimony> {
        self.stop.store(true, Ordering::Relaxed);
        let mut testimony = Testimony {
            operations: vec![],
            contents: Contents::new(),
            breaks: self.breaks(),
            other_sessions: vec![],
            sessions: vec![],
        };
        for worker in self.workers {
            let mut client = worker.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let now = client.session()?;
            if now != worker.session {
                testimony.other_sessions.push((worker.name.clone(), worker.session, now.clone()));
            }
            testimony.sessions.push(format!("{}: {now}", worker.name));
            testimony.contents.append(&mut client.read_back()?);
            testimony.operations.append(&mut worker.log.copy().operations);
        }
        Ok(testimony)
    }
}

impl Worker {
    fn start(
        name: String,
        mut client: Box<dyn Client>,
        origin: Instant,
        think: Duration,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self> {
        let session = client.session()?;
        let log = Log::new(origin);
        let (inside, stop) = (log.clone(), Arc::clone(stop));
        let thread = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if let Err(error) = client.step(&inside) {
                    inside.broke(error.chain());
                    while !stop.load(Ordering::Relaxed) && client.reconnect().is_err() {
                        thread::sleep(RETRY);
                    }
                }
                thread::sleep(think);
            }
            client
        });
        Ok(Self { name, session, log, thread })
    }

    fn breaks(&self) -> Vec<(String, Duration, String)> {
        self.log.copy().breaks.into_iter().map(|(at, reason)| (self.name.clone(), at, reason)).collect()
    }
}
