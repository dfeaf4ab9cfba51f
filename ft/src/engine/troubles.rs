//! What other threads cannot do any more, or not now: told to operators, shown in the status, never only logged.

use std::time::Duration;

use nix::errno::Errno;
use serde_json::json;

use crate::engine::Engine;

/// Between two looks at everything when the kernel does not say what is ready.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

impl Engine {
    /// The kernel does not say what is ready: the engine looks at everything, slowly, rather than leave its VM without protection or,
    /// worse, without anybody who lets its output go.
    pub(crate) fn look_at_all(&mut self, errno: Errno) {
        self.trouble_once(format!("epoll failed: {errno}"));
        std::thread::sleep(LOOK_AGAIN);
        self.read_inbox();
        self.timer_fired();
        self.read_stream();
        for at in 0..self.links.len() {
            self.read_link(at);
        }
        self.publish_if_due();
    }

    /// The engine's own, which may come in each of its rounds.
    pub(crate) fn trouble_once(&mut self, reason: String) {
        if self.last_error.as_ref() != Some(&reason) {
            self.trouble("ft", reason);
        }
    }

    /// The thread of this name has met something that it cannot help.
    pub(crate) fn trouble(&mut self, thread: &'static str, reason: String) {
        self.note("trouble", json!({ "thread": thread, "reason": reason }));
        self.last_error = Some(reason);
        self.publish();
    }
}
