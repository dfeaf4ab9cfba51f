//! What protects the streams to other hosts: an operator's choice, and the credentials that it means.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use ft_transport::tls::credentials::{CA_CERT, Credentials, pairs};
use host_kit::error::chain;
use pollux_api::status::TlsStatus;

/// What an operator says of TLS.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum TlsChoice {
    /// Nothing: it is used, with the one pair that this host is in.
    #[default]
    OnlyPair,
    /// It is used, with the certificates in this folder.
    Folder(PathBuf),
    /// It is not used.
    Off,
}

impl TlsChoice {
    /// The pair of this name.
    #[must_use]
    pub fn pair(name: &str) -> Self {
        Self::Folder(pairs().join(name))
    }
}

/// The credentials of this host; none, where TLS is off; or why there are none.
#[derive(Clone, Debug)]
pub struct PeerTls {
    choice: TlsChoice,
    /// What was loaded, once it could be.
    loaded: Arc<OnceLock<Option<Credentials>>>,
}

impl PeerTls {
    /// What a choice means on this host. What is not there yet is looked for again when it is needed.
    #[must_use]
    pub fn new(choice: TlsChoice) -> Self {
        Self { choice, loaded: Arc::default() }
    }

    /// Without TLS.
    #[must_use]
    pub fn off() -> Self {
        Self::new(TlsChoice::Off)
    }

    /// What streams to other hosts begin with; `None`: they are plain.
    ///
    /// # Errors
    /// Why there can be no stream.
    pub fn credentials(&self) -> Result<Option<Credentials>, String> {
        if let Some(loaded) = self.loaded.get() {
            return Ok(loaded.clone());
        }
        let loaded = load(&self.choice)?;
        Ok(self.loaded.get_or_init(|| loaded).clone())
    }

    /// How long the certificate of this host is still valid; zero: it has expired.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        self.credentials().ok()??.expires().ok().map(until)
    }

    /// For `ft status`. Looks at files.
    #[must_use]
    pub fn status(&self) -> TlsStatus {
        let folder = |credentials: &Credentials| credentials.folder().display().to_string();
        match self.credentials() {
            Ok(None) => TlsStatus { on: false, warning: Some(PLAIN.to_owned()), ..TlsStatus::default() },
            Ok(Some(credentials)) => {
                let expires = credentials.expires().ok();
                let warning = credentials.fault().or_else(|| expiry_warning(until(expires?)));
                let expires = expires.and_then(|at| jiff::Timestamp::try_from(at).ok()).map(|at| at.to_string());
                TlsStatus { on: true, folder: Some(folder(&credentials)), expires, warning }
            }
            Err(reason) => TlsStatus { on: true, warning: Some(reason), ..TlsStatus::default() },
        }
    }
}

fn until(at: SystemTime) -> Duration {
    at.duration_since(SystemTime::now()).unwrap_or_default()
}

fn load(choice: &TlsChoice) -> Result<Option<Credentials>, String> {
    let read = |folder: &Path| match Credentials::load(folder) {
        Ok(credentials) => Ok(Some(credentials)),
        Err(error) => Err(format!("the certificates for TLS cannot be used: {}", chain(&error))),
    };
    match choice {
        TlsChoice::Off => Ok(None),
        TlsChoice::Folder(folder) => read(folder),
        TlsChoice::OnlyPair => only_pair(&pairs()).and_then(|folder| read(&folder)),
    }
}

/// What `tls=off` risks.
pub const PLAIN: &str = "tls=off: whoever reaches the links can read all that the VM holds, and speak for either host";
/// When it is warned that a certificate expires.
pub(crate) const WARN_DAYS: [u64; 2] = [30, 7];
const DAY: Duration = Duration::from_secs(86_400);

/// What an operator has to know of a certificate that is valid for so long.
pub(crate) fn expiry_warning(left: Duration) -> Option<String> {
    let days = left.as_secs() / DAY.as_secs();
    let renew = "`pollux pair renew` makes another one, without a gap in protection";
    match days {
        _ if left.is_zero() => Some(format!("the certificate of this host has expired: {renew}")),
        days if days < WARN_DAYS[0] => Some(format!("the certificate of this host expires in {days} days: {renew}")),
        _ => None,
    }
}

/// The folder of the one pair that this host is in.
fn only_pair(pairs: &Path) -> Result<PathBuf, String> {
    const REMEDY: &str = "`pollux pair init NAME` makes one, tls_dir= names certificates of another authority, tls=off goes \
                          without TLS";
    let folders = fs::read_dir(pairs).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut all: Vec<_> = folders.filter(|folder| folder.join(CA_CERT).exists()).collect();
    all.sort();
    match (all.pop(), all.len()) {
        (Some(folder), 0) => Ok(folder),
        (Some(_), _) => {
            Err(format!("this host is in several pairs ({}): say which one with pair=NAME", pairs.display()))
        }
        (None, _) => Err(format!("this host is in no pair ({} has none): {REMEDY}", pairs.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_pair_is_meant_and_several_have_to_be_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let error = only_pair(dir.path()).unwrap_err();
        assert!(error.contains("in no pair") && error.contains("pollux pair init"), "{error}");
        let make = |name: &str| {
            let folder = dir.path().join(name);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join(CA_CERT), "").unwrap();
            folder
        };
        let east = make("east");
        fs::create_dir(dir.path().join("half-made")).unwrap();
        assert_eq!(only_pair(dir.path()), Ok(east));
        make("west");
        assert!(only_pair(dir.path()).unwrap_err().contains("pair=NAME"));
    }

    #[test]
    fn a_certificate_that_expires_is_warned_of_in_time() {
        let after = |days| expiry_warning(DAY * days);
        assert_eq!(after(31), None);
        assert!(after(29).unwrap().contains("in 29 days"));
        assert!(after(0).unwrap().contains("has expired"));
    }

    #[test]
    fn what_is_not_protected_says_so() {
        assert!(PeerTls::off().status().warning.unwrap().contains("tls=off"));
        let missing = PeerTls::new(TlsChoice::Folder("/no/such/folder".into()));
        assert!(missing.credentials().unwrap_err().contains("ca-cert.pem"), "{missing:?}");
        assert!(missing.status().on);
    }
}
