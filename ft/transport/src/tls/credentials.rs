//! Who this host is, and whom it believes: the certificate of the pair's authority, and a certificate of this
//! host that the authority has signed, with its key.
//!
//! All of it is in one folder, in PEM files that are named as Cloud Hypervisor and QEMU name theirs. It is
//! read again when a file has changed: a certificate that was renewed holds for the next stream, and those
//! that are open go on.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use host_kit::error::chain;
use host_kit::sync::lock;
use rustls::client::Resumption;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{ClientConfig, Error, RootCertStore, ServerConfig};

use super::cryptography;
use super::verifier::{Authority, SignedBy};

const PAIRS: &str = "/etc/pollux/pairs";
/// Names another folder than [`PAIRS`].
const PAIRS_VARIABLE: &str = "POLLUX_PAIRS";
/// Certificate of the authority: whoever has one that it signed is a host of the pair.
pub const CA_CERT: &str = "ca-cert.pem";
/// Certificate of this host when it is called.
pub const SERVER_CERT: &str = "server-cert.pem";
/// Its key.
pub const SERVER_KEY: &str = "server-key.pem";
/// Certificate of this host when it calls.
pub const CLIENT_CERT: &str = "client-cert.pem";
/// Its key.
pub const CLIENT_KEY: &str = "client-key.pem";
const FILES: [&str; 5] = [CA_CERT, SERVER_CERT, SERVER_KEY, CLIENT_CERT, CLIENT_KEY];

/// Where the pairs of this host are, by name.
#[must_use]
pub fn pairs() -> PathBuf {
    std::env::var_os(PAIRS_VARIABLE).map_or_else(|| PAIRS.into(), PathBuf::from)
}

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// It is not there, or may not be read.
    #[error("{0}")]
    Io(PathBuf, #[source] io::Error),
    /// It is not what its name says.
    #[error("{0} is not a PEM file of what its name says")]
    Pem(PathBuf, #[source] pem::Error),
    /// Others may read the key.
    #[error("{0} may be read by others: chmod 600 {0}")]
    Exposed(PathBuf),
    /// The certificate of the authority is of no use.
    #[error("the authority in {0}")]
    Authority(PathBuf, #[source] VerifierBuilderError),
    /// Certificate and key do not go together, or cannot be used.
    #[error("the certificates in {0}")]
    Unusable(PathBuf, #[source] Error),
    /// A certificate that cannot be understood.
    #[error("{0} is not an X.509 certificate")]
    NotX509(PathBuf),
}

/// Credentials as they are on disk now; clones share what was read.
#[derive(Clone, Debug)]
pub struct Credentials {
    folder: Arc<Path>,
    kept: Arc<Mutex<Kept>>,
}

/// What was read last.
#[derive(Debug)]
struct Kept {
    stamps: Stamps,
    current: Arc<Current>,
    /// Since when the files are wrong, and why.
    fault: Option<(Instant, String)>,
}

/// What changes with each file: when, how long it is, and which one it is.
type Stamps = [(i64, i64, u64, u64); FILES.len()];

/// So long may files be wrong while they are replaced.
const GRACE: Duration = Duration::from_secs(60);

/// What was read from the files.
pub(crate) struct Current {
    pub(crate) client: ClientConfig,
    pub(crate) server: ServerConfig,
    /// When the first of the certificates expires.
    expires: SystemTime,
    /// The name in the certificate of this host.
    host: Option<String>,
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Current(expires {:?})", self.expires)
    }
}

impl Credentials {
    /// Those in a folder, which are read at once: what is wrong with them is to be known before they count.
    ///
    /// # Errors
    /// See [`CredentialsError`].
    pub fn load(folder: &Path) -> Result<Self, CredentialsError> {
        let kept = Kept { stamps: stamps(folder)?, current: Arc::new(Current::read(folder)?), fault: None };
        Ok(Self { folder: folder.into(), kept: Arc::new(kept.into()) })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// When the first of the certificates expires.
    ///
    /// # Errors
    /// See [`CredentialsError`].
    pub fn expires(&self) -> Result<SystemTime, CredentialsError> {
        Ok(self.current()?.expires)
    }

    /// The name of this host in its certificate.
    #[must_use]
    pub fn host(&self) -> Option<String> {
        self.current().ok()?.host.clone()
    }

    /// What is wrong with the files, if they are not as they must be.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        lock(&self.kept).fault.as_ref().map(|(_, fault)| format!("certificates cannot be read: {fault}"))
    }

    /// As the files are now. While they are being replaced, for [`GRACE`], what was read before counts.
    pub(crate) fn current(&self) -> Result<Arc<Current>, CredentialsError> {
        let before = lock(&self.kept).stamps;
        // Not under the lock: a file system may hang.
        let read = stamps(&self.folder).and_then(|now| {
            let changed = now != before || self.fault().is_some();
            let fresh = changed.then(|| Current::read(&self.folder)).transpose()?;
            Ok((now, fresh.map(Arc::new)))
        });
        let mut kept = lock(&self.kept);
        match read {
            Ok((stamps, Some(current))) => *kept = Kept { stamps, current, fault: None },
            Ok((_, None)) => {}
            Err(error) => {
                let since = kept.fault.as_ref().map_or_else(Instant::now, |(since, _)| *since);
                if kept.fault.is_none() {
                    tracing::warn!(target: "ft", "certificates cannot be read: {}", chain(&error));
                }
                kept.fault = Some((since, chain(&error)));
                if since.elapsed() >= GRACE {
                    return Err(error);
                }
            }
        }
        Ok(kept.current.clone())
    }
}

fn stamps(folder: &Path) -> Result<Stamps, CredentialsError> {
    let mut stamps = Stamps::default();
    for (stamp, name) in stamps.iter_mut().zip(FILES) {
        let path = folder.join(name);
        let found = std::fs::metadata(&path).map_err(|error| CredentialsError::Io(path, error))?;
        *stamp = (found.ctime(), found.ctime_nsec(), found.len(), found.ino());
    }
    Ok(stamps)
}

impl Current {
    fn read(folder: &Path) -> Result<Self, CredentialsError> {
        let cryptography = Arc::new(cryptography());
        let mut authority = RootCertStore::empty();
        let authorities = certificates(&folder.join(CA_CERT))?;
        for certificate in &authorities {
            let added = authority.add(certificate.clone());
            added.map_err(|error| CredentialsError::Unusable(folder.join(CA_CERT), error))?;
        }
        let authority = Arc::new(authority);
        let unusable = |error| CredentialsError::Unusable(folder.to_owned(), error);
        let (chain, key) = (certificates(&folder.join(CLIENT_CERT))?, key(&folder.join(CLIENT_KEY))?);
        let host = chain.first().and_then(name_of);
        let mut expires = expiry(&folder.join(CLIENT_CERT), &chain)?.min(expiry(&folder.join(CA_CERT), &authorities)?);
        let verifier = SignedBy::new(Authority::Known(authority.clone()), &cryptography);
        let mut client = ClientConfig::builder_with_provider(cryptography.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(chain, key)
            .map_err(unusable)?;
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        let (chain, key) = (certificates(&folder.join(SERVER_CERT))?, self::key(&folder.join(SERVER_KEY))?);
        expires = expires.min(expiry(&folder.join(SERVER_CERT), &chain)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(authority, cryptography.clone()).build();
        let verifier = verifier.map_err(|error| CredentialsError::Authority(folder.join(CA_CERT), error))?;
        let mut server = ServerConfig::builder_with_provider(cryptography)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(unusable)?;
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self { client, server, expires, host })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    match read() {
        Ok(none) if none.is_empty() => Err(CredentialsError::Pem(path.to_owned(), pem::Error::NoItemsFound)),
        Ok(all) => Ok(all),
        Err(error) => Err(wrong(path, error)),
    }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, CredentialsError> {
    let mode = std::fs::metadata(path).map_err(|error| CredentialsError::Io(path.to_owned(), error))?.mode();
    if mode & 0o077 != 0 {
        return Err(CredentialsError::Exposed(path.to_owned()));
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| wrong(path, error))
}

fn wrong(path: &Path, error: pem::Error) -> CredentialsError {
    match error {
        pem::Error::Io(error) => CredentialsError::Io(path.to_owned(), error),
        error => CredentialsError::Pem(path.to_owned(), error),
    }
}

/// When the first certificate of a chain to expire does so.
fn expiry(path: &Path, chain: &[CertificateDer<'_>]) -> Result<SystemTime, CredentialsError> {
    let mut first = None;
    for certificate in chain {
        let parsed = x509_parser::parse_x509_certificate(certificate);
        let (_, certificate) = parsed.map_err(|_| CredentialsError::NotX509(path.to_owned()))?;
        let after = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        first = Some(first.map_or(after, |first: u64| first.min(after)));
    }
    Ok(UNIX_EPOCH + Duration::from_secs(first.unwrap_or(0)))
}

/// The common name that a certificate carries, for people.
pub(crate) fn name_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Some(ft_wire::text::clean(name))
}
