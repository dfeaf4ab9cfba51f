//! TLS 1.3 on the streams between hosts: who the other end is, and nobody in between.
//!
//! ```text
//!   credentials: the pair's authority and this host's certificate, from files
//!        |
//!   handshake (rustls) -- traffic secrets --> schedule: the keys of each direction, one after the other
//!                                                |
//!                                             record: seals what is written, opens what is read
//! ```
//!
//! A stream is written by one thread and read by another, and a mirrored disk's is given to another process.
//! So rustls ends with the handshake: its secrets go to a [`record::Sealer`] and a [`record::Opener`], which
//! share nothing, and which another process goes on with from [`schedule::StreamKeys`]. It never holds the
//! key of a host. The cipher is always AES-256-GCM with SHA-384: whatever runs KVM has instructions for it.

pub mod credentials;
pub(crate) mod handshake;
pub mod record;
pub mod schedule;
pub mod verifier;

use std::io;

use rustls::AlertDescription;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring as provider;

/// What is wrong with a stream as TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No agreement with the other end, or it is not who it must be.
    #[error("TLS handshake failed")]
    Handshake(#[source] rustls::Error),
    /// The other end does not begin as TLS does.
    #[error("the other end does not speak TLS: perhaps it has tls=off")]
    NotTls,
    /// The other end hung up instead of an answer.
    #[error("the other end hung up during the TLS handshake: perhaps it is of another pair, or has tls=off")]
    HungUp,
    /// The other end gave the stream up, and said why.
    #[error("the other end ended TLS: {}", words(*.0))]
    Alert(AlertDescription),
    /// A record that was changed on the way, repeated, left out, or never sent by the other end.
    #[error("a TLS record is not of this stream, or was changed on the way")]
    Record,
    /// A record that may not come now.
    #[error("an unexpected TLS record: {0}")]
    Unexpected(&'static str),
}

/// What the alerts mean that a pair's hosts send each other.
fn words(alert: AlertDescription) -> String {
    let meaning = match alert {
        AlertDescription::UnknownCA | AlertDescription::DecryptError => "our certificate is not of its pair",
        AlertDescription::BadCertificate => "our certificate is not accepted there",
        AlertDescription::CertificateExpired => {
            "our certificate has expired there (or a clock is wrong): pollux pair renew"
        }
        AlertDescription::CertificateRequired => "we have shown no certificate",
        AlertDescription::HandshakeFailure => "no cipher or signature in common",
        _ => return format!("{alert:?}"),
    };
    meaning.to_owned()
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// The cryptography of all streams: one cipher, one hash.
fn cryptography() -> CryptoProvider {
    let cipher_suites = vec![provider::cipher_suite::TLS13_AES_256_GCM_SHA384];
    CryptoProvider { cipher_suites, ..provider::default_provider() }
}
