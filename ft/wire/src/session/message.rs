//! What the frames of a session say: the greeting of a connection, and the bodies of short frames. Text of
//! the peer is cleaned as it is decoded.

use ft_proto::{NodeId, OnPartition, Term, VmId};
use serde::{Deserialize, Serialize};

use super::frame::{Kind, WireError};
use crate::device_ctl::ResyncKind;
use crate::nonce::Nonce;
use crate::text;

/// Body of `End`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct EpochEnd {
    /// Pages in the epoch, zero pages included.
    pub pages: u64,
    /// Frames before this one.
    pub frames: u64,
    /// [`Digest`](super::Digest) over them.
    pub digest: u64,
}

/// Body of `Hello`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Hello {
    /// The VM that it is about; `None`: the caller's disks do not know yet.
    pub vm: Option<VmId>,
    /// Who calls.
    pub node: NodeId,
    /// What for.
    pub purpose: Purpose,
}

/// What a connection is for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Purpose {
    /// Only ask what the node does about the VM; the connection closes after the answer.
    Ask,
    /// Epochs and control; exactly one per session.
    Session {
        /// Only ask whether it would be accepted; the connection closes after the answer.
        check: bool,
        /// The VM that the standby must be built like.
        shape: Vec<u8>,
        /// Where the primary listens for heartbeats on each link, `ADDR:PORT`; replication first.
        beats: [String; 2],
        /// Silence on every link after which the peer is taken for dead, in milliseconds; 0 is never.
        detect_ms: u64,
        /// The most bytes of uncommitted writes per disk.
        disk_buffer: u64,
        /// How the primary came to run the VM, if it took it over.
        took_over: Option<TookOver>,
        /// Who goes on without a witness; `None` means that there is one.
        on_partition: Option<OnPartition>,
        /// The session since whose last checkpoint the primary knows every page that was written.
        base: Option<u64>,
        /// The nonce of the last session between the two, by which the standby knows that its primary calls
        /// again.
        previous: Nonce,
    },
    /// The mirror stream of one disk of the session that is open.
    Disk {
        /// Index of the disk.
        index: u16,
        /// What the standby's `Welcome` called the session: a connection of an earlier attempt may arrive
        /// late.
        session: u64,
        /// And the nonce that came with it.
        nonce: Nonce,
    },
}

/// How a node came to run the VM: for the operators of the host that ran it before.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TookOver {
    /// The node that it took over from.
    pub from: NodeId,
    /// For how long that was silent, in milliseconds; `None` if it had yielded.
    pub silence_ms: Option<u64>,
    /// From the decision to the running guest, in microseconds.
    pub total_us: u64,
    /// From the guest's last instruction there to its first one here, in microseconds, if the other one had
    /// yielded. The time that its word was on the way is not in it.
    pub gap_us: Option<u64>,
}

/// Body of `Progress`: how far the first copy is by the primary's count, for the operators of the other host.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CopyProgress {
    /// Bytes of memory that are copied, and that are to be.
    pub memory: [u64; 2],
    /// Each disk that has begun.
    pub disks: Vec<Option<DiskProgress>>,
}

/// How far the copy of a disk is, in bytes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DiskProgress {
    /// How it is made.
    pub kind: ResyncKind,
    /// Copied or found equal.
    pub done: u64,
    /// To look at.
    pub total: u64,
    /// Sent for it.
    pub sent: u64,
}

/// Body of `Yield`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Yielding {
    /// Why, for a person.
    #[serde(deserialize_with = "text::from_outside")]
    pub reason: String,
    /// For how long the guest had stood still, in microseconds.
    pub stopped_us: u64,
}

/// Body of `Welcome`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Welcome {
    /// Who answers.
    pub node: NodeId,
    /// Its name for the session.
    pub session: u64,
    /// Known to the two ends of the session alone: whatever else comes in its name proves by it that it
    /// belongs to it.
    pub nonce: Nonce,
    /// Whether its memory is what it was at the last checkpoint of the session that the primary has as its
    /// base.
    pub kept: bool,
}

/// Body of `Standing`: what a node does about a VM.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Standing {
    /// Who answers.
    pub node: NodeId,
    /// The VM.
    pub vm: Option<VmId>,
    /// Its term.
    pub term: Term,
    /// What it does.
    pub part: Part,
}

/// What a node does about a VM.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Part {
    /// It runs it.
    Runs,
    /// It holds a whole copy of this primary's, and takes over should that fall silent.
    WillTakeOver(NodeId),
    /// Neither.
    Waits,
}

/// Body of `Refuse` and `Bye`: every reason, for a person.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Refusal {
    /// One sentence each.
    #[serde(deserialize_with = "text::all_from_outside")]
    pub reasons: Vec<String>,
}

/// Encodes a message body.
#[must_use]
pub fn encode_body<T: Serialize>(message: &T) -> Vec<u8> {
    // Only a failing allocator or a map of unknown length can fail here; our messages have neither.
    postcard::to_allocvec(message).expect("plain messages always encode")
}

/// Decodes a message body.
///
/// # Errors
/// When the bytes are not exactly one message of this type.
pub fn decode_body<'a, T: Deserialize<'a>>(kind: Kind, body: &'a [u8]) -> Result<T, WireError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(WireError::Malformed { kind, what: "does not decode" }),
    }
}

#[cfg(test)]
mod tests {
    use ft_proto::HostId;

    use super::*;

    #[test]
    fn names_come_back_and_what_is_no_name_is_refused() {
        let node = NodeId { host: "alpha.rack-2".parse().unwrap(), incarnation: 0xbeef };
        let names = (node, VmId(0xdead << 96));
        assert_eq!(decode_body(Kind::Hello, &encode_body(&names)), Ok(names));
        let long = "x".repeat(HostId::LEN + 1);
        for bad in ["", "a b", "a/b", "\u{1b}[31m", "größe", &long] {
            assert!(decode_body::<HostId>(Kind::Hello, &encode_body(&bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn words_of_the_peer_are_cleaned_as_they_are_decoded() {
        let said = Refusal { reasons: vec!["\x1b[2Jfine".to_owned(); 1000] };
        let heard: Refusal = decode_body(Kind::Refuse, &encode_body(&said)).unwrap();
        assert_eq!(heard.reasons.len(), text::LINES_MAX + 1);
        assert_eq!((&heard.reasons[0][..], &heard.reasons[text::LINES_MAX][..]), ("\u{fffd}[2Jfine", "and 968 more"));
        let said = Yielding { reason: "a\r\nb".to_owned(), stopped_us: 1 };
        let heard: Yielding = decode_body(Kind::Yield, &encode_body(&said)).unwrap();
        assert_eq!(heard.reason, "a\u{fffd}\u{fffd}b");
    }
}
