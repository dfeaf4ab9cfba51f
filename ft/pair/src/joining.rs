//! The second host's side: believes the first one by the token's hash, proves itself by the token's secret.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ft_transport::addresses::resolve;
use ft_transport::tls::verifier::{Authority, SignedBy};
use ft_wire::text::clean;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, ClientConnection, Error, StreamOwned};

use crate::PairError;
use crate::authority::{HostCertificate, request};
use crate::folder::Folder;
use crate::invitation::{Answer, MESSAGE_MAX, Request};
use crate::token::Token;

/// How long the first host may take for each step.
const PATIENCE: Duration = Duration::from_secs(10);

/// Has this host, called `host`, join the pair that `token` is of. Returns the folder with its files.
///
/// # Errors
/// When the first host is not there, is not who the token says, or does not let this one in.
pub fn join(token: &Token, folder: Option<&Path>, host: &str) -> Result<Folder, PairError> {
    if folder.is_some() {
        Folder::of("", folder).check_free()?;
    }
    let (key, request) = request()?;
    let request = Request { secret: token.secret, host: host.to_owned(), request };
    let answer = ask(token, &request).map_err(|error| understood(token, error))?;
    match answer {
        Answer::Welcome { pair, certificate } => {
            let authority = pair.authority()?;
            if authority.hash()? != token.authority {
                return Err(PairError::Refused(token.address.clone(), "it gives another authority".to_owned()));
            }
            let folder = Folder::of(authority.name(), folder);
            folder.create(&authority, &HostCertificate { certificate, key })?;
            Ok(folder)
        }
        Answer::Refused(reason) => Err(PairError::Refused(token.address.clone(), clean(&reason))),
    }
}

fn understood(token: &Token, error: io::Error) -> PairError {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match tls {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            PairError::Refused(token.address.clone(), "it is not the host that made the token".to_owned())
        }
        _ => PairError::Tls(token.address.clone(), error),
    }
}

fn ask(token: &Token, request: &Request) -> io::Result<Answer> {
    let address = resolve(&token.address).map_err(io::Error::other)?;
    let tcp = TcpStream::connect_timeout(&address, PATIENCE)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    tcp.set_write_timeout(Some(PATIENCE))?;
    let cryptography = Arc::new(ring::default_provider());
    let verifier = SignedBy::new(Authority::Hashed(token.authority), &cryptography);
    let config = ClientConfig::builder_with_provider(cryptography)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let name = ServerName::from(address.ip());
    let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, tcp));
    writeln!(stream.get_mut(), "{}", serde_json::to_string(request)?)?;
    let mut line = String::new();
    stream.by_ref().take(MESSAGE_MAX).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
