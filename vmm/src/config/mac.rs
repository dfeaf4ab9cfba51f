//! Ethernet addresses: text and bytes, and a random one for a card that was given none.

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet address, written as six hexadecimal bytes with colons.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr([u8; 6]);

/// The text is not an Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address of six hexadecimal bytes with colons")]
pub struct MacError(String);

impl MacAddr {
    /// The address with these bytes, first on the wire first.
    #[must_use]
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// Its bytes, first on the wire first.
    #[must_use]
    pub const fn bytes(&self) -> [u8; 6] {
        self.0
    }

    /// A random unicast address from the range that is free for local use.
    ///
    /// # Errors
    /// When the host's random source cannot be read.
    pub fn random() -> io::Result<Self> {
        let mut bytes: [u8; 6] = host_kit::random::bytes()?;
        // Bit 0: unicast. Bit 1: locally administered.
        bytes[0] = (bytes[0] & !1) | 2;
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let wrong = || MacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(wrong)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(address: MacAddr) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes() {
        let address: MacAddr = "12:34:56:78:9A:bc".parse().unwrap();
        assert_eq!(address.bytes(), [0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc]);
        assert_eq!(address.to_string(), "12:34:56:78:9a:bc");
        for wrong in
            ["", "12:34:56:78:9a", "12:34:56:78:9a:bc:de", "12:34:56:78:9a:zz", "+1:34:56:78:9a:bc", "1:2:3:4:5:6"]
        {
            assert!(wrong.parse::<MacAddr>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn random_is_local_unicast() {
        let [first, ..] = MacAddr::random().unwrap().bytes();
        assert_eq!(first & 3, 2);
    }
}
