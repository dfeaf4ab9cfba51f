//! What an operator carries from the first host to the second: where to join, whom to believe there, and a
//! secret that opens the door once.

use std::fmt;
use std::str::FromStr;

pub use blake3::{Hash, hash};

use crate::PairError;

const PREFIX: &str = "pollux-pair";

/// A token.
#[derive(Clone, Eq, PartialEq)]
pub struct Token {
    /// `ADDR:PORT` of the first host.
    pub address: String,
    /// Hash of the authority's certificate.
    pub authority: Hash,
    /// What only the two operators know.
    pub secret: [u8; 16],
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = u128::from_be_bytes(self.secret);
        write!(f, "{PREFIX}/{}/{secret:032x}/{}", self.address, self.authority.to_hex())
    }
}

/// Not to be found in a log.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.address)
    }
}

impl FromStr for Token {
    type Err = PairError;

    fn from_str(text: &str) -> Result<Self, PairError> {
        let mut parts = text.trim().split('/');
        if parts.next() != Some(PREFIX) {
            return Err(PairError::Token("it does not begin with pollux-pair/"));
        }
        let (Some(address), Some(secret), Some(hash), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(PairError::Token("it is not complete"));
        };
        let secret = (secret.len() == 32).then(|| u128::from_str_radix(secret, 16).ok()).flatten();
        let secret = secret.ok_or(PairError::Token("its secret is damaged"))?.to_be_bytes();
        let authority = Hash::from_hex(hash).map_err(|_| PairError::Token("its hash is damaged"))?;
        Ok(Self { address: address.to_owned(), authority, secret })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_written_and_damage_is_seen() {
        let token = Token { address: "[fd00::1]:7009".to_owned(), authority: hash(b"ca"), secret: [9; 16] };
        let text = token.to_string();
        assert_eq!(text.parse::<Token>().unwrap(), token);
        assert!(!format!("{token:?}").contains("0909"), "the secret is not shown");
        for wrong in ["", "pollux-pair", &text[1..], &text[..text.len() - 1], &text.replace("0909", "09")] {
            assert!(wrong.parse::<Token>().is_err(), "{wrong}");
        }
    }
}
