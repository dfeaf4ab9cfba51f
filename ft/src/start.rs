//! Who runs the VM when a VMM starts: asked of the witness before anything is built.

use std::time::Duration;

use ft_proto::witness::{Claim, Record, Verdict};
use ft_proto::{HostId, NodeId, Term, WitnessAnswer};

use crate::options::{NodeOptions, Role};
use crate::witness::{Asker, WitnessAddress};

/// How long the witness may take; its own limit is shorter, and tells why.
const PATIENCE: Duration = Duration::from_secs(5);

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
        Self { node: incarnation_of(HostId::numbered(0)), term: Term(1) }
    }
}

/// What a VMM is to do with its VM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Part {
    /// Boot it. If there is a witness, it says so.
    Run(Reign),
    /// Wait for who runs it; why, if the witness was asked.
    StandBy(Option<String>),
}

/// Why a VMM may not start its VM.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The witness does not answer.
    #[error("--ft: witness {witness} does not say who may run this VM: {reason}")]
    Witness {
        /// Its address.
        witness: String,
        /// Why.
        reason: String,
    },
    /// It gives the VM to somebody else.
    #[error(
        "--ft role=primary: {0}; use role=auto to wait as a standby, or, if this host has the newest disks there are, \
         role=primary,force=on"
    )]
    Elsewhere(String),
}

/// Asks the witness, where there is one. `boots`: an operator wants the VM to boot here, whatever role was configured.
/// `disks`: the term that this host's disks say the VM was last shut down in; see [`Claim::Start`].
///
/// # Errors
/// When the witness does not answer, or does not give the VM to a node that is to be the primary.
pub fn part(options: &NodeOptions, boots: bool, disks: Term) -> Result<Part, StartError> {
    if options.role == Role::Standby && !boots {
        return Ok(Part::StandBy(None));
    }
    let Reign { node, term } = Reign::unasked();
    let Some(address) = &options.witness else { return Ok(Part::Run(Reign { node, term })) };
    let claim = if options.force { Claim::Force { node } } else { Claim::Start { node, disks } };
    match ask(address, claim, Some(Claim::Stop { node, term: Term(0), disks })) {
        WitnessAnswer::Unreachable(_, reason) => Err(StartError::Witness { witness: address.to_string(), reason }),
        WitnessAnswer::Judged(_, Verdict::Granted(record)) => Ok(Part::Run(Reign { node, term: record.term() })),
        WitnessAnswer::Judged(_, Verdict::Refused(record)) => {
            let why = refusal(record, disks);
            if options.role == Role::Auto && !boots {
                Ok(Part::StandBy(Some(why)))
            } else {
                Err(StartError::Elsewhere(why))
            }
        }
    }
}

/// Gives a right back that was granted to a VM which then could not be started, to whoever has such `disks`.
pub fn give_back(options: &NodeOptions, Reign { node, term }: Reign, disks: Term) {
    let Some(address) = &options.witness else { return };
    if let WitnessAnswer::Unreachable(_, reason) = ask(address, Claim::Stop { node, term, disks }, None) {
        tracing::warn!(target: "ft", "witness {address} goes on to say that this VM runs: {reason}");
    }
}

/// Asks and waits, but not for ever. Without an answer the claim may still take effect, and nobody would be there to use it: then
/// it is followed by `regret`, if the witness can be asked once more.
fn ask(address: &WitnessAddress, claim: Claim, regret: Option<Claim>) -> WitnessAnswer {
    let asker = match Asker::start(address) {
        Ok(asker) => asker,
        Err(error) => return WitnessAnswer::Unreachable(claim, format!("cannot start a thread: {error}")),
    };
    let answer = asker.ask_and_wait(claim, PATIENCE);
    if let (WitnessAnswer::Unreachable(..), Some(regret)) = (&answer, regret) {
        asker.ask(regret, |_| {});
        asker.finish();
    }
    answer
}

/// Why this host may not start the VM, and what to do.
fn refusal(record: Option<Record>, disks: Term) -> String {
    match record {
        Some(Record::Stopped { disks: newest, .. }) => format!(
            "the VM was shut down in term {newest} on a host with newer disks ({}): start that host first",
            if disks == Term(0) {
                "nothing of that is on record here".to_owned()
            } else {
                format!("here: term {disks}")
            }
        ),
        other => describe(other),
    }
}

/// A record in words.
pub(crate) fn describe(record: Option<Record>) -> String {
    match record {
        Some(Record::Solo { owner, term }) => format!("the witness says that node {owner} runs this VM in term {term}"),
        Some(Record::Protected { primary, standby, term }) => {
            format!("the witness says that nodes {primary} and {standby} run this VM in term {term}")
        }
        Some(Record::Stopped { term, .. }) => format!("the witness says that this VM was shut down in term {term}"),
        None => "the witness has no record of this VM".to_owned(),
    }
}

/// A new incarnation of `host`, which no other process has, also not this one's next.
pub(crate) fn incarnation_of(host: HostId) -> NodeId {
    NodeId { host, incarnation: random_word() }
}

fn random_word() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // Keyed by the kernel's random numbers; the process id separates forks of one image.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Term = Term(0);

    fn options(role: Role, folder: &tempfile::TempDir) -> NodeOptions {
        let witness = Some(folder.path().join("witness").as_path().into());
        NodeOptions { role, standby: None, peers: Vec::new(), witness, force: false }
    }

    #[test]
    fn the_first_of_two_equals_runs_and_the_other_waits() {
        let folder = tempfile::tempdir().unwrap();
        let auto = options(Role::Auto, &folder);
        let Part::Run(first) = part(&auto, false, NEVER).unwrap() else { panic!("nobody runs") };
        let why = describe(Some(Record::Solo { owner: first.node, term: first.term }));
        assert_eq!(part(&auto, false, NEVER).unwrap(), Part::StandBy(Some(why)));
        give_back(&auto, first, NEVER);
        assert!(matches!(part(&auto, false, NEVER).unwrap(), Part::Run(next) if next.term > first.term));
    }

    #[test]
    fn a_primary_does_not_start_against_the_record_unless_forced() {
        let folder = tempfile::tempdir().unwrap();
        let mut primary = options(Role::Primary, &folder);
        let Part::Run(first) = part(&primary, false, NEVER).unwrap() else { panic!("does not run") };
        let error = part(&primary, false, NEVER).unwrap_err().to_string();
        assert!(error.contains(&first.node.to_string()) && error.contains("force=on"), "{error}");
        primary.force = true;
        assert!(matches!(part(&primary, false, NEVER).unwrap(), Part::Run(next) if next.term > first.term));
    }

    #[test]
    fn who_has_older_disks_waits_and_is_told_why() {
        let folder = tempfile::tempdir().unwrap();
        let auto = options(Role::Auto, &folder);
        let Part::Run(first) = part(&auto, false, NEVER).unwrap() else { panic!("nobody runs") };
        give_back(&auto, first, first.term);
        let Part::StandBy(Some(why)) = part(&auto, false, NEVER).unwrap() else { panic!("an old copy runs") };
        assert!(why.contains("newer disks") && why.contains("start that host first"), "{why}");
        let primary = options(Role::Primary, &folder);
        let error = part(&primary, false, NEVER).unwrap_err().to_string();
        assert!(error.contains("newer disks") && error.contains("force=on"), "{error}");
        assert!(matches!(part(&auto, false, first.term).unwrap(), Part::Run(next) if next.term > first.term));
    }

    #[test]
    fn a_witness_that_hangs_is_named_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("witness");
        let lock = std::fs::File::create(path.with_added_extension("lock")).unwrap();
        lock.lock().unwrap();
        let error = part(&options(Role::Auto, &folder), false, NEVER).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()) && error.contains("no answer within 3 s"), "{error}");
    }

    #[test]
    fn a_standby_asks_nobody() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(part(&options(Role::Standby, &folder), false, NEVER).unwrap(), Part::StandBy(None));
        assert!(!folder.path().join("witness").exists());
        assert!(matches!(part(&options(Role::Standby, &folder), true, NEVER).unwrap(), Part::Run(_)));
    }
}
