//! Believes a host that is called by who has signed its certificate, whatever name it has: hosts are called
//! by addresses, which change.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, PeerIncompatible, RootCertStore, SignatureScheme};

/// Who must have signed a certificate.
#[derive(Clone, Debug)]
pub enum Authority {
    /// One of these.
    Known(Arc<RootCertStore>),
    /// The one whose certificate has this hash; the host shows it beside its own.
    Hashed(blake3::Hash),
}

/// Believes whoever has a certificate of the authority.
#[derive(Debug)]
pub struct SignedBy {
    authority: Authority,
    algorithms: WebPkiSupportedAlgorithms,
}

impl SignedBy {
    /// A verifier that uses this cryptography.
    #[must_use]
    pub fn new(authority: Authority, cryptography: &CryptoProvider) -> Self {
        Self { authority, algorithms: cryptography.signature_verification_algorithms }
    }

    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        roots: &RootCertStore,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, self.algorithms.all)?;
        Ok(ServerCertVerified::assertion())
    }
}

impl ServerCertVerifier for SignedBy {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.authority {
            Authority::Known(roots) => self.verify(certificate, roots, intermediates, now),
            Authority::Hashed(hash) => {
                let shown = intermediates.iter().find(|other| blake3::hash(other) == *hash);
                let shown = shown.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
                let mut roots = RootCertStore::empty();
                roots.add(shown.clone().into_owned())?;
                self.verify(certificate, &roots, &[], now)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
