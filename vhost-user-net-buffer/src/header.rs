//! The virtio-net header before a frame (virtio 1.2, 5.1.6.2): what it asks for, held against the frame and
//! against what the driver has negotiated. Pure.
//!
//! In: a header and the first bytes of its frame. Out: a header that says nothing else than was checked.
//! Never: a field that the receiver would have to believe.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP,
};

use crate::ring::{FRAME_MIN, HEADER_LEN};

/// Bytes of a frame that its header is held against: all of its own headers that a segment repeats must be
/// there.
pub const START_MAX: usize = 256;

const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const DATA_VALID: u8 = VIRTIO_NET_HDR_F_DATA_VALID as u8;
const GSO_NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;
const GSO_TCPV4: u8 = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const GSO_UDP: u8 = VIRTIO_NET_HDR_GSO_UDP as u8;
const GSO_TCPV6: u8 = VIRTIO_NET_HDR_GSO_TCPV6 as u8;
const GSO_ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;

/// The finest segments that are made: less than any stack asks for, and what fragments must be a multiple of.
const SEGMENT_MIN: u16 = 8;
/// To Linux this is no size.
const SEGMENT_NONE: u16 = 0xffff;

const ETHERTYPE: usize = 12;
const VLAN_TAG: usize = 4;
const VLAN_TAGS_MAX: usize = 2;
const VLAN: [u16; 2] = [0x8100, 0x88a8];
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const IPV6_HEADER: usize = 40;
const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

/// What is wrong with a header. Its frame is dropped.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HeaderError {
    /// The driver has not taken the feature.
    #[error("its header asks for {0}, which the driver has not negotiated")]
    NotNegotiated(&'static str),
    /// The checksum would not be in the frame.
    #[error("its checksum is outside of the frame")]
    Checksum,
    /// Not a kind of segmentation there is.
    #[error("its header has segmentation type {0:#x}")]
    Kind(u8),
    /// Segments without a checksum of their own.
    #[error("its header asks for segments without checksums")]
    NoChecksum,
    /// No segments of that size.
    #[error("its header asks for segments of {0} bytes")]
    Size(u16),
    /// The frame is not of the protocol that the header says, or its headers are not where the header says.
    #[error("it is no frame of the protocol that its header names")]
    Protocol,
}

/// Offloads that have been negotiated for one direction.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Offloads {
    checksum: bool,
    tcp4: bool,
    tcp6: bool,
    ecn: bool,
    udp: bool,
}

impl Offloads {
    /// What a driver with these features may ask the card to do with its frames.
    #[must_use]
    pub fn of_output(features: u64) -> Self {
        let has = |bit: u32| features & (1 << bit) != 0;
        Self {
            checksum: has(VIRTIO_NET_F_CSUM),
            tcp4: has(VIRTIO_NET_F_HOST_TSO4),
            tcp6: has(VIRTIO_NET_F_HOST_TSO6),
            ecn: has(VIRTIO_NET_F_HOST_ECN),
            udp: has(VIRTIO_NET_F_HOST_UFO),
        }
    }

    /// What a driver with these features can receive.
    #[must_use]
    pub fn of_input(features: u64) -> Self {
        let has = |bit: u32| features & (1 << bit) != 0;
        Self {
            checksum: has(VIRTIO_NET_F_GUEST_CSUM),
            tcp4: has(VIRTIO_NET_F_GUEST_TSO4),
            tcp6: has(VIRTIO_NET_F_GUEST_TSO6),
            ecn: has(VIRTIO_NET_F_GUEST_ECN),
            udp: has(VIRTIO_NET_F_GUEST_UFO),
        }
    }

    /// Whether segmentation `kind` is among them.
    fn allow(self, kind: u8) -> Result<(), HeaderError> {
        let (allowed, what) = match kind & !GSO_ECN {
            GSO_TCPV4 => (self.tcp4, "segmentation of TCP over IPv4"),
            GSO_TCPV6 => (self.tcp6, "segmentation of TCP over IPv6"),
            GSO_UDP if kind & GSO_ECN == 0 => (self.udp, "fragmentation of UDP"),
            _ => return Err(HeaderError::Kind(kind)),
        };
        if !allowed {
            return Err(HeaderError::NotNegotiated(what));
        }
        if kind & GSO_ECN != 0 && !self.ecn { Err(HeaderError::NotNegotiated("segments with ECN")) } else { Ok(()) }
    }
}

/// The header's fields.
struct Fields {
    flags: u8,
    kind: u8,
    segment: u16,
    checksum_start: usize,
    checksum_offset: usize,
}

impl Fields {
    fn of(header: &[u8; HEADER_LEN]) -> Self {
        let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        Self {
            flags: header[0],
            kind: header[1],
            segment: word(4),
            checksum_start: word(6).into(),
            checksum_offset: word(8).into(),
        }
    }
}

/// What the tap is told of a frame of the guest: `header` as far as it says something to be believed of a
/// frame of `len` bytes that begins with `start`. What it says beyond that is left out: flags that are not
/// the driver's to set, the length of headers, which is a hint, and the number of buffers, which means
/// nothing here.
///
/// # Errors
/// See [`HeaderError`].
pub fn for_tap(
    header: &[u8; HEADER_LEN],
    start: &[u8],
    len: usize,
    allowed: Offloads,
) -> Result<[u8; HEADER_LEN], HeaderError> {
    let fields = Fields::of(header);
    let mut told = [0; HEADER_LEN];
    if fields.flags & NEEDS_CSUM != 0 {
        if !allowed.checksum {
            return Err(HeaderError::NotNegotiated("a checksum"));
        }
        if fields.checksum_start < FRAME_MIN || fields.checksum_start + fields.checksum_offset + 2 > len {
            return Err(HeaderError::Checksum);
        }
        told[0] = NEEDS_CSUM;
        told[6..10].copy_from_slice(&header[6..10]);
    }
    if fields.kind != GSO_NONE {
        allowed.allow(fields.kind)?;
        if fields.flags & NEEDS_CSUM == 0 {
            return Err(HeaderError::NoChecksum);
        }
        if fields.segment < SEGMENT_MIN || fields.segment == SEGMENT_NONE {
            return Err(HeaderError::Size(fields.segment));
        }
        let start = &start[..start.len().min(len)];
        let headers = repeated_headers(&fields, start).ok_or(HeaderError::Protocol)?;
        told[1] = fields.kind;
        told[2..4].copy_from_slice(&(headers as u16).to_le_bytes());
        told[4..6].copy_from_slice(&header[4..6]);
    }
    Ok(told)
}

/// Whether all that a header says can be told to the tap without a look at the frame.
#[must_use]
pub fn is_plain(header: &[u8; HEADER_LEN]) -> bool {
    header[0] & NEEDS_CSUM == 0 && header[1] == GSO_NONE
}

/// What the guest is told of a frame from the tap; `None`: it cannot take the frame. The tap is told of a
/// driver's features, but frames that it held at that moment are as the driver before could take them.
#[must_use]
pub fn for_guest(header: &[u8; HEADER_LEN], allowed: Offloads) -> Option<[u8; HEADER_LEN]> {
    let fields = Fields::of(header);
    if fields.flags & NEEDS_CSUM != 0 && !allowed.checksum {
        return None;
    }
    if fields.kind != GSO_NONE {
        allowed.allow(fields.kind).ok()?;
    }
    let mut told = *header;
    told[0] &= NEEDS_CSUM | if allowed.checksum { DATA_VALID } else { 0 };
    Some(told)
}

/// How long the headers are that each segment of the frame repeats, if they are what `fields` says.
fn repeated_headers(fields: &Fields, start: &[u8]) -> Option<usize> {
    let tcp = fields.kind & !GSO_ECN != GSO_UDP;
    let (network, protocol) = network_header(start)?;
    let at = fields.checksum_start;
    let transport = if tcp { TCP } else { UDP };
    let of_version = match fields.kind & !GSO_ECN {
        GSO_TCPV4 => protocol == IPV4,
        GSO_TCPV6 => protocol == IPV6,
        _ => true,
    };
    let behind = match protocol {
        IPV4 => follows_ipv4(start, network, at, transport),
        IPV6 => follows_ipv6(start, network, at, transport),
        _ => false,
    };
    if !of_version || !behind {
        return None;
    }
    let (checksum, headers) = if tcp {
        let words = usize::from(start.get(at + 12)? >> 4);
        (TCP_CHECKSUM, at + (4 * words).max(TCP_HEADER))
    } else {
        (UDP_CHECKSUM, at + UDP_HEADER)
    };
    (fields.checksum_offset == checksum && headers <= start.len()).then_some(headers)
}

/// Where the network header is, and of which protocol.
fn network_header(start: &[u8]) -> Option<(usize, u16)> {
    let mut at = ETHERTYPE;
    for _ in 0..=VLAN_TAGS_MAX {
        let protocol = u16::from_be_bytes([*start.get(at)?, *start.get(at + 1)?]);
        if !VLAN.contains(&protocol) {
            return Some((at + 2, protocol));
        }
        at += VLAN_TAG;
    }
    None
}

fn follows_ipv4(start: &[u8], network: usize, at: usize, transport: u8) -> bool {
    let Some(&[first, .., protocol]) = start.get(network..network + 10) else { return false };
    let len = usize::from(first & 0xf) * 4;
    first >> 4 == 4 && len >= 20 && network + len == at && protocol == transport
}

/// There may be extension headers between.
fn follows_ipv6(start: &[u8], network: usize, at: usize, transport: u8) -> bool {
    let Some(&[first, _, _, _, _, _, next]) = start.get(network..network + 7) else { return false };
    let behind = network + IPV6_HEADER;
    first >> 4 == 6 && if next == transport { at == behind } else { at >= behind + UDP_HEADER }
}

#[cfg(test)]
mod tests;
