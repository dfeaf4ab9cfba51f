//! The term, witness and takeover core as a state space: two hosts with real nodes, a witness with the real
//! judgement, and every order in which messages, answers, losses, silences, crashes and operators can come,
//! within [`Bounds`].
//!
//! Time is taken out: a node's clock does not advance, and silence is an action that may happen at any
//! moment, rightly or wrongly. So what holds here holds for every timing. Pages and disks are taken out too:
//! an epoch is its number.
#![forbid(unsafe_code)]

mod disks;
mod hosts;
mod properties;
mod reduce;
mod state;
mod system;
mod witness;

pub use properties::Possible;
pub use state::{Act, Bounds, Flaw, LateClaims, System};
