//! The keys of a stream after its handshake: of each direction a traffic secret, from which the key and the
//! IV of its records come, and the next secret (RFC 8446, 7.1 to 7.3).

use std::fmt;

use ft_wire::device_ctl as wire;
use rustls::Tls13CipherSuite;
use rustls::crypto::cipher::{AeadKey, Iv, MessageDecrypter, MessageEncrypter};
use rustls::crypto::ring::cipher_suite::TLS13_AES_256_GCM_SHA384;
use rustls::crypto::tls13::{OkmBlock, expand};
use zeroize::Zeroizing;

use super::TlsError;

/// Bytes of a traffic secret: one SHA-384.
pub const SECRET_LEN: usize = 48;
const KEY_LEN: usize = 32;
const IV_LEN: usize = 12;

/// A traffic secret, and how many records were protected with its key.
#[derive(Clone)]
pub struct Direction {
    secret: Zeroizing<[u8; SECRET_LEN]>,
    records: u64,
}

impl Direction {
    /// One that goes on after `records` records with this secret's key.
    #[must_use]
    pub fn new(secret: [u8; SECRET_LEN], records: u64) -> Self {
        Self { secret: Zeroizing::new(secret), records }
    }

    /// The secret, to be kept from everybody but the stream's own process.
    #[must_use]
    pub fn secret(&self) -> &[u8; SECRET_LEN] {
        &self.secret
    }

    /// Records so far.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The number of the next record, which it counts.
    pub(super) fn next_record(&mut self) -> u64 {
        let number = self.records;
        self.records += 1;
        number
    }

    /// The secret after this one.
    pub(super) fn update(&mut self) {
        *self = Self::new(self.expand("traffic upd"), 0);
    }

    pub(super) fn encrypter(&self) -> Box<dyn MessageEncrypter> {
        let (key, iv) = self.key();
        suite().aead_alg.encrypter(key, iv)
    }

    pub(super) fn decrypter(&self) -> Box<dyn MessageDecrypter> {
        let (key, iv) = self.key();
        suite().aead_alg.decrypter(key, iv)
    }

    fn key(&self) -> (AeadKey, Iv) {
        (AeadKey::from(self.expand::<KEY_LEN>("key")), Iv::from(self.expand::<IV_LEN>("iv")))
    }

    /// HKDF-Expand-Label without a context.
    fn expand<const N: usize>(&self, label: &str) -> [u8; N] {
        const PREFIX: &str = "tls13 ";
        let expander = suite().hkdf_provider.expander_for_okm(&OkmBlock::new(&self.secret[..]));
        let len = u16::try_from(N).unwrap_or(u16::MAX).to_be_bytes();
        let label_len = u8::try_from(PREFIX.len() + label.len()).unwrap_or(u8::MAX);
        expand(expander.as_ref(), &[&len, &[label_len], PREFIX.as_bytes(), label.as_bytes(), &[0]])
    }
}

impl fmt::Debug for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Direction({} records)", self.records)
    }
}

/// What the process needs that goes on with a stream.
#[derive(Clone, Debug)]
pub struct StreamKeys {
    /// Of what it reads.
    pub read: Direction,
    /// Of what it writes.
    pub write: Direction,
}

impl From<&Direction> for wire::TrafficSecret {
    fn from(direction: &Direction) -> Self {
        Self { secret: direction.secret.to_vec(), records: direction.records }
    }
}

impl From<StreamKeys> for wire::StreamKeys {
    fn from(StreamKeys { read, write }: StreamKeys) -> Self {
        Self { read: (&read).into(), write: (&write).into() }
    }
}

impl TryFrom<wire::StreamKeys> for StreamKeys {
    type Error = TlsError;

    fn try_from(wire::StreamKeys { read, write }: wire::StreamKeys) -> Result<Self, TlsError> {
        let direction = |wire::TrafficSecret { secret, records }: wire::TrafficSecret| {
            let secret = Zeroizing::new(secret);
            let secret = secret[..].try_into().map_err(|_| TlsError::Unexpected("a secret of another length"))?;
            Ok::<_, TlsError>(Direction::new(secret, records))
        };
        Ok(Self { read: direction(read)?, write: direction(write)? })
    }
}

fn suite() -> &'static Tls13CipherSuite {
    TLS13_AES_256_GCM_SHA384.tls13().expect("it is one of TLS 1.3")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From an implementation of its own of RFC 8446, 7.1: HKDF-Expand-Label with SHA-384 of the secret of
    /// 48 bytes 0, 1, 2, ...
    #[test]
    fn keys_are_those_of_the_standard() {
        let secret = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let mut direction = Direction::new(secret, 7);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            hex(&direction.expand::<KEY_LEN>("key")),
            "6877d022f1c61d24ebb7487c16752d9a4798e40431c75b39320e537c90e23225"
        );
        assert_eq!(hex(&direction.expand::<IV_LEN>("iv")), "42822531a0fe88648fc09e9f");
        direction.update();
        assert_eq!(
            (hex(direction.secret()), direction.records()),
            (
                "401331b63e9d59f202e8f041042d9516f4cd7fa2e2ee14631d3b49fc340d7af37fc2c0c9f252d8036f81ec5b85cbe5db"
                    .to_owned(),
                0
            )
        );
    }

    #[test]
    fn a_secret_is_not_shown() {
        let direction = Direction::new([0xab; SECRET_LEN], 3);
        assert_eq!(format!("{direction:?}"), "Direction(3 records)");
    }
}
