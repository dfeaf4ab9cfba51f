//! A reason as programs read it: what it is known by, what is to blame, and what to do next.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::words::words;

words! {
    /// What has to change before a request can succeed.
    pub enum Blame: Default {
        /// The request: the same one fails again, whenever it is made.
        Request = "request",
        /// The state of the VM: the same request may succeed later.
        State = "state",
        /// Something around the VMM: the other host, a link, the witness, a file.
        Environment = "environment",
        /// This host: it has run out of something.
        Host = "host",
        /// The VMM: please report it.
        Internal = "internal" [default, serde(other)],
    }
}

/// A [`Blocker`](crate::Blocker) in JSON.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(default)]
pub struct BlockerReport {
    /// What programs know it by; stays the same when the sentence changes.
    pub code: String,
    /// What has to change before the VM can be protected.
    pub blame: Blame,
    /// The reason, as a sentence.
    pub reason: String,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}
