//! What `ft.status` answers: how the protection of one VM stands, as one node sees it.
//!
//! A client takes the defaults for fields that a VMM does not send, and `Unknown` for words that it does not
//! know yet.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::options::Compression;
use crate::reason::BlockerReport;
use crate::words::words;

/// A pair's status as one node sees it.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default)]
pub struct Status {
    /// This node's part in the pair.
    pub role: Role,
    /// `protected` only while the failure of either host loses nothing.
    pub state: State,
    /// Whether this pair has a copy of the VM that could go on with it.
    pub replica: Replica,
    /// Term.
    pub term: u64,
    /// Running epoch of a primary, committed epoch of a standby.
    pub epoch: u64,
    /// The VM's identity; null: a standby that no VM has used yet.
    pub vm: Option<String>,
    /// This node.
    pub node: String,
    /// The other node.
    pub peer: Option<Peer>,
    /// Both host-to-host links.
    pub links: Vec<LinkStatus>,
    /// What decides when the two hosts cannot see each other.
    pub witness: Option<WitnessStatus>,
    /// The claim that the witness has not answered yet.
    pub claim: Option<ClaimStatus>,
    /// What protects the streams between the hosts.
    pub tls: Option<TlsStatus>,
    /// Callers at the port of `listen` that were turned away.
    pub turned_away: u64,
    /// Heartbeats that were damaged, or not from the peer of this session.
    pub ignored_beats: u64,
    /// How long the guest was paused for a checkpoint, in microseconds.
    pub pause_us: Percentiles,
    /// Time from the beginning of a checkpoint to its release, in microseconds.
    pub commit_us: Percentiles,
    /// Pages sent per epoch.
    pub dirty_pages: Percentiles,
    /// Bytes sent per epoch.
    pub epoch_bytes: Percentiles,
    /// Bytes per epoch if pages were sent whole and uncompressed.
    pub epoch_raw_bytes: Percentiles,
    /// How traffic is reduced, and by how much.
    pub compression: Option<CompressionStatus>,
    /// Frames that the network devices held at the last seal.
    pub held_frames: u64,
    /// Bytes that devices held or had uncommitted at the last seal.
    pub held_bytes: u64,
    /// Committed epochs of this session.
    pub epochs: u64,
    /// The search for a standby, if there are peers to ask.
    pub search: Option<SearchStatus>,
    /// First copy of memory, while it runs; bytes.
    pub memory_sync: Option<Progress>,
    /// The disks.
    pub disks: Vec<DiskStatus>,
    /// Last takeover of this node.
    pub takeover: Option<Takeover>,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

words! {
    /// A node's part in its pair.
    pub enum Role: Default {
        /// Runs the VM and has a standby.
        Primary = "primary",
        /// Keeps a copy of a VM that runs elsewhere.
        Standby = "standby",
        /// Runs the VM alone.
        Solo = "solo",
        /// May not run the VM any more.
        None = "none",
        /// A word that this client does not know.
        Unknown = "unknown" [default, serde(other)],
    }
}

words! {
    /// How the protection of the VM stands: not what was decided last, but whether the next failure is
    /// survived.
    pub enum State: Default {
        /// The VM runs alone, and has never been protected.
        Unprotected = "unprotected",
        /// The first copy to a standby is under way.
        Syncing = "syncing",
        /// The failure of either host loses nothing.
        Protected = "protected",
        /// The copy is good, but the witness does not answer: a failure would stop the VM.
        Degraded = "degraded",
        /// Not protected, and nothing leaves the VM until the witness answers.
        AwaitingWitness = "awaiting-witness",
        /// The VM is about to go on without its standby.
        Leaving = "leaving",
        /// An operator has suspended protection.
        Suspended = "suspended",
        /// The VM runs alone, after it was protected.
        Solo = "solo",
        /// A standby without a copy.
        StandbyEmpty = "standby-empty",
        /// A standby that receives its first copy.
        StandbySyncing = "standby-syncing",
        /// A standby that could take over.
        StandbyReady = "standby-ready",
        /// This host cannot be built as a standby; it is tried again.
        StandbyFailed = "standby-failed",
        /// The VM was stopped here, because another host may run it.
        Fenced = "fenced",
        /// A word that this client does not know.
        Unknown = "unknown" [default, serde(other)],
    }
}

words! {
    /// Whether a pair has a copy of the VM that could go on with it.
    pub enum Replica: Default {
        /// None.
        None = "none",
        /// The first copy is under way.
        Copying = "copying",
        /// Yes.
        InSync = "in-sync",
        /// A word that this client does not know.
        Unknown = "unknown" [default, serde(other)],
    }
}

/// The other node.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default)]
pub struct Peer {
    /// Where it listens, or where its connection came from.
    pub address: String,
    /// Its name.
    pub node: String,
    /// The name in the certificate that it has shown; none without TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

/// One host-to-host link.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default)]
pub struct LinkStatus {
    /// Which one.
    pub name: LinkName,
    /// Whether the peer is heard on it.
    pub state: LinkState,
    /// How long the peer has been silent on it, in milliseconds.
    pub silence_ms: u64,
}

words! {
    /// Which of the two host-to-host links.
    pub enum LinkName: Default {
        /// Carries epochs, and heartbeats beside them.
        Replication = "replication",
        /// Carries heartbeats only.
        Heartbeat = "heartbeat",
        /// A word that this client does not know.
        Unknown = "unknown" [default, serde(other)],
    }
}

words! {
    /// Whether the peer is heard on a link.
    pub enum LinkState: Default {
        /// It is.
        Green = "green",
        /// It is late.
        Yellow = "yellow",
        /// It is silent.
        Red = "red",
        /// A word that this client does not know.
        Unknown = "unknown" [default, serde(other)],
    }
}

/// What decides when the two hosts cannot see each other.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default)]
pub struct WitnessStatus {
    /// Its address, or the policy that replaces it.
    pub name: String,
    /// Whether it answered the last time that it was asked.
    pub answered: Option<bool>,
    /// Why it did not.
    pub error: Option<String>,
    /// What its record said when it was last seen.
    pub record: Option<String>,
}

/// What protects the streams between the hosts.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default)]
pub struct TlsStatus {
    /// Whether hosts prove who they are, and nobody on the way reads what they say.
    pub on: bool,
    /// Where this host's certificates are.
    pub folder: Option<String>,
    /// When the first of them expires (RFC 3339).
    pub expires: Option<String>,
    /// What an operator should do something about.
    pub warning: Option<String>,
}

/// A claim that the witness has not answered yet.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ClaimStatus {
    /// What is claimed.
    pub kind: ClaimKind,
    /// For how long, again and again, in milliseconds.
    pub since_ms: u64,
    /// Why the witness did not answer the last time.
    pub error: Option<String>,
}

words! {
    /// What a node asks of its witness.
    pub enum ClaimKind {
        /// That a standby may take over from now on.
        Register = "register",
        /// That a lost record is made again.
        Restore = "restore",
        /// To go on without the standby.
        GoAlone = "go-alone",
        /// To take over.
        TakeOver = "take-over",
        /// To give up a claim to take over.
        Withdraw = "withdraw",
        /// Anything else.
        Other = "other" [serde(other)],
    }
}

/// How a primary reduces the traffic on the link, and by how much over all epochs of the session.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct CompressionStatus {
    /// What was asked for.
    pub setting: Compression,
    /// Whether the last epoch was packed.
    pub packing: bool,
    /// Bytes if pages were sent whole and uncompressed.
    pub raw: u64,
    /// Bytes sent.
    pub sent: u64,
}

/// The search for a standby.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default)]
pub struct SearchStatus {
    /// Whether a VM that runs alone is protected without being asked.
    pub on: bool,
    /// Why nobody has accepted yet.
    pub waiting_for: Vec<String>,
    /// The same reasons with what each is known by.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blockers: Vec<BlockerReport>,
}

/// Percentiles of the recent epochs.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(default)]
pub struct Percentiles {
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
}

/// A copy under way, in bytes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(default)]
pub struct Progress {
    /// Copied.
    pub done: u64,
    /// To copy.
    pub total: u64,
    /// Seconds left at the rate so far.
    pub eta_s: Option<u64>,
}

/// A disk.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default)]
pub struct DiskStatus {
    /// Its id.
    pub id: String,
    /// How far the standby's image is.
    pub state: CopyState,
    /// How the standby's image is, or was, made equal.
    pub resync: Option<ResyncKind>,
    /// Bytes copied or found equal.
    pub done: u64,
    /// Bytes to look at.
    pub total: u64,
    /// Bytes sent for it.
    pub sent: u64,
    /// Seconds left at the rate so far.
    pub eta_s: Option<u64>,
}

words! {
    /// How far the standby's image of a disk is.
    pub enum CopyState: Default {
        /// There is no session.
        Idle = "-" [default],
        /// It is being made equal.
        Copying = "copying",
        /// It is equal, but for writes that are not committed yet.
        InSync = "in-sync",
        /// The mirror broke.
        Lost = "lost",
        /// A word that this client does not know.
        Unknown = "unknown" [serde(other)],
    }
}

words! {
    /// How a standby's disk image is made equal to the primary's.
    pub enum ResyncKind {
        /// All data is sent.
        Full = "full",
        /// Regions that either side has on record are compared; what differs is sent.
        Incremental = "incremental",
        /// Everything is compared; what differs is sent.
        Compare = "compare",
        /// A word that this client does not know.
        Unknown = "unknown" [serde(other)],
    }
}

/// How the last takeover of this node went, in microseconds unless said otherwise.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(default)]
pub struct Takeover {
    /// The checkpoint it went on from.
    pub epoch: u64,
    /// From the decision to all disks applied.
    pub disks_us: u64,
    /// From the decision to the running guest.
    pub total_us: u64,
    /// For how long the primary had been silent, in milliseconds, unless it had yielded.
    pub silence_ms: Option<u64>,
    /// From the primary's last beat to the running guest, unless it had yielded: the silence, the witness,
    /// the takeover.
    pub last_beat_us: Option<u64>,
    /// From the guest's last instruction there to its first one here, if it had yielded.
    pub gap_us: Option<u64>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What clients of earlier versions read, to the byte.
    const GOLDEN: &str = concat!(
        r#"{"role":"primary","state":"awaiting-witness","replica":"in-sync","term":3,"epoch":17,"vm":"0a","node":"a/1","#,
        r#""peer":{"address":"10.0.0.2:7000","node":"b/2","certificate":"b"},"links":[{"name":"replication","state":"green","silence_ms":4}],"#,
        r#""witness":{"name":"/w","answered":false,"error":"gone","record":"node b/2 runs this VM"},"#,
        r#""claim":{"kind":"go-alone","since_ms":7300,"error":null},"#,
        r#""tls":{"on":true,"folder":"/p","expires":"2027-11-30T00:00:00Z","warning":null},"turned_away":3,"#,
        r#""ignored_beats":9,"pause_us":{"p50":850,"p99":2100},"#,
        r#""commit_us":{"p50":1,"p99":2},"dirty_pages":{"p50":10,"p99":20},"epoch_bytes":{"p50":4096,"p99":8192},"#,
        r#""epoch_raw_bytes":{"p50":0,"p99":0},"compression":{"setting":"delta+zstd","packing":true,"raw":7,"sent":1},"#,
        r#""held_frames":2,"held_bytes":128,"epochs":16,"search":{"on":false,"waiting_for":["b"]},"#,
        r#""memory_sync":{"done":1,"total":4,"eta_s":null},"disks":[{"id":"_disk0","state":"copying","resync":"incremental","#,
        r#""done":1,"total":2,"sent":3,"eta_s":1}],"takeover":{"epoch":5,"disks_us":6,"total_us":7,"silence_ms":301,"#,
        r#""last_beat_us":8,"gap_us":null},"last_error":null}"#,
    );

    #[test]
    fn a_status_is_spelled_as_clients_know_it() {
        let status: Status = serde_json::from_str(GOLDEN).unwrap();
        assert_eq!((status.state, status.disks[0].state), (State::AwaitingWitness, CopyState::Copying));
        assert_eq!(serde_json::to_string(&status).unwrap(), GOLDEN);
    }

    #[test]
    fn a_disk_is_spelled_as_clients_know_it() {
        let disk = DiskStatus { id: "_disk0".to_owned(), resync: Some(ResyncKind::Compare), ..DiskStatus::default() };
        let expected = r#"{"id":"_disk0","state":"-","resync":"compare","done":0,"total":0,"sent":0,"eta_s":null}"#;
        assert_eq!(serde_json::to_string(&disk).unwrap(), expected);
    }

    #[test]
    fn a_client_reads_what_a_newer_vmm_says_and_what_an_older_one_leaves_out() {
        let status: Status = serde_json::from_value(json!({
            "role": "observer", "state": "resting", "from_the_future": 1, "disks": [{"state": "melting", "resync": "magic"}],
        }))
        .unwrap();
        assert_eq!((status.role, status.state, status.replica), (Role::Unknown, State::Unknown, Replica::Unknown));
        assert_eq!((status.disks[0].state, status.disks[0].resync), (CopyState::Unknown, Some(ResyncKind::Unknown)));
        assert!(status.peer.is_none() && status.term == 0);
    }
}
