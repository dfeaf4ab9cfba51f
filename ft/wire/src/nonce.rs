//! The secret number of a session: whoever says it is one of the session's two ends, so nothing prints it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Drawn at random for a session, and told to its primary only.
#[derive(Clone, Copy, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Nonce(u128);

impl Nonce {
    /// There is no session to prove.
    pub const NONE: Self = Self(0);

    /// A session's number; 0 is none.
    #[must_use]
    pub const fn new(number: u128) -> Self {
        Self(number)
    }

    /// As bytes, for a key.
    #[must_use]
    pub const fn to_le_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::NONE { "Nonce(none)" } else { "Nonce(secret)" })
    }
}

#[cfg(test)]
mod tests {
    use ft_proto::NodeId;

    use super::*;
    use crate::session::{Hello, Purpose, Welcome};

    #[test]
    fn no_message_prints_it() {
        let nonce = Nonce::new(0x0123_4567_89ab_cdef);
        let node = NodeId::numbered(1, 1);
        let printed = [
            format!("{:?}", Hello { vm: None, node, purpose: Purpose::Disk { index: 0, session: 1, nonce } }),
            format!("{:?}", Welcome { node, session: 1, nonce, kept: false }),
        ];
        for text in printed {
            assert!(text.contains("Nonce(secret)"), "{text}");
            assert!(!text.contains("81985529216486895") && !text.contains("cdef"), "{text}");
        }
    }
}
