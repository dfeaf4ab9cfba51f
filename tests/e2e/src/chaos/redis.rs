//! A client of Redis: counts up, appends keys, reads both, over one connection.

use std::time::Duration;

use super::client::Client;
use super::history::{Action, Contents, Entry, Ledger};
use super::log::Log;
use crate::namespace::Entrance;
use crate::resp::{Connection, Reply};
use crate::{Error, Result, workload};

/// How long the server may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// A read after so many writes.
const READ_EVERY: u64 = 5;
/// Keys asked for in one command when everything is read back.
const READ_BACK: usize = 500;

/// One connection to Redis, and how far its writes have come.
pub struct RedisClient {
    lan: Entrance,
    connection: Connection,
    /// Writes sent so far; number n sets `key:n`.
    sent: u64,
    /// The highest that was acknowledged.
    acknowledged: u64,
}

impl RedisClient {
    /// Connects; the ledgers begin empty.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn connect(lan: &Entrance) -> Result<Self> {
        let connection = workload::connect(lan, CONNECT_LIMIT)?;
        Ok(Self { lan: lan.clone(), connection, sent: 0, acknowledged: 0 })
    }

    fn read(&mut self, log: &Log) -> Result<()> {
        let (connection, newest) = (&mut self.connection, self.acknowledged);
        log.perform(Ledger::Counter, Action::Read { highest: 0, count: 0 }, || {
            let highest = counter(connection)?;
            Ok(Action::Read { highest, count: highest })
        })?;
        log.perform(Ledger::Keys, Action::Read { highest: 0, count: 0 }, || {
            let there = values(connection, &[newest])?[0].is_some();
            // The one key tells nothing of those before it: they are read back at the end.
            let highest = if there { newest } else { 0 };
            Ok(Action::Read { highest, count: highest })
        })
    }
}

impl Client for RedisClient {
    fn step(&mut self, log: &Log) -> Result<()> {
        let connection = &mut self.connection;
        log.perform(Ledger::Counter, Action::Increment { reply: 0 }, || {
            let reply = connection.integer(&[b"INCR", b"chaos:counter"])?;
            let reply = u64::try_from(reply).map_err(|_| unexpected(&Reply::Integer(reply)))?;
            Ok(Action::Increment { reply })
        })?;
        self.sent += 1;
        let seq = self.sent;
        log.perform(Ledger::Keys, Action::Write { seq }, || {
            let answer = connection.call(&[b"SET", key(seq).as_slice(), value(seq).as_slice()])?;
            if answer == Reply::Simple("OK".into()) { Ok(Action::Write { seq }) } else { Err(unexpected(&answer)) }
        })?;
        self.acknowledged = seq;
        if seq.is_multiple_of(READ_EVERY) { self.read(log) } else { Ok(()) }
    }

    fn session(&mut self) -> Result<String> {
        let id = self.connection.integer(&[b"CLIENT", b"ID"])?;
        Ok(format!("from {}, client id {id}", self.connection.local()))
    }

    fn reconnect(&mut self) -> Result<()> {
        self.connection = workload::connect(&self.lan, CONNECT_LIMIT)?;
        Ok(())
    }

    fn read_back(&mut self) -> Result<Contents> {
        let total = counter(&mut self.connection)?;
        let mut entries = vec![];
        // One more than was ever sent: it must not be there.
        let all: Vec<u64> = (1..=self.sent + 1).collect();
        for part in all.chunks(READ_BACK) {
            let found = values(&mut self.connection, part)?;
            for (seq, found) in part.iter().zip(found) {
                entries.extend(found.map(|found| Entry { seq: *seq, intact: found == value(*seq) }));
            }
        }
        let counted = (1..=total).map(|seq| Entry { seq, intact: true }).collect();
        Ok(Contents::from([(Ledger::Counter, counted), (Ledger::Keys, entries)]))
    }
}

fn counter(connection: &mut Connection) -> Result<u64> {
    let value = connection.values(&[b"chaos:counter".to_vec()])?.pop().flatten();
    let Some(value) = value else { return Ok(0) };
    let text = String::from_utf8_lossy(&value).into_owned();
    text.parse().map_err(|_| Error::Protocol { from: "redis".into(), answer: text })
}

fn values(connection: &mut Connection, numbers: &[u64]) -> Result<Vec<Option<Vec<u8>>>> {
    let keys: Vec<Vec<u8>> = numbers.iter().map(|seq| key(*seq)).collect();
    let values = connection.values(&keys)?;
    if values.len() == keys.len() {
        return Ok(values);
    }
    let answer = format!("{} values for {} keys", values.len(), keys.len());
    Err(Error::Protocol { from: "redis".into(), answer })
}

fn key(seq: u64) -> Vec<u8> {
    format!("chaos:key:{seq}").into_bytes()
}

fn value(seq: u64) -> Vec<u8> {
    format!("value-{seq}-{:016x}", seq.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes()
}

fn unexpected(reply: &Reply) -> Error {
    Error::Protocol { from: "redis".into(), answer: format!("{reply:?}") }
}
