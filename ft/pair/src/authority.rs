//! The authority's certificate and key, and the certificates that it signs.

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};

use crate::PairError;

/// How long an authority is valid: as long as its pair.
const AUTHORITY_DAYS: i64 = 20 * 365;
/// How long a host's certificate is valid.
pub const HOST_DAYS: i64 = 365;
/// The clocks of two hosts may differ.
const SKEW: Duration = Duration::days(1);

/// The authority of a pair.
#[derive(Debug)]
pub struct Authority {
    name: String,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A host's certificate and key, in PEM.
#[derive(Debug)]
pub struct HostCertificate {
    /// The certificate, good for calling and for being called.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl Authority {
    /// One for a pair of this name.
    ///
    /// # Errors
    /// When the name is none, or the keys cannot be made.
    pub fn create(name: &str) -> Result<Self, PairError> {
        check(name)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("Pollux pair {name}"), Some(name));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, AUTHORITY_DAYS);
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { name: name.to_owned(), certificate, issuer: Issuer::new(params, key) })
    }

    /// The authority of these PEM texts.
    ///
    /// # Errors
    /// When they are not what they must be.
    pub fn load(name: &str, certificate: &str, key: &str) -> Result<Self, PairError> {
        check(name)?;
        let key = KeyPair::from_pem(key)?;
        if public_key(certificate).as_deref() != Some(&key.subject_public_key_info()[..]) {
            return Err(PairError::Mismatch(name.to_owned()));
        }
        let issuer = Issuer::from_ca_cert_pem(certificate, key)?;
        Ok(Self { name: name.to_owned(), certificate: certificate.to_owned(), issuer })
    }

    /// What a token calls it.
    ///
    /// # Errors
    /// When its certificate is none.
    pub fn hash(&self) -> Result<blake3::Hash, PairError> {
        let der = CertificateDer::from_pem_slice(self.certificate.as_bytes());
        der.map(|der| blake3::hash(&der)).map_err(|_| PairError::Mismatch(self.name.clone()))
    }

    /// The pair's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its certificate, in PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its key, in PEM.
    #[must_use]
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A new key and certificate for `host`.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn issue(&self, host: &str) -> Result<HostCertificate, PairError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = self.params(host)?.signed_by(&key, &self.issuer)?.pem();
        Ok(HostCertificate { certificate, key: key.serialize_pem() })
    }

    /// A certificate for a key that only `host` has.
    ///
    /// # Errors
    /// When the request is not one.
    pub fn sign(&self, request: &str, host: &str) -> Result<String, PairError> {
        let mut request = CertificateSigningRequestParams::from_pem(request)?;
        // The key is the host's; everything else is for the authority to say.
        request.params = self.params(host)?;
        Ok(request.signed_by(&self.issuer)?.pem())
    }

    fn params(&self, host: &str) -> Result<CertificateParams, PairError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(host, Some(&self.name));
        let uri = Ia5String::try_from(format!("pollux:pair/{}", self.name))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, HOST_DAYS);
        Ok(params)
    }
}

/// The public key in a certificate, as it stands there.
fn public_key(certificate: &str) -> Option<Vec<u8>> {
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
    Some(parsed.public_key().raw.to_vec())
}

/// A key of this host's own, and the request to certify it, in PEM.
///
/// # Errors
/// When it cannot be made.
pub fn request() -> Result<(String, String), PairError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let request = CertificateParams::default().serialize_request(&key)?.pem()?;
    Ok((key.serialize_pem(), request))
}

fn check(name: &str) -> Result<(), PairError> {
    let plain = name.chars().all(|char| char.is_ascii_alphanumeric() || char == '-' || char == '_');
    let right = plain && (1..=40).contains(&name.len());
    right.then_some(()).ok_or_else(|| PairError::Name(name.to_owned()))
}

fn named(name: &str, unit: Option<&str>) -> DistinguishedName {
    let mut all = DistinguishedName::new();
    all.push(DnType::CommonName, name);
    all.push(DnType::OrganizationName, "Pollux");
    if let Some(unit) = unit {
        all.push(DnType::OrganizationalUnitName, unit);
    }
    all
}

fn validity(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - SKEW, now + Duration::days(days));
}
