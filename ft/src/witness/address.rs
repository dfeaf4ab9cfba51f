//! Where the record is kept, as an operator writes it: a path, or the URL of a key in etcd.
//!
//! `etcd://HOST:PORT[+HOST:PORT…]/KEY[?cacert=FILE&cert=FILE&key=FILE&user=NAME&password_file=FILE]`, with
//! etcdctl's names.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{EtcdWitness, FileWitness, Witness};

const SCHEME: &str = "etcd://";
const KEYS: [&str; 5] = ["cacert", "cert", "key", "user", "password_file"];

/// Where the witness keeps its record.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum WitnessAddress {
    /// A file on storage that both hosts see.
    File(PathBuf),
    /// A key in etcd.
    Etcd(EtcdAddress),
}

/// A key in etcd and the way to it. Secrets are in files, read whenever the witness is asked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EtcdAddress {
    /// `HOST:PORT` of the members; all of them are asked at once.
    pub endpoints: Vec<String>,
    /// The record's key, with its leading slash.
    pub key: String,
    /// CA that signed the members' certificates; makes the connection TLS.
    pub cacert: Option<PathBuf>,
    /// This client's certificate and private key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// User, and the file with the password.
    pub user: Option<(String, PathBuf)>,
}

/// Why a text names no witness.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WitnessAddressError {
    /// Nothing at all.
    #[error("a witness is a path or etcd://HOST:PORT/KEY, not an empty text")]
    Empty,
    /// Another kind of URL.
    #[error("there is no {0}:// witness: give a path, or etcd://HOST:PORT/KEY")]
    Scheme(String),
    /// An endpoint without a port, or with more than a host before it.
    #[error("the etcd endpoint {0:?} is not HOST:PORT")]
    Endpoint(String),
    /// Nothing after the endpoints.
    #[error("no key after the etcd endpoints: give etcd://HOST:PORT/KEY, with a key for each VM")]
    Key,
    /// An option that does not exist, has no value, or comes twice.
    #[error("the etcd option {0:?} is not one of {keys}, each given at most once and with a value", keys = KEYS.map(|key| format!("{key}=")).join(", "))]
    Option(String),
    /// Options that need each other.
    #[error("{0}")]
    Incomplete(&'static str),
}

impl WitnessAddress {
    /// What asks the witness; nothing is touched yet.
    #[must_use]
    pub fn keeper(&self) -> Box<dyn Witness> {
        match self {
            Self::File(path) => Box::new(FileWitness::new(path)),
            Self::Etcd(address) => Box::new(EtcdWitness::new(address.clone())),
        }
    }
}

impl From<&Path> for WitnessAddress {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

impl FromStr for WitnessAddress {
    type Err = WitnessAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text.strip_prefix(SCHEME), text.split_once("://")) {
            (Some(rest), _) => EtcdAddress::parse(rest).map(Self::Etcd),
            (None, Some((scheme, _))) => Err(WitnessAddressError::Scheme(scheme.to_owned())),
            (None, None) if text.is_empty() => Err(WitnessAddressError::Empty),
            (None, None) => Ok(Self::File(text.into())),
        }
    }
}

impl TryFrom<String> for WitnessAddress {
    type Error = WitnessAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<WitnessAddress> for String {
    fn from(address: WitnessAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for WitnessAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Etcd(address) => address.fmt(f),
        }
    }
}

impl EtcdAddress {
    /// Reads what follows `etcd://`.
    fn parse(text: &str) -> Result<Self, WitnessAddressError> {
        let (place, options) = text.split_once('?').unwrap_or((text, ""));
        let (endpoints, key) =
            place.split_once('/').filter(|(_, key)| !key.is_empty()).ok_or(WitnessAddressError::Key)?;
        let endpoints: Vec<_> = endpoints.split('+').map(str::to_owned).collect();
        if let Some(bad) = endpoints.iter().find(|endpoint| !is_endpoint(endpoint)) {
            return Err(WitnessAddressError::Endpoint(bad.clone()));
        }
        let mut values = KEYS.map(|_| None);
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let known = option.split_once('=').filter(|(_, value)| !value.is_empty());
            let slot = known.and_then(|(name, value)| Some((KEYS.iter().position(|key| *key == name)?, value)));
            let slot = slot.filter(|(at, _)| values[*at].is_none());
            let (at, value) = slot.ok_or_else(|| WitnessAddressError::Option(option.to_owned()))?;
            values[at] = Some(value.to_owned());
        }
        let [cacert, cert, private, user, password] = values;
        let key = format!("/{key}");
        let identity = both(cert, private, "cert= and key= of an etcd witness belong together")?;
        if identity.is_some() && cacert.is_none() {
            return Err(WitnessAddressError::Incomplete("cert= and key= of an etcd witness need cacert="));
        }
        let user = both(user, password, "user= and password_file= of an etcd witness belong together")?;
        Ok(Self {
            endpoints,
            key,
            cacert: cacert.map(PathBuf::from),
            identity: identity.map(|(cert, key)| (cert.into(), key.into())),
            user: user.map(|(name, file)| (name, file.into())),
        })
    }
}

impl fmt::Display for EtcdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}{}", self.endpoints.join("+"), self.key)?;
        let path = |path: &PathBuf| path.display().to_string();
        let values = [
            self.cacert.as_ref().map(path),
            self.identity.as_ref().map(|(cert, _)| path(cert)),
            self.identity.as_ref().map(|(_, key)| path(key)),
            self.user.as_ref().map(|(name, _)| name.clone()),
            self.user.as_ref().map(|(_, file)| path(file)),
        ];
        let given = KEYS.into_iter().zip(values).filter_map(|(key, value)| value.map(|value| format!("{key}={value}")));
        let options: Vec<_> = given.collect();
        if options.is_empty() { Ok(()) } else { write!(f, "?{}", options.join("&")) }
    }
}

fn both(
    one: Option<String>,
    other: Option<String>,
    otherwise: &'static str,
) -> Result<Option<(String, String)>, WitnessAddressError> {
    match (one, other) {
        (Some(one), Some(other)) => Ok(Some((one, other))),
        (None, None) => Ok(None),
        _ => Err(WitnessAddressError::Incomplete(otherwise)),
    }
}

fn is_endpoint(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let host = match bare {
        Some(host) => host.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(named),
    };
    host && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_or_a_key_in_etcd() {
        assert_eq!("/shared/vm1".parse(), Ok(WitnessAddress::File("/shared/vm1".into())));
        let text = "etcd://10.0.0.1:2379+[fd00::2]:2379/pollux/vm1";
        let Ok(WitnessAddress::Etcd(plain)) = text.parse() else { panic!("{text}") };
        assert_eq!(plain.endpoints, ["10.0.0.1:2379", "[fd00::2]:2379"]);
        assert_eq!((plain.key.as_str(), &plain.cacert, &plain.user), ("/pollux/vm1", &None, &None));
        let text = "etcd://a:1/k?cacert=/ca.pem&cert=/c.pem&key=/k.pem&user=vm1&password_file=/p";
        let Ok(WitnessAddress::Etcd(full)) = text.parse() else { panic!("{text}") };
        assert_eq!(full.identity, Some(("/c.pem".into(), "/k.pem".into())));
        assert_eq!(full.user, Some(("vm1".to_owned(), "/p".into())));
    }

    #[test]
    fn what_is_written_is_what_was_read() {
        for text in ["/shared/vm1", "etcd://a:1+b:2/pollux/vm1", "etcd://a:1/k?cacert=/ca&user=u&password_file=/p"] {
            let address: WitnessAddress = serde_json::from_value(text.into()).unwrap();
            assert_eq!(serde_json::to_value(&address).unwrap(), text);
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        for (text, part) in [
            ("", "an empty text"),
            ("https://a:1/k", "no https:// witness"),
            ("etcd://a:1", "no key"),
            ("etcd://a:1/", "no key"),
            ("etcd:///k", "\"\" is not HOST:PORT"),
            ("etcd://a/k", "\"a\" is not HOST:PORT"),
            ("etcd://a:1+b:70000/k", "\"b:70000\" is not HOST:PORT"),
            ("etcd://fd00::2:1/k", "\"fd00::2:1\" is not HOST:PORT"),
            ("etcd://u:p@a:1/k", "is not HOST:PORT"),
            ("etcd://a:1/k?color=red", "\"color=red\" is not one of cacert=, cert=, key=, user=, password_file="),
            ("etcd://a:1/k?user=", "\"user=\" is not one of"),
            ("etcd://a:1/k?user=a&user=b", "\"user=b\" is not one of"),
            ("etcd://a:1/k?user=a", "belong together"),
            ("etcd://a:1/k?cacert=/c&cert=/c", "belong together"),
            ("etcd://a:1/k?cert=/c&key=/k", "need cacert="),
        ] {
            let error = text.parse::<WitnessAddress>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
