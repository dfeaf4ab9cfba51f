//! The network between the hosts: datagrams that get lost, and streams that are in order but stall, break and
//! truncate.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ft_proto::{Epoch, LinkId, Term, Time};

use crate::guest::{BLOCKS, Write};
use crate::record::Record;

/// What a stream carries: bytes of the engines, and what disks say to each other.
#[derive(Clone, Debug)]
pub(crate) enum Payload {
    /// Of the engines: whole frames.
    Bytes(Vec<u8>),
    /// Mirror: the standby's record, when it is given the stream.
    DiskWelcome { record: Record },
    /// Mirror: the plan.
    Begin {
        term: Term,
        /// What the two images have in common.
        common: Option<u64>,
        /// Where the primary's may differ from it.
        marks: [bool; BLOCKS],
    },
    /// Mirror, from the standby: everything up to this epoch is on stable storage.
    Durable {
        epoch: Epoch,
        /// What the standby calls it.
        base: u64,
    },
    /// Mirror: the primary calls it so, too.
    Renamed,
    /// Mirror: a block of the background copy.
    Block { block: usize, value: u64 },
    /// Mirror: a write of the guest.
    Mirrored { epoch: Epoch, write: Write },
    /// Mirror: the copy is complete in this epoch.
    Synced {
        epoch: Epoch,
        base: u64,
        /// What the image really was then; for the judge only.
        truth: [u64; BLOCKS],
    },
    /// Mirror: the epoch is complete.
    DiskEnd { epoch: Epoch },
}

/// A stretch of a stream.
#[derive(Clone, Debug)]
pub(crate) enum Segment {
    Data(Payload),
    /// Its checksum is wrong.
    Corrupt,
    /// The other end is closed.
    Fin,
}

/// One end of a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) host: usize,
    /// Which process on that host.
    pub(crate) incarnation: u64,
    pub(crate) open: bool,
}

/// One direction of a stream.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    pub(crate) segments: VecDeque<(Time, Segment)>,
    pub(crate) stalled_until: Time,
    pub(crate) scheduled: bool,
}

/// A connection. Lane *i* carries what end *i* sends.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) ends: [End; 2],
    pub(crate) lanes: [Lane; 2],
}

pub(crate) type StreamId = u64;

/// Where a host is reached on a link.
pub(crate) fn address_of(host: usize, link: LinkId) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, link as u8, host as u8 + 1)), 7000)
}

/// The host that is reached there.
pub(crate) fn host_at(address: SocketAddr) -> usize {
    match address.ip() {
        IpAddr::V4(ip) => usize::from(ip.octets()[3]) - 1,
        IpAddr::V6(_) => 0,
    }
}

/// All links and streams.
#[derive(Debug)]
pub(crate) struct Network {
    hosts: usize,
    blocked: Vec<Time>,
    pub(crate) streams: BTreeMap<StreamId, Stream>,
    next_stream: StreamId,
}

impl Network {
    pub(crate) fn new(hosts: usize) -> Self {
        let blocked = vec![Time(0); hosts * hosts * LinkId::ALL.len()];
        Self { hosts, blocked, streams: BTreeMap::new(), next_stream: 1 }
    }

    fn slot(&self, from: usize, to: usize, link: LinkId) -> usize {
        (from * self.hosts + to) * LinkId::ALL.len() + link as usize
    }

    /// Nothing passes this way until then.
    pub(crate) fn block(&mut self, from: usize, to: usize, link: LinkId, until: Time) {
        let slot = self.slot(from, to, link);
        self.blocked[slot] = self.blocked[slot].max(until);
    }

    pub(crate) fn is_blocked(&self, from: usize, to: usize, link: LinkId, now: Time) -> bool {
        self.blocked[self.slot(from, to, link)] > now
    }

    /// Everything passes from now on.
    pub(crate) fn heal(&mut self) {
        self.blocked.fill(Time(0));
        for stream in self.streams.values_mut() {
            stream.lanes.iter_mut().for_each(|lane| lane.stalled_until = Time(0));
        }
    }

    /// A connection from `caller` that the other side does not know of yet.
    pub(crate) fn connect(&mut self, caller: (usize, u64), callee: (usize, u64)) -> StreamId {
        let end = |(host, incarnation)| End { host, incarnation, open: true };
        let stream = Stream { ends: [end(caller), end(callee)], lanes: Default::default() };
        self.next_stream += 1;
        self.streams.insert(self.next_stream, stream);
        self.next_stream
    }

    /// Which end of the stream a host has.
    pub(crate) fn side(&self, stream: StreamId, host: usize) -> Option<usize> {
        self.streams.get(&stream)?.ends.iter().position(|end| end.host == host)
    }
}
