//! Events that the engine reports by itself, not the core.

use pollux_api::event::EventName;
use serde_json::Value;

/// The name of an event, and its details.
pub(crate) type Note = (EventName, Value);
