//! What other threads cannot do any more, or not now: told to operators, shown in the status, never only logged.

use serde_json::json;

use crate::engine::Engine;

impl Engine {
    /// The thread of this name has met something that it cannot help.
    pub(crate) fn trouble(&mut self, thread: &'static str, reason: String) {
        self.note("trouble", json!({ "thread": thread, "reason": reason }));
        self.last_error = Some(reason);
        self.publish();
    }
}
