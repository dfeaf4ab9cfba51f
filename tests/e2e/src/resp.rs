//! Redis protocol on one TCP connection that is never reopened: the point of the exercise.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::namespace::Entrance;
use crate::{Error, Result};

/// Replies longer than this are a broken peer.
const LENGTH_MAX: usize = 64 << 20;

/// What the server answers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reply {
    /// Several replies.
    Array(Vec<Reply>),
    /// Bytes, or nothing.
    Bulk(Option<Vec<u8>>),
    /// A refusal.
    Error(String),
    /// A number.
    Integer(i64),
    /// A short text, `OK` mostly.
    Simple(String),
}

/// One connection to Redis.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
    local: SocketAddr,
}

impl Connection {
    /// Connects from inside `namespace`. `reply_limit` is how long a reply may take.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub fn open(namespace: &Entrance, server: SocketAddr, reply_limit: Duration) -> Result<Self> {
        let stream = namespace.run(|| {
            TcpStream::connect_timeout(&server, Duration::from_secs(2))
                .map_err(Error::io(format!("cannot connect to {server}")))
        })?;
        stream.set_nodelay(true).map_err(Error::io("cannot set TCP_NODELAY"))?;
        stream.set_read_timeout(Some(reply_limit)).map_err(Error::io("cannot set a time limit"))?;
        let local = stream.local_addr().map_err(Error::io("socket without address"))?;
        Ok(Self { reader: BufReader::new(stream), local })
    }

    /// This end's address; another connection would have another one.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Sends one command and waits for its reply.
    ///
    /// # Errors
    /// When the connection breaks or the reply is not RESP.
    pub fn call(&mut self, command: &[&[u8]]) -> Result<Reply> {
        let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
        for word in command {
            bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        self.reader.get_mut().write_all(&bytes).map_err(Error::io("cannot send a command"))?;
        self.reply()
    }

    /// As [`Self::call`], for a command that answers with a number.
    ///
    /// # Errors
    /// As `call`, or when it answers something else.
    pub fn integer(&mut self, command: &[&[u8]]) -> Result<i64> {
        match self.call(command)? {
            Reply::Integer(number) => Ok(number),
            other => Err(unexpected(&other)),
        }
    }

    /// Values of many keys at once; `None` for those that are not there.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn values(&mut self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>> {
        let mut command: Vec<&[u8]> = vec![b"MGET"];
        command.extend(keys.iter().map(Vec::as_slice));
        match self.call(&command)? {
            Reply::Array(items) => items
                .into_iter()
                .map(|item| if let Reply::Bulk(value) = item { Ok(value) } else { Err(unexpected(&item)) })
                .collect(),
            other => Err(unexpected(&other)),
        }
    }

    fn reply(&mut self) -> Result<Reply> {
        let mut line = Vec::new();
        (&mut self.reader).take(4096).read_until(b'\n', &mut line).map_err(Error::io("no reply"))?;
        let Some(line) = line.strip_suffix(b"\r\n") else {
            return Err(if line.is_empty() {
                Error::io("no reply")(std::io::ErrorKind::UnexpectedEof.into())
            } else {
                protocol(&line)
            });
        };
        let (kind, text) = line.split_at_checked(1).ok_or_else(|| protocol(line))?;
        let text = std::str::from_utf8(text).map_err(|_| protocol(line))?;
        let number = || text.parse::<i64>().map_err(|_| protocol(line));
        match kind {
            b"+" => Ok(Reply::Simple(text.to_owned())),
            b"-" => Ok(Reply::Error(text.to_owned())),
            b":" => Ok(Reply::Integer(number()?)),
            b"$" if number()? < 0 => Ok(Reply::Bulk(None)),
            b"$" => self.bulk(length(number()?).ok_or_else(|| protocol(line))?),
            b"*" => {
                let count = length(number()?).ok_or_else(|| protocol(line))?;
                (0..count).map(|_| self.reply()).collect::<Result<Vec<_>>>().map(Reply::Array)
            }
            _ => Err(protocol(line)),
        }
    }

    fn bulk(&mut self, length: usize) -> Result<Reply> {
        let mut bytes = vec![0; length + 2];
        self.reader.read_exact(&mut bytes).map_err(Error::io("reply cut short"))?;
        bytes.truncate(length);
        Ok(Reply::Bulk(Some(bytes)))
    }
}

fn length(number: i64) -> Option<usize> {
    usize::try_from(number).ok().filter(|length| *length <= LENGTH_MAX)
}

fn protocol(line: &[u8]) -> Error {
    Error::Protocol { from: "redis".into(), answer: String::from_utf8_lossy(line).into_owned() }
}

fn unexpected(reply: &Reply) -> Error {
    Error::Protocol { from: "redis".into(), answer: format!("{reply:?}") }
}
