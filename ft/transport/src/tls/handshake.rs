//! The handshake, step by step: whoever listens must not wait for a caller.
//!
//! rustls is given one record at a time, and none that comes after the handshake: so it holds nothing of the
//! stream when it has done its part. The traffic secrets are what it tells a key log.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, ClientConnection, Connection, ContentType, KeyLog, ServerConnection};
use zeroize::Zeroizing;

use super::TlsError;
use super::credentials::Current;
use super::record::{BODY_MAX, HEADER_LEN, body_len};
use super::schedule::{Direction, SECRET_LEN, StreamKeys};

/// What a handshake comes to.
#[derive(Debug)]
pub(crate) struct Agreed {
    /// What protects the stream from now on.
    pub(crate) keys: StreamKeys,
    /// The certificate that the other end has shown.
    pub(crate) peer: CertificateDer<'static>,
}

/// A handshake that is not over.
pub(crate) struct Handshake {
    connection: Connection,
    secrets: Arc<Secrets>,
    /// The record that is being received.
    record: Vec<u8>,
    /// Nothing has been received yet.
    untouched: bool,
}

impl Handshake {
    /// Of the end that calls.
    pub(crate) fn calling(credentials: &Current) -> Result<Self, TlsError> {
        let (mut config, secrets) = (credentials.client.clone(), Arc::new(Secrets::default()));
        config.key_log = secrets.clone();
        // What counts is who has signed the certificate, not a name that it carries.
        let name = ServerName::try_from("pollux").map_err(|_| TlsError::Unexpected("no name"))?;
        let connection = ClientConnection::new(Arc::new(config), name).map_err(TlsError::Handshake)?;
        Ok(Self::new(connection.into(), secrets))
    }

    /// Of the end that is called.
    pub(crate) fn called(credentials: &Current) -> Result<Self, TlsError> {
        let (mut config, secrets) = (credentials.server.clone(), Arc::new(Secrets::default()));
        config.key_log = secrets.clone();
        let connection = ServerConnection::new(Arc::new(config)).map_err(TlsError::Handshake)?;
        Ok(Self::new(connection.into(), secrets))
    }

    fn new(connection: Connection, secrets: Arc<Secrets>) -> Self {
        Self { connection, secrets, record: Vec::new(), untouched: true }
    }

    /// Goes on as far as what has arrived allows; `None`: more must arrive. `read` reads from the socket.
    ///
    /// # Errors
    /// Of the socket, `WouldBlock` not among them; or a [`TlsError`] within.
    pub(crate) fn step(
        &mut self,
        socket: &mut impl Write,
        mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<Option<Agreed>> {
        loop {
            self.send(socket)?;
            if !self.connection.is_handshaking() {
                return self.agreed().map(Some).map_err(Into::into);
            }
            if !self.receive(&mut read)? {
                return Ok(None);
            }
            if let Err(error) = self.connection.process_new_packets() {
                // The other end is told why, if it still listens.
                let _ = self.send(socket);
                return Err(understood(error).into());
            }
        }
    }

    fn send(&mut self, socket: &mut impl Write) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(socket)?;
        }
        Ok(())
    }

    /// Receives the rest of a record and passes it on. Returns whether all of it has arrived.
    fn receive(&mut self, read: &mut impl FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<bool> {
        let mut some = [0; HEADER_LEN + BODY_MAX];
        loop {
            let needed = match self.record.first_chunk::<HEADER_LEN>() {
                Some(header) => HEADER_LEN + body_len(header)?,
                None => HEADER_LEN,
            };
            if self.record.len() >= HEADER_LEN && self.record.len() == needed {
                let record = std::mem::take(&mut self.record);
                let mut rest = &record[..];
                // It takes a part at a time.
                while !rest.is_empty() {
                    if self.connection.read_tls(&mut rest)? == 0 {
                        return Err(TlsError::Unexpected("too long").into());
                    }
                }
                return Ok(true);
            }
            match read(&mut some[..needed - self.record.len()]) {
                Ok(0) => return Err(TlsError::HungUp.into()),
                Ok(len) => self.record.extend_from_slice(&some[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(TlsError::HungUp.into()),
                Err(error) => return Err(error),
            }
            if std::mem::take(&mut self.untouched) && !begins_like_tls(self.record[0]) {
                return Err(TlsError::NotTls.into());
            }
        }
    }

    fn agreed(&mut self) -> Result<Agreed, TlsError> {
        let mut left = [0];
        // A byte of the stream that rustls has read would be lost.
        let holds_nothing =
            self.connection.reader().read(&mut left).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock);
        let certificates = self.connection.peer_certificates().and_then(<[_]>::first);
        let (Some(peer), true) = (certificates, holds_nothing) else {
            return Err(TlsError::Unexpected("at the end of the handshake"));
        };
        let (mine, theirs) = match self.connection {
            Connection::Client(_) => (CLIENT, SERVER),
            Connection::Server(_) => (SERVER, CLIENT),
        };
        let missing = TlsError::Unexpected("without its traffic secrets");
        let (Some(write), Some(read)) = (self.secrets.of(mine), self.secrets.of(theirs)) else { return Err(missing) };
        Ok(Agreed { keys: StreamKeys { read, write }, peer: peer.clone().into_owned() })
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handshake")
    }
}

/// A handshake message, or an alert.
fn begins_like_tls(byte: u8) -> bool {
    matches!(ContentType::from(byte), ContentType::Handshake | ContentType::Alert)
}

fn understood(error: rustls::Error) -> TlsError {
    match error {
        rustls::Error::AlertReceived(alert) if alert != AlertDescription::CloseNotify => TlsError::Alert(alert),
        error => TlsError::Handshake(error),
    }
}

/// Names of the traffic secrets (RFC 8446, 7.1), as a key log calls them.
const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

/// A key log in memory, of one handshake.
#[derive(Default)]
struct Secrets(Mutex<Vec<Logged>>);

/// A secret and its name.
type Logged = (&'static str, Zeroizing<[u8; SECRET_LEN]>);

impl Secrets {
    fn of(&self, end: &str) -> Option<Direction> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|(name, _)| *name == end).map(|(_, secret)| Direction::new(**secret, 0))
    }
}

impl KeyLog for Secrets {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        let Some(name) = [CLIENT, SERVER].into_iter().find(|name| *name == label) else { return };
        if let Ok(secret) = secret.try_into() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push((name, Zeroizing::new(secret)));
        }
    }

    fn will_log(&self, label: &str) -> bool {
        [CLIENT, SERVER].contains(&label)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}
