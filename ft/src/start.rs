//! Decides which host runs the VM when a VMM starts or has waited: by proof, before anything is built.
//!
//! Nobody boots the VM because nothing speaks against it. The disks say by their own records what VM they are
//! of and what they were last used for; the witness compares that with its record ([`judge`]); and before
//! this host acts on a record that says more than that the VM was shut down, the other hosts are asked what
//! they do.

use std::net::SocketAddr;
use std::time::Duration;

use ft_proto::witness::{Claim, DiskState, Disks, Record, Verdict, judge};
use ft_proto::{HostId, NodeId, Term, VmId, WitnessAnswer};
use ft_transport::listener::is_taken;
use pollux_api::options::StartRole;

use crate::identity::{incarnation_of, new_vm, unnamed_host};
use crate::options::NodeOptions;
use crate::peers::ask::{Answer, ask_all, known_vm, objection, unproven};
use crate::peers::tls::PeerTls;
use crate::witness::{WitnessAddress, WitnessClient};

/// How long the witness may take; its own limit is shorter, and tells why.
const WITNESS_TIMEOUT: Duration = Duration::from_secs(5);

/// The right to run a VM: which node has it, and since when.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NodeTerm {
    /// The VM.
    pub vm: VmId,
    /// The node.
    pub node: NodeId,
    /// The term.
    pub term: Term,
    /// The VM has never been on record at a witness.
    pub first: bool,
}

impl NodeTerm {
    /// That of a node which nobody has been asked about.
    #[must_use]
    pub fn unasked() -> Self {
        Self { vm: new_vm(), node: incarnation_of(unnamed_host()), term: Term(1), first: true }
    }
}

/// What a VMM is to do with its VM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Part {
    /// Boot it. If there is a witness, it says so.
    Run(NodeTerm),
    /// Wait for the host that runs it; why, if anybody was asked.
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
    /// The disks are those of another VM.
    #[error("--ft: the disks belong to VM {disks}, and the record of witness {witness} to VM {found}")]
    OtherVm {
        /// By their records.
        disks: VmId,
        /// The witness's address.
        witness: String,
        /// By its record.
        found: VmId,
    },
    /// Somebody else has, or may have, the VM.
    #[error("--ft role=primary: {0}; use role=auto to wait as a standby")]
    Elsewhere(String),
    /// Where this host listens somebody does already.
    #[error("--ft: {0} is in use: is pollux-vmm running already on this host, for this VM?")]
    Running(SocketAddr),
}

/// What a host knows of itself when it has to decide.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Its name.
    pub host: HostId,
    /// What its disks have on record.
    pub disks: Disks,
    /// An operator wants the VM to boot here, whatever role was configured.
    pub boots: bool,
    /// It has waited for the host with the newest disks for as long as `blackout_wait` says.
    pub waited: bool,
}

/// Whether a process of this host may already run or await this VM: two of them would be one host to the
/// witness.
///
/// # Errors
/// When it listens where this one is to listen.
pub fn check_alone(options: &NodeOptions) -> Result<(), StartError> {
    let Some(standby) = &options.standby else { return Ok(()) };
    if is_taken(standby.listen) { Err(StartError::Running(standby.listen)) } else { Ok(()) }
}

/// Decides what this host does with the VM. May take some seconds.
///
/// # Errors
/// When this host is not to be a standby, and the witness does not answer or somebody else may have the VM;
/// when the disks are another VM's.
pub fn part(options: &NodeOptions, me: Candidate) -> Result<Part, StartError> {
    let tls = PeerTls::new(options.tls.clone());
    part_by(options, me, &|peers, vm, node| ask_all(peers, vm, node, &tls))
}

/// Asks the hosts at these addresses what they do about a VM.
type AskOthers<'a> = &'a dyn Fn(Vec<SocketAddr>, Option<VmId>, NodeId) -> Vec<Answer>;

/// As [`part`]; `ask` asks other hosts.
pub fn part_by(options: &NodeOptions, me: Candidate, ask: AskOthers<'_>) -> Result<Part, StartError> {
    if options.role == StartRole::Standby && !me.boots {
        return Ok(Part::StandBy(None));
    }
    let mut start = Start { options, node: incarnation_of(me.host), me, ask };
    let waits = options.role == StartRole::Auto && !me.boots;
    let decided = match &options.witness {
        Some(address) => start.by_witness(address),
        None => Ok(start.by_itself()),
    };
    match decided {
        Ok(Ok(node_term)) => Ok(Part::Run(node_term)),
        Ok(Err(why)) if waits => Ok(Part::StandBy(Some(why))),
        Ok(Err(why)) => Err(StartError::Elsewhere(why)),
        // After a blackout it may come back later than this host.
        Err(error @ StartError::Witness { .. }) if waits => Ok(Part::StandBy(Some(error.to_string()))),
        Err(error) => Err(error),
    }
}

/// A decision in the making.
struct Start<'a> {
    options: &'a NodeOptions,
    node: NodeId,
    me: Candidate,
    ask: AskOthers<'a>,
}

impl Start<'_> {
    fn by_witness(&mut self, address: &WitnessAddress) -> Result<Result<NodeTerm, String>, StartError> {
        let silent = |reason| StartError::Witness { witness: address.to_string(), reason };
        let client =
            WitnessClient::start(address).map_err(|error| silent(format!("cannot start a thread: {error}")))?;
        let stored = client.read_and_wait(WITNESS_TIMEOUT).map_err(silent)?;
        let on_record = stored.and_then(|stored| stored.vm);
        if let (Some(disks), Some(found)) = (self.me.disks.vm, on_record)
            && disks != found
        {
            return Err(StartError::OtherVm { disks, witness: address.to_string(), found });
        }
        let known = self.me.disks.vm.or(on_record);
        let record = stored.map(|stored| stored.record);
        let claim = self.claim(record);
        if let Verdict::Refused(_) = judge(record, claim) {
            return Ok(Err(self.refusal(record, address)));
        }
        // A host that finds the VM shut down does nothing that another host might have done already.
        let plain = matches!((record, claim), (Some(Record::Stopped { .. }), Claim::Start { .. }));
        if let Some(why) = if plain { None } else { self.asked_others(known, record) } {
            return Ok(Err(why));
        }
        let vm = known.unwrap_or_else(new_vm);
        let undo = Claim::Stop { node: self.node, term: Term(0), disks: self.me.disks.state.ran().unwrap_or_default() };
        match ask(&client, vm, claim, Some(undo)) {
            WitnessAnswer::Unreachable(_, reason) => Err(silent(reason)),
            WitnessAnswer::Judged(_, Verdict::Granted(record)) => {
                Ok(Ok(NodeTerm { vm, node: self.node, term: record.term(), first: false }))
            }
            WitnessAnswer::Judged(_, Verdict::Refused(record)) => Ok(Err(self.refusal(record, address))),
        }
    }

    /// Without a witness nobody compares. What the other hosts say counts, and the image's own record is
    /// checked by the process that opens it.
    fn by_itself(&mut self) -> Result<NodeTerm, String> {
        let known = self.me.disks.vm;
        let answers = self.ask_others(known);
        // Nobody knows better than the others whether they may go on.
        if let Some(why) = objection(&answers, self.me.host, true).or_else(|| self.unknown(&answers)) {
            return Err(why);
        }
        let last = self.me.disks.state.term();
        let forced = self.options.force == Some(last);
        if matches!(self.disks(), DiskState::Copy(_) | DiskState::Hole | DiskState::Unusable) && !forced {
            return Err(format!("{}; {}", self.disks_in_words(), self.force_hint(last)));
        }
        Ok(NodeTerm { vm: known.unwrap_or_else(new_vm), node: self.node, term: last.next(), first: true })
    }

    /// Why the VM must be left to another host, by what the others say.
    fn asked_others(&self, vm: Option<VmId>, record: Option<Record>) -> Option<String> {
        let answers = self.ask_others(vm);
        let may_take_over = matches!(record, Some(Record::Protected { .. }));
        objection(&answers, self.me.host, may_take_over).or_else(|| self.unknown(&answers))
    }

    fn ask_others(&self, vm: Option<VmId>) -> Vec<Answer> {
        (self.ask)(self.options.peers.iter().map(|options| options.peer).collect(), vm, self.node)
    }

    /// What speaks against a start although nobody objects. An operator who forces it knows better than a
    /// host that is not understood.
    fn unknown(&self, answers: &[Answer]) -> Option<String> {
        unproven(answers).filter(|_| self.options.force.is_none()).or_else(|| self.other_vm(answers))
    }

    /// A VM that another host knows, where this one knows of none.
    fn other_vm(&self, answers: &[Answer]) -> Option<String> {
        let fresh = self.me.disks.vm.is_none() && self.disks() == DiskState::Fresh;
        let other = known_vm(answers).filter(|_| fresh)?;
        Some(format!("the disks here have never belonged to a protected VM, and another host has VM {other}"))
    }

    /// An operator's word counts for the term that it names; after that it is used up.
    fn claim(&self, record: Option<Record>) -> Claim {
        let node = self.node;
        match self.options.force {
            Some(term) if record.is_some_and(|record| record.term() == term) => Claim::Force { node, term },
            used => {
                if let (Some(term), Some(record)) = (used, record) {
                    tracing::warn!(target: "ft", "force={term} has no effect any more: the witness is in term {}", record.term());
                }
                Claim::Start { node, disks: self.disks(), waited: self.me.waited }
            }
        }
    }

    /// An image that is one hole may be the place for a copy: only an operator, or the lack of other hosts,
    /// makes it a disk to boot from.
    fn disks(&self) -> DiskState {
        let meant = self.me.boots || self.options.role == StartRole::Primary || self.options.peers.is_empty();
        match self.me.disks.state {
            DiskState::Hole if meant => DiskState::Fresh,
            state => state,
        }
    }

    fn disks_in_words(&self) -> String {
        match self.disks() {
            DiskState::None => "there are no disks here".to_owned(),
            DiskState::Fresh => "the disks here have no record".to_owned(),
            DiskState::Hole => "a disk here is empty, like one prepared for a copy".to_owned(),
            DiskState::Alone(term) => format!("the disks here were last run from in term {term}"),
            DiskState::Ended(term) => format!("the VM was shut down from the disks here in term {term}"),
            DiskState::Protected(term) => format!("the disks here were those of a protected VM in term {term}"),
            DiskState::Copy(term) => format!("the disks here are a copy of the VM that ran elsewhere in term {term}"),
            DiskState::Unusable => "the disks here are incomplete, see `vhost-user-blk-repl record IMAGE`".to_owned(),
        }
    }

    /// Why this host may not start the VM, and what to do.
    fn refusal(&self, record: Option<Record>, address: &WitnessAddress) -> String {
        let here = self.disks_in_words();
        let Some(record) = record else {
            return format!(
                "the witness at {address} has no record of this VM, and {here}: is its file system mounted? If the record \
                 is lost for good, `pollux witness create --help` says what to do"
            );
        };
        let newer = match record {
            Record::Stopped { disks, .. } => format!(
                "the VM was shut down in term {disks} on a host with newer disks, and {here}: start that host first"
            ),
            Record::Protected { primary, in_sync, .. } if in_sync.iter().any(|one| one.host == self.me.host) => {
                format!(
                    "{}, and {here}: waiting for host {}, whose disks are the newest",
                    describe(Some(record)),
                    primary.host
                )
            }
            _ => format!("{}, and {here}", describe(Some(record))),
        };
        format!("{newer}; {}", self.force_hint(record.term()))
    }

    fn force_hint(&self, term: Term) -> String {
        format!("if this host has the newest disks, start it with role=primary,force={term}")
    }
}

/// Gives a right back that was granted to a VM which then could not be started, to whoever has such `disks`.
pub fn give_back(options: &NodeOptions, NodeTerm { vm, node, term, .. }: NodeTerm, disks: Disks) {
    // A copy that may be started has no other right than this one, which the next start here finds on record.
    let (Some(address), Some(disks)) = (&options.witness, disks.state.ran()) else { return };
    let claim = Claim::Stop { node, term, disks };
    let answer = match WitnessClient::start(address) {
        Ok(client) => ask(&client, vm, claim, None),
        Err(error) => WitnessAnswer::Unreachable(claim, format!("cannot start a thread: {error}")),
    };
    if let WitnessAnswer::Unreachable(_, reason) = answer {
        tracing::warn!(target: "ft", "witness {address} still says that this VM runs: {reason}");
    }
}

/// Asks and waits, but not for ever. Without an answer the claim may still take effect, and nobody would be
/// there to use it: then it is followed by `undo`, if the witness can be asked once more.
fn ask(client: &WitnessClient, vm: VmId, claim: Claim, undo: Option<Claim>) -> WitnessAnswer {
    let answer = client.ask_and_wait(vm, claim, WITNESS_TIMEOUT);
    if let (WitnessAnswer::Unreachable(..), Some(undo)) = (&answer, undo) {
        client.ask(vm, undo, |_| {});
        client.finish();
    }
    answer
}

/// A record in words.
pub(crate) fn describe(record: Option<Record>) -> String {
    match record {
        Some(Record::Solo { owner, term, .. }) => {
            format!("the witness says that host {} runs this VM in term {term}", owner.host)
        }
        Some(Record::Protected { primary, in_sync, term }) => {
            let hosts: Vec<_> = in_sync.iter().map(|standby| standby.host.to_string()).collect();
            format!(
                "the witness says that host {} runs this VM in term {term}, protected by host {}",
                primary.host,
                hosts.join(" and host ")
            )
        }
        Some(Record::Stopped { term, .. }) => format!("the witness says that this VM was shut down in term {term}"),
        None => "the witness has no record of this VM".to_owned(),
    }
}

#[cfg(test)]
mod tests;
