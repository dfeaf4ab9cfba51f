//! The clients of a chaos run: real connections to Redis and PostgreSQL in the guest, each with a record of
//! what it was told.

use std::fs;
use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, SockaddrIn, getpeername, shutdown};

use super::client::Client;
use super::history::{Contents, Operation};
use super::log::Log;
use super::postgres::PostgresClient;
use super::redis::RedisClient;
use crate::namespace::Entrance;
use crate::topology::GUEST;
use crate::{Error, Result, wait};

/// Clients of PostgreSQL beside the one of Redis.
const POSTGRES_CLIENTS: u8 = 2;
/// Ports of Redis and PostgreSQL.
const SERVERS: [u16; 2] = [6379, 5432];
/// Between two attempts to connect again: at first, and at most. A server that recovers forks a process for
/// each, and a slow guest does nothing else if they come too fast.
const RETRY: RangeInclusive<Duration> = Duration::from_millis(250)..=Duration::from_secs(4);

/// A client at work on a thread of its own.
struct Worker {
    name: String,
    log: Log,
    thread: JoinHandle<Box<dyn Client>>,
}

/// All clients of a run.
pub struct Clients {
    workers: Vec<Worker>,
    signs: Arc<Signs>,
}

/// What the clients are told while they work.
#[derive(Debug, Default)]
struct Signs {
    stop: AtomicBool,
    /// The guest boots again: connections break, and new ones are as good.
    reboot: AtomicBool,
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
        let signs = Arc::new(Signs::default());
        let workers = clients.into_iter().map(|(name, client)| Worker::start(name, client, origin, think, &signs));
        Ok(Self { workers: workers.collect::<Result<_>>()?, signs: Arc::clone(&signs) })
    }

    /// Whether the guest is about to boot again by the run's own doing: as long as that is so, a broken
    /// connection counts for nothing.
    pub fn expect_reboot(&self, expected: bool) {
        self.signs.reboot.store(expected, Ordering::Relaxed);
    }

    /// Ends the connections to a guest that is no more, so that nobody waits for a word from it until TCP
    /// gives up.
    ///
    /// # Errors
    /// When this process cannot look at its own sockets.
    pub fn hang_up(&self) -> Result<()> {
        let folder = Path::new("/proc/self/fd");
        let names = fs::read_dir(folder).map_err(Error::file("list", folder))?.flatten().map(|entry| entry.file_name());
        for fd in names.filter_map(|name| name.to_str()?.parse::<RawFd>().ok()) {
            let peer = getpeername::<SockaddrIn>(fd).ok();
            if peer.is_some_and(|peer| peer.ip() == GUEST && SERVERS.contains(&peer.port())) {
                // Whoever it was has hung up meanwhile.
                let _ = shutdown(fd, Shutdown::Both);
            }
        }
        Ok(())
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
        self.signs.stop.store(true, Ordering::Relaxed);
        let mut testimony = Testimony {
            operations: vec![],
            contents: Contents::new(),
            breaks: self.breaks(),
            other_sessions: vec![],
            sessions: vec![],
        };
        for worker in self.workers {
            let mut client = worker.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let (now, mut log) = (client.session()?, worker.log.copy());
            testimony.sessions.push(format!("{}: {now}", worker.name));
            if now != log.session {
                testimony.other_sessions.push((worker.name, log.session, now));
            }
            testimony.contents.append(&mut client.read_back()?);
            testimony.operations.append(&mut log.operations);
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
        signs: &Arc<Signs>,
    ) -> Result<Self> {
        let log = Log::new(origin);
        log.began(client.session()?);
        let (inside, signs) = (log.clone(), Arc::clone(signs));
        let thread = thread::spawn(move || {
            while !signs.stop.load(Ordering::Relaxed) {
                if let Err(error) = client.step(&inside) {
                    reconnect(client.as_mut(), &inside, &error, &signs);
                }
                thread::sleep(think);
            }
            client
        });
        Ok(Self { name, log, thread })
    }

    fn breaks(&self) -> Vec<(String, Duration, String)> {
        self.log.copy().breaks.into_iter().map(|(at, reason)| (self.name.clone(), at, reason)).collect()
    }
}

/// A new connection for a client whose old one broke.
fn reconnect(client: &mut dyn Client, log: &Log, why: &Error, signs: &Signs) {
    let expected = signs.reboot.load(Ordering::Relaxed);
    if !expected {
        log.broke(why.chain());
    }
    let mut pause = *RETRY.start();
    while !signs.stop.load(Ordering::Relaxed) && client.reconnect().is_err() {
        thread::sleep(pause);
        pause = (pause * 2).min(*RETRY.end());
    }
    // One that breaks at once is asked for again at the next step.
    if let (true, Ok(session)) = (expected, client.session()) {
        log.began(session);
    }
}
