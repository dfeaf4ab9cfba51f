//! Who runs the VM when a VMM starts: asked of the witness before anything is built.

use ft_proto::witness::{Claim, Record, Verdict};
use ft_proto::{NodeId, Term};

use crate::options::{NodeOptions, Role};
use crate::witness::WitnessError;

/// A node's name and the term that it begins with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reign {
    /// The node.
    pub node: NodeId,
    /// Its term.
    pub term: Term,
}

impl Reign {
    /// That of a node which nobody has been asked about.
    #[must_use]
    pub fn unasked() -> Self {
        Self { node: random_node(), term: Term(1) }
    }
}

/// What a VMM is to do with its VM.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    /// Boot it. If there is a witness, it says so.
    Run(Reign),
    /// Wait for who runs it; the witness's record, if it was asked.
    StandBy(Option<Record>),
}

/// Why a VMM may not start its VM.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The witness could not be asked.
    #[error("--ft: the witness does not say who may run this VM")]
    Witness(#[from] WitnessError),
    /// It gives the VM to somebody else.
    #[error(
        "--ft role=primary: {}; use role=auto to wait as its standby, or, if that node is gone for good and this host has \
         the newest disks, role=primary,force=on", describe(*.0)
    )]
    Elsewhere(Option<Record>),
}

/// Asks the witness, where there is one. `boots`: an operator wants the VM to boot here, whatever role was configured.
///
/// # Errors
/// When the witness cannot be asked, or does not give the VM to a node that is to be the primary.
pub fn part(options: &NodeOptions, boots: bool) -> Result<Part, StartError> {
    if options.role == Role::Standby && !boots {
        return Ok(Part::StandBy(None));
    }
    let Reign { node, term } = Reign::unasked();
    let Some(address) = &options.witness else { return Ok(Part::Run(Reign { node, term })) };
    let claim = if options.force { Claim::Force { node } } else { Claim::Own { node, term } };
    match address.keeper().ask(claim)? {
        Verdict::Granted(record) => Ok(Part::Run(Reign { node, term: record.term() })),
        Verdict::Refused(record) if options.role == Role::Auto && !boots => Ok(Part::StandBy(record)),
        Verdict::Refused(record) => Err(StartError::Elsewhere(record)),
    }
}

/// Gives a right back that was granted to a VM which then could not be started.
pub fn give_back(options: &NodeOptions, Reign { node, term }: Reign) {
    let Some(address) = &options.witness else { return };
    if let Err(error) = address.keeper().ask(Claim::Stop { node, term }) {
        tracing::warn!(target: "ft", "the witness goes on to say that this VM runs: {}", crate::witness::chain(&error));
    }
}

/// A record in words.
pub(crate) fn describe(record: Option<Record>) -> String {
    match record {
        Some(Record::Solo { owner, term }) => format!("the witness says that node {owner} runs this VM in term {term}"),
        Some(Record::Protected { primary, standby, term }) => {
            format!("the witness says that nodes {primary} and {standby} run this VM in term {term}")
        }
        Some(Record::Stopped { term }) => format!("the witness says that this VM was shut down in term {term}"),
        None => "the witness has no record of this VM".to_owned(),
    }
}

/// A name that no other process has, also not this one's next incarnation.
pub(crate) fn random_node() -> NodeId {
    use std::hash::{BuildHasher, Hasher};
    // Keyed by the kernel's random numbers; the process id separates forks of one image.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    NodeId(hasher.finish().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(role: Role, folder: &tempfile::TempDir) -> NodeOptions {
        let witness = Some(folder.path().join("witness").as_path().into());
        NodeOptions { role, standby: None, peers: Vec::new(), witness, force: false }
    }

    #[test]
    fn the_first_of_two_equals_runs_and_the_other_waits() {
        let folder = tempfile::tempdir().unwrap();
        let auto = options(Role::Auto, &folder);
        let Part::Run(first) = part(&auto, false).unwrap() else { panic!("nobody runs") };
        let record = Some(Record::Solo { owner: first.node, term: first.term });
        assert_eq!(part(&auto, false).unwrap(), Part::StandBy(record));
        give_back(&auto, first);
        assert!(matches!(part(&auto, false).unwrap(), Part::Run(next) if next.term > first.term));
    }

    #[test]
    fn a_primary_does_not_start_against_the_record_unless_forced() {
        let folder = tempfile::tempdir().unwrap();
        let mut primary = options(Role::Primary, &folder);
        let Part::Run(first) = part(&primary, false).unwrap() else { panic!("does not run") };
        let error = part(&primary, false).unwrap_err().to_string();
        assert!(error.contains(&first.node.to_string()) && error.contains("force=on"), "{error}");
        primary.force = true;
        assert!(matches!(part(&primary, false).unwrap(), Part::Run(next) if next.term > first.term));
    }

    #[test]
    fn a_standby_asks_nobody() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(part(&options(Role::Standby, &folder), false).unwrap(), Part::StandBy(None));
        assert!(!folder.path().join("witness").exists());
        assert!(matches!(part(&options(Role::Standby, &folder), true).unwrap(), Part::Run(_)));
    }
}
