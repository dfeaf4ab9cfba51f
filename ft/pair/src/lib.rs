//! The certificate authority of a pair of hosts, which both of them have: whoever holds a certificate that it
//! has signed is a host of the pair.
//!
//! ```text
//!   first host                                     second host
//!   authority -- folder                            folder <-- joining <-- token, by an operator's hand
//!       |                                                        |
//!   invitation <------------- TLS, once, ten minutes ------------'
//!       |
//!     bundle: the same in a file, for hosts that do not reach each other
//! ```
//!
//! What the hosts do with their certificates is `ft_transport::tls`.
#![forbid(unsafe_code)]

pub mod authority;
pub mod bundle;
pub mod folder;
pub mod invitation;
pub mod joining;
pub mod token;

use std::io;
use std::path::PathBuf;

use ft_transport::tls::credentials::CredentialsError;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// A file or folder.
    #[error("{0}")]
    File(PathBuf, #[source] io::Error),
    /// There is a pair in the folder already.
    #[error(
        "{0} holds a pair already: `pollux pair renew` renews its certificate, `pollux pair invite` lets a second host join"
    )]
    Exists(PathBuf),
    /// The folder does not have the key of an authority.
    #[error("{0} does not have the key of the pair's authority: certificates of another authority are renewed there")]
    NoAuthority(PathBuf),
    /// A name that a pair cannot have.
    #[error("{0:?} is not a name for a pair: 1 to 40 letters, digits, - and _")]
    Name(String),
    /// The files are there, and wrong.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A certificate that cannot be made, or read.
    #[error("certificate")]
    Certificate(#[from] rcgen::Error),
    /// TLS between the two hosts.
    #[error("TLS with {0}")]
    Tls(String, #[source] io::Error),
    /// Parts that do not belong together.
    #[error("the certificate of the authority of pair {0:?} and its key do not belong together")]
    Mismatch(String),
    /// What is not a token.
    #[error("this is not a token of `pollux pair init`: {0}")]
    Token(&'static str),
    /// What is not a bundle.
    #[error("{0} is not a bundle of `pollux pair export`")]
    Bundle(PathBuf, #[source] serde_json::Error),
    /// The other host does not let this one in.
    #[error("{0} does not let this host join: {1}")]
    Refused(String, String),
    /// The ten minutes are over, or too many have tried.
    #[error("nobody has joined: {0}. `pollux pair invite` makes another token")]
    Nobody(&'static str),
    /// The kernel gives no random numbers.
    #[error("no random numbers")]
    Random(#[source] io::Error),
}
