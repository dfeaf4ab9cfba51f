//! The body of a `State` frame: where the devices stood, then the VM's own state.

use serde::{Deserialize, Serialize};

use crate::device_ctl::{InFlight, QueueState};
use crate::session::encode_body;

/// Where a sealed device stands.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Position {
    /// Id of the device.
    pub id: String,
    /// Its queues.
    pub queues: Vec<QueueState>,
    /// Its requests in flight.
    pub in_flight: Vec<InFlight>,
    /// A disk of which the epoch has nothing; a network card that holds nothing back, of this epoch or one
    /// before.
    pub idle: bool,
}

/// The devices' part, ready to be sent.
#[derive(Debug)]
pub struct EncodedPositions {
    len: [u8; 8],
    bytes: Vec<u8>,
}

impl EncodedPositions {
    /// Encodes it.
    #[must_use]
    pub fn new(positions: &[Position]) -> Self {
        let bytes = encode_body(&positions);
        Self { len: (bytes.len() as u64).to_le_bytes(), bytes }
    }

    /// The body, part by part.
    #[must_use]
    pub fn parts_with<'a>(&'a self, state: &'a [u8]) -> [&'a [u8]; 3] {
        [&self.len, &self.bytes, state]
    }
}

/// Splits a body into positions and the VM's state.
#[must_use]
pub fn split_state(body: &[u8]) -> Option<(Vec<Position>, &[u8])> {
    let (len, rest) = body.split_first_chunk::<8>()?;
    let (positions, state) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
    Some((postcard::from_bytes(positions).ok()?, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_comes_apart_as_it_was_put_together() {
        let positions = [Position { id: "_disk0".to_owned(), idle: true, ..Position::default() }];
        let body = EncodedPositions::new(&positions).parts_with(b"state").concat();
        assert_eq!(split_state(&body), Some((positions.to_vec(), &b"state"[..])));
        assert_eq!(split_state(&body[..7]), None);
        assert_eq!(split_state(&[0xff; 16]), None, "longer than there is");
    }
}
