//! The way to the witness as the engine's thread uses it: it asks, and is told later.

use std::fmt::Debug;

use ft_proto::witness::Claim;
use ft_proto::{VmId, WitnessAnswer};

use super::{Stored, WitnessAddress};
use pollux_api::status::WitnessStatus;

/// Asks the witness, one question after the other, and waits for none of the answers. Clones are the same
/// way.
pub trait AskWitness: Clone + Debug + Send {
    /// Whom it asks.
    fn address(&self) -> &WitnessAddress;

    /// Has `claim` of `vm` judged; the answer goes to `answer`.
    fn ask(&self, vm: VmId, claim: Claim, answer: impl FnOnce(WitnessAnswer) + Send + 'static);

    /// Has the record read; it, or why it could not be, goes to `answer`.
    fn read(&self, answer: impl FnOnce(Result<Option<Stored>, String>) + Send + 'static);

    /// For `ft status`.
    fn status(&self) -> WitnessStatus;

    /// The engine ends: waits, within reason, until everything is asked.
    fn finish(&self);
}
