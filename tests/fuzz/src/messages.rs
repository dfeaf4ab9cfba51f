//! Bodies of the session's short frames: what decodes is what its encoding says.
//!
//! Input: the kind, then the body.

use ft::guest::Shape;
use ft_wire::state::Position;
use ft_wire::session::{
    BODY_MAX, CopyProgress, EpochEnd, Hello, Kind, Purpose, Refusal, Standing, Welcome, Yielding, decode_body,
    encode_body,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Kinds of bodies.
pub(crate) const KINDS: u8 = 9;

/// Decodes the body.
pub fn run(input: &[u8]) {
    let Some((kind, body)) = input.split_first() else { return };
    match kind % KINDS {
        0 => {
            if let Some(Hello { purpose: Purpose::Session { shape, .. }, .. }) = same::<Hello>(Kind::Hello, body) {
                same::<Shape>(Kind::Hello, &shape);
            }
        }
        1 => drop(same::<Welcome>(Kind::Welcome, body)),
        2 => drop(same::<Refusal>(Kind::Refuse, body)),
        3 => drop(same::<EpochEnd>(Kind::End, body)),
        4 => drop(same::<Yielding>(Kind::Yield, body)),
        5 => drop(same::<CopyProgress>(Kind::Progress, body)),
        6 => drop(same::<Standing>(Kind::Standing, body)),
        7 => drop(same::<Shape>(Kind::Hello, body)),
        _ => drop(same::<Vec<Position>>(Kind::State, body)),
    }
}

fn same<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(kind: Kind, body: &[u8]) -> Option<T> {
    let message = decode_body::<T>(kind, body).ok()?;
    let again = encode_body(&message);
    assert!(again.len() <= BODY_MAX as usize);
    assert_eq!(decode_body::<T>(kind, &again).unwrap(), message);
    Some(message)
}
