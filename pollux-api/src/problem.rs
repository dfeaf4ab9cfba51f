//! Why a request failed, for programs: what is to blame, and how the reasons belong together.
//!
//! Cloud Hypervisor's clients read a JSON array of strings, and get it. A client that accepts [`MEDIA_TYPE`]
//! gets a [`Problem`] with the same sentences instead.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::reason::Blame;
use crate::reason::BlockerReport;
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
    /// The same reasons with what each is known by, if each stands by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blockers: Vec<BlockerReport>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Problem {
    /// A problem whose reasons, if any, are each the cause of the one before.
    #[must_use]
    pub fn new(status: u16, code: &str, blame: Blame, title: impl Into<String>) -> Self {
        let (title, code, relation) = (title.into(), code.to_owned(), Relation::Chain);
        Self { title, status, code, blame, relation, reasons: Vec::new(), blockers: Vec::new(), hint: None }
    }

    /// With these reasons.
    #[must_use]
    pub fn because(self, reasons: Vec<String>) -> Self {
        Self { reasons, ..self }
    }

    /// With a word on what to do next.
    #[must_use]
    pub fn hinting(self, hint: Option<&str>) -> Self {
        Self { hint: hint.map(str::to_owned), ..self }
    }

    /// In the shape of Cloud Hypervisor's errors: the title, then the reasons.
    #[must_use]
    pub fn sentences(&self) -> Vec<&str> {
        std::iter::once(&self.title).chain(&self.reasons).map(String::as_str).collect()
    }

    /// What a client makes of such sentences.
    #[must_use]
    pub fn from_sentences(status: u16, sentences: Vec<String>) -> Self {
        let mut sentences = sentences.into_iter();
        let title = sentences.next().unwrap_or_else(|| format!("status {status}"));
        Self::new(status, "", Blame::default(), title).because(sentences.collect())
    }
}

/// For people: a chain in one line, a list in one line each, and the hint below.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.title)?;
        let separator = match self.relation {
            Relation::Chain => ": ",
            Relation::List if self.reasons.is_empty() => "",
            Relation::List => {
                f.write_str(":")?;
                "\n  - "
            }
        };
        for (at, reason) in self.reasons.iter().enumerate() {
            write!(f, "{separator}{reason}")?;
            let blocker = self.blockers.get(at).filter(|blocker| blocker.reason == *reason);
            if let Some(hint) = blocker.and_then(|blocker| blocker.hint.as_ref()) {
                write!(f, " ({hint})")?;
            }
        }
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\n({hint})"))
    }
}

words! {
    /// How the reasons of a [`Problem`] belong together.
    pub enum Relation: Default {
        /// Each one stands by itself.
        List = "list",
        /// Each one is the cause of the one before.
        Chain = "chain" [default, serde(other)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_a_chain_or_a_list() {
        let reasons = || vec!["no witness".to_owned(), "no disk".to_owned()];
        let chain = Problem::new(500, "preflight", Blame::Environment, "It fails").because(reasons());
        assert_eq!(chain.to_string(), "It fails: no witness: no disk");
        let list = Problem { relation: Relation::List, ..chain.clone() };
        assert_eq!(list.hinting(Some("try again")).to_string(), "It fails:\n  - no witness\n  - no disk\n(try again)");
        let sentences = chain.sentences().into_iter().map(str::to_owned).collect();
        assert_eq!(Problem::from_sentences(500, sentences).to_string(), chain.to_string());
        let hint = Some("ask somebody".to_owned());
        let blockers = vec![BlockerReport { reason: "no witness".to_owned(), hint, ..BlockerReport::default() }];
        let list = Problem { relation: Relation::List, blockers, ..chain.clone() };
        assert_eq!(list.to_string(), "It fails:\n  - no witness (ask somebody)\n  - no disk");
        assert_eq!(Problem::from_sentences(503, Vec::new()).to_string(), "status 503");
    }
}
