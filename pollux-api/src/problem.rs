//! Why a request failed, for programs: who has to change something, and how the reasons hang together.
//!
//! Cloud Hypervisor's clients read a JSON array of strings, and get it. A client that accepts [`MEDIA_TYPE`] gets a
//! [`Problem`] with the same sentences instead.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::words::words;

/// What a client names in `Accept`, and the VMM in `Content-Type` (RFC 9457).
pub const MEDIA_TYPE: &str = "application/problem+json";

/// Why a request failed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Problem {
    /// What did not work.
    pub title: String,
    /// Status of the answer.
    pub status: u16,
    /// What programs know it by; stays the same when sentences change.
    pub code: String,
    /// What has to change before the request can succeed.
    pub blame: Blame,
    /// How the reasons belong together.
    pub relation: Relation,
    /// Why it did not work.
    pub reasons: Vec<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

words! {
    /// What has to change before a request can succeed.
    #[derive(Default)]
    pub enum Blame {
        /// The request: the same one fails again, whenever it is made.
        Request = "request",
        /// The state of the VM: the same request may succeed later.
        State = "state",
        /// Something around the VMM: the other host, a link, the witness, a file.
        Environment = "environment",
        /// This host: it has run out of something.
        Host = "host",
        /// The VMM: please report it.
        #[default]
        #[serde(other)]
        Internal = "internal",
    }
}

words! {
    /// How the reasons of a [`Problem`] belong together.
    #[derive(Default)]
    pub enum Relation {
        /// Each one stands by itself.
        List = "list",
        /// Each one is the cause of the one before.
        #[default]
        #[serde(other)]
        Chain = "chain",
    }
}
