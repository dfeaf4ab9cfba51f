//! The first host's side of joining: waits for the second host, once, for ten minutes.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ft_wire::text::clean;
use nix::ifaddrs::getifaddrs;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde::{Deserialize, Serialize};

use crate::PairError;
use crate::authority::Authority;
use crate::bundle::Bundle;
use crate::token::Token;

/// Where to listen when nothing else is said.
pub const PORT: u16 = 7009;
/// How long a token is valid.
pub const VALID: Duration = Duration::from_secs(600);
/// Callers with a wrong secret, or with none, before the token is worth nothing any more.
const ATTEMPTS: usize = 1000;
/// How long one caller may take in all.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest message.
pub(crate) const MESSAGE_MAX: u64 = 16 << 10;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What the second host says.
#[derive(Deserialize, Serialize)]
pub(crate) struct Request {
    pub(crate) secret: [u8; 16],
    pub(crate) host: String,
    /// For the key that it has made.
    pub(crate) request: String,
}

/// What it is answered.
#[derive(Deserialize, Serialize)]
pub(crate) enum Answer {
    Welcome { pair: Bundle, certificate: String },
    Refused(String),
}

/// A door that is open.
#[derive(Debug)]
pub struct Invitation {
    listener: TcpListener,
    config: Arc<ServerConfig>,
    authority: Authority,
    token: Token,
}

impl Invitation {
    /// Opens the door at `address`; `None`: at the first address of this host that is not its own alone.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn open(authority: Authority, host: &str, address: Option<SocketAddr>) -> Result<Self, PairError> {
        let address = address.unwrap_or_else(|| (first_address(), PORT).into());
        let at = address.to_string();
        let tls = |error: io::Error| PairError::Tls(at.clone(), error);
        let listener = TcpListener::bind(address).map_err(tls)?;
        listener.set_nonblocking(true).map_err(tls)?;
        let address = listener.local_addr().map_err(tls)?.to_string();
        let secret = host_kit::random::bytes().map_err(PairError::Random)?;
        let ca = CertificateDer::from_pem_slice(authority.certificate().as_bytes());
        let ca = ca.map_err(|error| tls(io::Error::other(error)))?;
        let token = Token { address, authority: authority.hash()?, secret };
        // A certificate of its own: what this one signs with is not the host's key.
        let own = authority.issue(host)?;
        let config = server(&own.certificate, &own.key, ca).map_err(tls)?;
        Ok(Self { listener, config, authority, token })
    }

    /// What the operator carries to the second host.
    #[must_use]
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// Waits for the second host. Returns its name.
    ///
    /// # Errors
    /// When nobody has joined in time.
    pub fn wait(self, limit: Duration) -> Result<String, PairError> {
        let deadline = Instant::now() + limit;
        let mut attempts = 0;
        while attempts < ATTEMPTS {
            if Instant::now() >= deadline {
                return Err(PairError::Nobody("the token is not valid any more"));
            }
            match self.listener.accept() {
                Ok((tcp, _)) => match self.serve(Timed { tcp, until: deadline.min(Instant::now() + PATIENCE) }) {
                    Ok(Some(host)) => return Ok(host),
                    Ok(None) => attempts += 1,
                    // It did not get so far as to say a secret.
                    Err(_) => {}
                },
                Err(_) => std::thread::sleep(LOOK_AGAIN),
            }
        }
        Err(PairError::Nobody("too many have tried with a wrong token"))
    }

    /// `None`: it does not know the secret.
    fn serve(&self, tcp: Timed) -> Result<Option<String>, io::Error> {
        tcp.tcp.set_nonblocking(false)?;
        let connection = ServerConnection::new(self.config.clone()).map_err(io::Error::other)?;
        let mut stream = BufReader::new(StreamOwned::new(connection, tcp));
        let mut line = String::new();
        stream.by_ref().take(MESSAGE_MAX).read_line(&mut line)?;
        let request: Request = serde_json::from_str(&line)?;
        // Hashes are compared in constant time.
        let known = blake3::hash(&request.secret) == blake3::hash(&self.token.secret);
        let host = clean(&request.host);
        let answer =
            if known { self.welcome(&request.request, &host) } else { Err("the token is another one".to_owned()) };
        let (answer, joined) = match answer {
            Ok(welcome) => (welcome, Some(host)),
            Err(reason) => (Answer::Refused(reason), None),
        };
        let stream = stream.get_mut();
        writeln!(stream, "{}", serde_json::to_string(&answer)?)?;
        stream.flush()?;
        stream.conn.send_close_notify();
        stream.flush()?;
        Ok(joined)
    }

    fn welcome(&self, request: &str, host: &str) -> Result<Answer, String> {
        let certificate = self.authority.sign(request, host).map_err(|error| error.to_string())?;
        Ok(Answer::Welcome { pair: Bundle::of(&self.authority), certificate })
    }
}

/// A caller, all of whose time together is limited.
struct Timed {
    tcp: TcpStream,
    until: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Timed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.tcp.set_read_timeout(Some(self.left()?))?;
        self.tcp.read(into)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tcp.set_write_timeout(Some(self.left()?))?;
        self.tcp.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

fn server(certificate: &str, key: &str, ca: CertificateDer<'static>) -> io::Result<Arc<ServerConfig>> {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(io::Error::other)?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(vec![certificate, ca], key)
        .map_err(io::Error::other)?;
    Ok(Arc::new(config))
}

/// An address by which another host may reach this one.
fn first_address() -> IpAddr {
    let all = getifaddrs().into_iter().flatten().filter_map(|found| found.address);
    let ips = all.filter_map(|address| address.as_sockaddr_in().map(|v4| v4.ip()));
    let mut others = ips.filter(|ip| !ip.is_loopback() && !ip.is_link_local());
    others.next().map_or(IpAddr::from([127, 0, 0, 1]), IpAddr::from)
}
