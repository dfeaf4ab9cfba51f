//! A client of PostgreSQL: appends rows to a table in transactions, reads its own and others', over one
//! connection.

use std::time::Duration;

use postgres::{Config, NoTls};

use super::client::Client;
use super::history::{Action, Contents, Entry, Ledger};
use super::log::Log;
use crate::namespace::Entrance;
use crate::topology::GUEST;
use crate::{Error, Result};

const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Unanswered for so long, a connection counts as broken: a takeover plus TCP's retransmissions are far
/// below.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// A read after so many writes.
const READ_EVERY: u64 = 5;

/// An id of its own beside (client, seq): a row that is there twice is no error to the table, so the check
/// can see it.
const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS ledger \
     (id bigserial PRIMARY KEY, client int NOT NULL, seq bigint NOT NULL, value text NOT NULL); \
     CREATE INDEX IF NOT EXISTS ledger_seq ON ledger (client, seq)";

/// One connection to PostgreSQL, and how far its writes have come.
pub struct PostgresClient {
    lan: Entrance,
    connection: postgres::Client,
    number: u8,
    /// Rows sent so far.
    sent: u64,
}

impl PostgresClient {
    /// Connects as client `number`; client 0 makes the table.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn connect(lan: &Entrance, number: u8) -> Result<Self> {
        let mut connection = open(lan)?;
        if number == 0 {
            connection.batch_execute(SCHEMA).map_err(failed("make the table"))?;
        }
        Ok(Self { lan: lan.clone(), connection, number, sent: 0 })
    }

    fn read(&mut self, log: &Log, whose: u8) -> Result<()> {
        let connection = &mut self.connection;
        log.perform(Ledger::Rows(whose), Action::Read { highest: 0, count: 0 }, || {
            let question = "SELECT coalesce(max(seq), 0), count(*) FROM ledger WHERE client = $1";
            let row = connection.query_one(question, &[&i32::from(whose)]).map_err(failed("read rows"))?;
            Ok(Action::Read { highest: number(row.get(0))?, count: number(row.get(1))? })
        })
    }
}

impl Client for PostgresClient {
    fn step(&mut self, log: &Log) -> Result<()> {
        self.sent += 1;
        let (connection, seq, client) = (&mut self.connection, self.sent, i32::from(self.number));
        log.perform(Ledger::Rows(self.number), Action::Write { seq }, || {
            let (signed, text) = (signed(seq)?, value(self.number, seq));
            let mut transaction = connection.transaction().map_err(failed("begin"))?;
            transaction
                .execute("INSERT INTO ledger (client, seq, value) VALUES ($1, $2, $3)", &[&client, &signed, &text])
                .map_err(failed("insert a row"))?;
            transaction.commit().map_err(failed("commit"))?;
            Ok(Action::Write { seq })
        })?;
        if !seq.is_multiple_of(READ_EVERY) {
            return Ok(());
        }
        // The own rows, and in turn those of the others.
        self.read(log, self.number)?;
        self.read(log, if self.number == 0 { 1 } else { 0 })
    }

    fn session(&mut self) -> Result<String> {
        let question = "SELECT pg_backend_pid(), inet_client_port()";
        let row = self.connection.query_one(question, &[]).map_err(failed("ask for the session"))?;
        let (backend, port): (i32, i32) = (row.get(0), row.get(1));
        Ok(format!("from port {port}, backend {backend}"))
    }

    fn reconnect(&mut self) -> Result<()> {
        self.connection = open(&self.lan)?;
        Ok(())
    }

    fn read_back(&mut self) -> Result<Contents> {
        let question = "SELECT seq, value FROM ledger WHERE client = $1 ORDER BY id";
        let rows = self.connection.query(question, &[&i32::from(self.number)]).map_err(failed("read back"))?;
        let entries = rows.iter().map(|row| {
            let seq = number(row.get(0))?;
            Ok(Entry { seq, intact: row.get::<_, &str>(1) == value(self.number, seq) })
        });
        Ok(Contents::from([(Ledger::Rows(self.number), entries.collect::<Result<_>>()?)]))
    }
}

fn open(lan: &Entrance) -> Result<postgres::Client> {
    let mut config = Config::new();
    config.host(&GUEST.to_string()).user("postgres").dbname("postgres").connect_timeout(CONNECT_LIMIT);
    config.tcp_user_timeout(ANSWER_LIMIT).keepalives_idle(ANSWER_LIMIT / 2);
    lan.run(|| config.connect(NoTls).map_err(failed("connect")))
}

fn failed(what: &'static str) -> impl FnOnce(postgres::Error) -> Error {
    move |error| Error::io(format!("PostgreSQL: cannot {what}"))(std::io::Error::other(error))
}

fn number(value: i64) -> Result<u64> {
    u64::try_from(value).map_err(|_| Error::Protocol { from: "postgres".into(), answer: value.to_string() })
}

fn signed(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| Error::Protocol { from: "client".into(), answer: value.to_string() })
}

fn value(client: u8, seq: u64) -> String {
    format!("value-{client}-{seq}-{:016x}", seq.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}
