//! What happened, for operators, where it is the engine that knows and not the core.

use serde_json::Value;

/// The name of an event, and its details.
pub(crate) type Note = (&'static str, Value);
