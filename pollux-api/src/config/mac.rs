//! Ethernet addresses: text and bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::options::OptionValue;

/// An Ethernet address, written as six hexadecimal bytes with colons.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[schema(value_type = String, example = "12:34:56:78:90:ab")]
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

    /// The unicast address with these bytes from the range that is free for local use.
    #[must_use]
    pub const fn local([first, b, c, d, e, f]: [u8; 6]) -> Self {
        // Bit 0: unicast. Bit 1: locally administered.
        Self([(first & !1) | 2, b, c, d, e, f])
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

impl OptionValue for MacAddr {
    const EXPECTED: &'static str = "a MAC address of six hexadecimal bytes with colons";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
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
    fn local_addresses_are_unicast() {
        for first in 0..=u8::MAX {
            assert_eq!(MacAddr::local([first, 1, 2, 3, 4, 5]).bytes()[0] & 3, 2);
        }
    }
}
