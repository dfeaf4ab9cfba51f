//! What becomes of a system call that its thread may not make.

use std::str::FromStr;

/// What happens to a system call that its thread's filter does not allow. The words are Cloud Hypervisor's.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// It ends the process, which says so.
    #[default]
    True,
    /// It is carried out: there are no filters.
    False,
    /// It is carried out and logged by the kernel.
    Log,
    /// It is refused (EPERM).
    Errno,
}

impl Mode {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "true",
            Self::False => "false",
            Self::Log => "log",
            Self::Errno => "errno",
        }
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let all = [Self::True, Self::False, Self::Log, Self::Errno];
        let known = all.into_iter().find(|mode| mode.as_str() == word);
        known.ok_or_else(|| format!("{word:?} is not true, false, log or errno"))
    }
}
