//! `peer=ADDR:PORT,heartbeat=ADDR:PORT,…` into the JSON of `ft.protect`.

use serde_json::{Map, Value};

/// Why the options cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PairsError {
    /// A part is not `key=value`.
    #[error("ft protect: expected key=value, got {0:?}")]
    NotAPair(String),
    /// There is no such key.
    #[error("ft protect: unknown key {0:?}, the keys are {list}", list = KEYS.map(|(key, _)| key).join(", "))]
    Unknown(String),
    /// A key that is given twice.
    #[error("ft protect: {0} is given twice")]
    Twice(String),
    /// A value that is not what it should be.
    #[error("ft protect: {key}={value} is not {expected}")]
    BadValue {
        /// The key.
        key: String,
        /// What was given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A key that must be given.
    #[error("ft protect: {0}= is missing")]
    Missing(&'static str),
}

#[derive(Clone, Copy)]
enum Kind {
    Endpoint,
    Number,
    Size,
    Text,
}

const KEYS: [(&str, Kind); 13] = [
    ("peer", Kind::Endpoint),
    ("heartbeat", Kind::Endpoint),
    ("witness", Kind::Text),
    ("on_partition", Kind::Text),
    ("detect_ms", Kind::Number),
    ("min_epoch_us", Kind::Number),
    ("max_epoch_us", Kind::Number),
    ("latency_us", Kind::Number),
    ("pause_share", Kind::Number),
    ("disk_buffer", Kind::Size),
    ("disk_rate", Kind::Size),
    ("compression", Kind::Text),
    ("delta_cache", Kind::Size),
];

/// Reads the options.
///
/// # Errors
/// The first thing that is wrong, by its key.
pub fn parse(text: &str) -> Result<Map<String, Value>, PairsError> {
    let mut map = Map::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').ok_or_else(|| PairsError::NotAPair(part.to_owned()))?;
        let found = KEYS.iter().find(|(known, _)| *known == key);
        let (_, kind) = found.ok_or_else(|| PairsError::Unknown(key.to_owned()))?;
        if map.insert(key.to_owned(), convert(*kind, key, value)?).is_some() {
            return Err(PairsError::Twice(key.to_owned()));
        }
    }
    match ["peer", "heartbeat"].into_iter().find(|key| !map.contains_key(*key)) {
        Some(key) => Err(PairsError::Missing(key)),
        None => Ok(map),
    }
}

fn convert(kind: Kind, key: &str, text: &str) -> Result<Value, PairsError> {
    let (value, expected) = match kind {
        Kind::Text => ((!text.is_empty()).then(|| text.into()), "text"),
        Kind::Endpoint => (endpoint(text).then(|| text.into()), "ADDR:PORT, IPv6 in brackets"),
        Kind::Number => (text.parse::<u64>().ok().map(Value::from), "a number"),
        Kind::Size => (size(text).map(Value::from), "a size in bytes, or with K, M or G"),
    };
    value.ok_or_else(|| PairsError::BadValue { key: key.to_owned(), value: text.to_owned(), expected })
}

fn endpoint(text: &str) -> bool {
    // The VMM resolves names and interfaces; an IPv6 address goes into brackets.
    let is_host = |host: &str| match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|address| address.contains(':')),
        None => !host.is_empty() && !host.contains(':'),
    };
    text.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && port.parse::<u16>().is_ok())
}

fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['K', 'M', 'G']);
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn options_become_json() {
        let map = parse("peer=10.0.0.2:7000,heartbeat=[fe80::2%eth0]:7001,witness=etcd://a:1+b:2/k?user=u&password_file=/p,detect_ms=0,disk_buffer=64M").unwrap();
        let expected = json!({"peer": "10.0.0.2:7000", "heartbeat": "[fe80::2%eth0]:7001",
                              "witness": "etcd://a:1+b:2/k?user=u&password_file=/p", "detect_ms": 0, "disk_buffer": 64 << 20});
        assert_eq!(Value::Object(map), expected);
    }

    #[test]
    fn errors_name_the_key() {
        for (text, expected) in [
            ("", "ft protect: peer= is missing"),
            ("peer=a:1", "ft protect: heartbeat= is missing"),
            ("peer", "ft protect: expected key=value, got \"peer\""),
            ("peer=a", "ft protect: peer=a is not ADDR:PORT, IPv6 in brackets"),
            ("peer=fd00::2:7000,heartbeat=b:1", "ft protect: peer=fd00::2:7000 is not ADDR:PORT, IPv6 in brackets"),
            ("peer=a:1,peer=b:1", "ft protect: peer is given twice"),
            ("peer=a:1,heartbeat=b:1,detect_ms=soon", "ft protect: detect_ms=soon is not a number"),
            (
                "peer=a:1,heartbeat=b:1,disk_rate=5MM",
                "ft protect: disk_rate=5MM is not a size in bytes, or with K, M or G",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), expected, "{text}");
        }
        assert!(
            parse("color=red")
                .unwrap_err()
                .to_string()
                .starts_with("ft protect: unknown key \"color\", the keys are peer,")
        );
    }
}
