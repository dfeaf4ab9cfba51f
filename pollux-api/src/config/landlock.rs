//! What of the host's files a VMM can use that limits itself (`--landlock`).

use std::path::PathBuf;

config_struct! {
    /// A place for the VMM besides those that the configuration names.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct LandlockConfig("--landlock-rules") {
        /// A file, or a directory with all that is in it.
        #[schema(value_type = String)]
        path ("PATH"): PathBuf [or PathBuf::new()],
        /// Reading (r), writing (w) or both.
        access ("rw"): String [or String::new()],
    }
}

impl LandlockConfig {
    /// Whether it may be written; whoever may write may read.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.access.contains('w')
    }
}
