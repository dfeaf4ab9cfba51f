//! The control link between a VMM and one of its device processes (`--ft-ctl`).
//!
//! One message is one datagram on a unix `SOCK_SEQPACKET` socket, encoded with postcard. The VMM sends
//! [`Command`]s, the device answers and volunteers [`Report`]s. Some commands carry one file descriptor
//! (`SCM_RIGHTS`): see [`Command::Mirror`] and [`Command::Receive`].
//!
//! `Release` can only be built from a [`Committed`] token, so output commit is a type error to break here
//! too.

use std::fmt;

use ft_proto::{Alone, Committed, Epoch, Term, VmId};
use serde::{Deserialize, Serialize};

/// Version of this message set; a device of another version is refused at `Hello`.
pub const CTL_VERSION: u16 = 5;

/// No encoded message is longer.
pub const CTL_MAX: usize = 64 * 1024;

/// What the VMM asks of a device process.
///
/// Devices only match on it; they never need to build a `Release`, and cannot.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Command {
    /// First message. Answered by [`Report::Ready`].
    Hello {
        /// The sender's [`CTL_VERSION`].
        version: u16,
    },
    /// `true`: this host does not run the VM. Network input is read and dropped, the disk image belongs to
    /// the mirror stream. `false` is the state at start: an ordinary vhost-user backend. Not answered.
    Standby(bool),
    /// From now on output (network frames, and disk writes for the mirror) belongs to `epoch`. Network output
    /// is held until its epoch is released if [`Hold`] says so; otherwise everything that is held is sent,
    /// and nothing is held any more. Not answered.
    Protect {
        /// Epoch that output belongs to from now on.
        epoch: Epoch,
        /// Whether output is held back.
        hold: Hold,
    },
    /// End `epoch`: stop touching guest memory, mark the boundary in the output. Answered by
    /// [`Report::Sealed`].
    Seal {
        /// The epoch that ends.
        epoch: Epoch,
        /// The processor where the epoch is worked on, if it is one: best for whoever is woken for it.
        cpu: Option<u16>,
    },
    /// Touch guest memory again; output belongs to the epoch after the sealed one. Not answered.
    Resume,
    /// Everything up to and including this epoch is committed: send held frames, apply held disk writes,
    /// forget undo records. Not answered.
    Release(Release),
    /// Drop everything that belongs to an epoch after this one. Answered by [`Report::Discarded`] once
    /// earlier, released epochs are applied. After epoch 0: the whole session is dropped, and no report about
    /// it follows the answer.
    Discard {
        /// The last epoch that counts.
        after: Epoch,
    },
    /// This host runs the VM from checkpoint `epoch` on: stop being a standby, submit the requests in flight
    /// again as soon as their queues are set up through vhost-user, and go on as an unprotected device.
    /// Announce `macs` (network). Answered by [`Report::Started`].
    Start {
        /// Requests that the checkpoint holds as taken from the avail ring but not yet used.
        in_flight: Vec<InFlight>,
        /// Addresses to announce on the network now; network only.
        macs: Vec<[u8; 6]>,
    },
    /// Disk, primary: mirror writes to the connected stream in the attached descriptor, from `epoch` on, and
    /// make the peer's image equal in the background; how, the two disks find out. [`Report::Resync`] tells
    /// the progress, [`Report::InSync`] the end.
    Mirror {
        /// Epoch that writes belong to from now on.
        epoch: Epoch,
        /// The most bytes of writes that may be uncommitted before the disk stops serving and asks for a cut.
        max_uncommitted: u64,
        /// Limit of what is read for that, in bytes per second; 0 is none.
        rate: u64,
    },
    /// Disk, primary: stop mirroring, close the stream. Not answered.
    Unmirror,
    /// Disk, standby: serve the mirror stream in the attached descriptor.
    Receive {
        /// The most bytes of uncommitted writes to hold; a peer that sends more has misbehaved.
        max_uncommitted: u64,
    },
    /// Disk: `vm` runs on this host, in `term`, from this image, and no other copy can be newer: note that
    /// for good. Sent when the host is given the VM, and with the term of each session before
    /// [`Command::Mirror`]. A disk that takes over notes the term after its copy's by itself. Answered by
    /// [`Report::Owned`], at once if it is on record already; not when it cannot be noted.
    Own {
        /// The VM. An image of another one is an error.
        vm: VmId,
        /// The term, not before the one on record.
        term: Term,
    },
    /// Disk: the VM is shut down, in this term, and this is its newest image: note that for good. Answered by
    /// [`Report::Ended`]; not when it cannot be noted.
    End(Term),
    /// Disk: the stream that [`Command::Mirror`] or [`Command::Receive`] brings next is protected by TLS, and
    /// goes on with these keys. Not answered.
    StreamKeys(StreamKeys),
}

/// The keys of a TLS stream whose handshake another process has made.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct StreamKeys {
    /// Of what is read.
    pub read: TrafficSecret,
    /// Of what is written.
    pub write: TrafficSecret,
}

/// The traffic secret of one direction of a stream.
#[derive(Deserialize, Eq, PartialEq, Serialize)]
pub struct TrafficSecret {
    /// The secret (RFC 8446, 7.1); 48 bytes.
    pub secret: Vec<u8>,
    /// Records that were protected with its key.
    pub records: u64,
}

impl fmt::Debug for TrafficSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrafficSecret({} records)", self.records)
    }
}

/// Whether a device holds output. Holding is for anybody to ask; only proof that no other node can run the VM
/// ends it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Hold(bool);

impl Hold {
    /// Output is held.
    #[must_use]
    pub fn on() -> Self {
        Self(true)
    }

    /// Output is not held.
    #[must_use]
    pub fn off(_: &Alone) -> Self {
        Self(false)
    }

    /// Whether output is held.
    #[must_use]
    pub fn is_on(self) -> bool {
        self.0
    }
}

/// The committed epoch in a [`Command::Release`].
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Release {
    epoch: Epoch,
}

impl Release {
    /// Everything up to and including this epoch may leave.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}

impl From<&Committed> for Release {
    fn from(committed: &Committed) -> Self {
        Self { epoch: committed.epoch() }
    }
}

/// Where a virtqueue stands, as the device process sees it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct QueueState {
    /// Index of the queue in the device.
    pub index: u16,
    /// Next avail ring entry to take.
    pub next_avail: u16,
    /// Next used ring entry to fill.
    pub next_used: u16,
}

/// A request that was taken from the avail ring and has not been put into the used ring.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct InFlight {
    /// Index of the queue in the device.
    pub queue: u16,
    /// Head descriptor of the request.
    pub head: u16,
}

/// What kind of device answers, and what a standby's copy must agree with.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum DeviceInfo {
    /// A disk.
    Disk {
        /// Size in bytes.
        size: u64,
        /// Whether the guest may not write.
        read_only: bool,
        /// What `VIRTIO_BLK_T_GET_ID` answers.
        serial: String,
        /// Smallest unit of I/O in bytes.
        block_size: u32,
    },
    /// A network card.
    Net {
        /// Name of the tap device.
        tap: String,
        /// Largest packet on it in bytes.
        mtu: u16,
    },
}

/// How a standby's disk image is made equal to the primary's.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum ResyncKind {
    /// All data is sent: the standby's image is empty.
    Full,
    /// Regions that either side has on record are compared; what differs is sent.
    Incremental,
    /// Everything is compared, for want of a record; what differs is sent.
    Compare,
}

impl ResyncKind {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Incremental => "incremental",
            Self::Compare => "compare",
        }
    }
}

/// What a device process tells its VMM.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Report {
    /// Answer to `Hello`.
    Ready {
        /// The device's [`CTL_VERSION`].
        version: u16,
        /// What it is.
        info: DeviceInfo,
    },
    /// Answer to `Seal`: guest memory is not touched until `Resume`.
    Sealed {
        /// The epoch that ended.
        epoch: Epoch,
        /// Every queue that the guest has set up.
        queues: Vec<QueueState>,
        /// Requests in flight; they are submitted again after a takeover.
        in_flight: Vec<InFlight>,
        /// Frames (network) that are held, over all epochs.
        held_frames: u64,
        /// Bytes that are held or uncommitted, over all epochs.
        held_bytes: u64,
        /// Disk: nothing of the epoch went into the mirror stream, so its end is not told there. Network:
        /// nothing is held, of this epoch or one before.
        idle: bool,
    },
    /// The first output of `epoch` is held: the reason to cut the epoch now. Sent once an epoch.
    Held {
        /// The epoch the output belongs to.
        epoch: Epoch,
    },
    /// A bound is reached and the device has stopped serving its output queue until the next release: cut
    /// now.
    Full {
        /// The epoch that was running.
        epoch: Epoch,
    },
    /// Answer to `Discard`.
    Discarded,
    /// Answer to `Start`.
    Started,
    /// Answer to `Own`: it is on stable storage.
    Owned,
    /// Answer to `End`: it is on stable storage.
    Ended,
    /// Disk, primary: the resynchronisation begins, goes on (at most ten times a second), and ends.
    Resync {
        /// How it is done.
        kind: ResyncKind,
        /// Bytes copied or found equal.
        done: u64,
        /// Bytes to go through.
        total: u64,
        /// Bytes that went to the peer for it.
        sent: u64,
    },
    /// Disk, primary: the resynchronisation is in the stream; what follows keeps the standby equal.
    InSync,
    /// Disk, standby: every write of `epoch` has arrived and is held.
    Complete {
        /// The completed epoch.
        epoch: Epoch,
    },
    /// Disk, either side: the mirror stream ended or broke. The disk itself goes on.
    MirrorLost {
        /// Why.
        #[serde(deserialize_with = "crate::text::from_outside")]
        reason: String,
    },
    /// The device cannot go on (local disk full or failing, tap gone).
    Failed {
        /// Why.
        #[serde(deserialize_with = "crate::text::from_outside")]
        reason: String,
    },
}

/// A message that could not be encoded or decoded.
#[derive(Debug, thiserror::Error)]
#[error("malformed ft-ctl message")]
pub struct CtlError(#[from] postcard::Error);

/// Encodes `message` into `buf`; the used part is returned.
///
/// # Errors
/// When `buf` is too small; [`CTL_MAX`] bytes always suffice.
pub fn encode<'a, T: Serialize>(message: &T, buf: &'a mut [u8]) -> Result<&'a [u8], CtlError> {
    Ok(postcard::to_slice(message, buf)?)
}

/// Decodes one datagram. Never panics.
///
/// # Errors
/// When the bytes are not one whole message.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CtlError> {
    Ok(postcard::from_bytes(bytes)?)
}
