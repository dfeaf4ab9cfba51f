//! What can go wrong in a run, told by who is to blame.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Result of the harness.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a run could not be carried out. That a check fails is not an error but a line in the report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program ended with an error.
    #[error("{command} failed ({status}): {output}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// The last of what it printed.
        output: String,
    },
    /// Something asked the run to end.
    #[error("interrupted")]
    Interrupted,
    /// The system refused something.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A file or program the run needs is not there.
    #[error("{} is missing: {hint}", path.display())]
    Missing {
        /// What is missing.
        path: PathBuf,
        /// How to get it.
        hint: &'static str,
    },
    /// Somebody answered something that makes no sense.
    #[error("unexpected answer from {from}: {answer}")]
    Protocol {
        /// Who.
        from: String,
        /// What.
        answer: String,
    },
    /// A condition did not come true in time.
    #[error("{what} did not happen within {} s{}", limit.as_secs(), last.as_deref().map(|l| format!("; last: {l}")).unwrap_or_default())]
    Timeout {
        /// The condition.
        what: String,
        /// How long was waited.
        limit: Duration,
        /// What was seen last.
        last: Option<String>,
    },
}

impl Error {
    /// Wraps an I/O error with what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Wraps an I/O error on a file.
    pub fn file(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        Self::io(format!("cannot {verb} {}", path.display()))
    }

    /// The message with all its causes, on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }
}
