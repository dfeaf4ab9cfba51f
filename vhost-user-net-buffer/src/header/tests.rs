//! Headers of all kinds before frames of all kinds.

use super::*;

const ALL: Offloads = Offloads { checksum: true, tcp4: true, tcp6: true, ecn: true, udp: true };
const LEN: usize = 3000;

/// Flags, type, header length, segment size, start and offset of the checksum.
fn header(flags: u8, kind: u8, len: u16, segment: u16, start: u16, offset: u16) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    (header[0], header[1]) = (flags, kind);
    for (at, word) in (2..).step_by(2).zip([len, segment, start, offset]) {
        header[at..at + 2].copy_from_slice(&word.to_le_bytes());
    }
    header
}

/// The beginning of a frame with so many VLAN tags, of IP version `ip` with a header of `ip_len` bytes, that
/// carries `transport`; and where that is.
fn frame(tags: usize, ip: u8, ip_len: usize, transport: u8) -> (Vec<u8>, u16) {
    let mut frame = vec![2; 12];
    for _ in 0..tags {
        frame.extend([0x81, 0, 0, 7]);
    }
    frame.extend(if ip == 4 { IPV4 } else { IPV6 }.to_be_bytes());
    let network = frame.len();
    let at = network + ip_len;
    frame.resize(START_MAX, 0);
    if ip == 4 {
        frame[network] = 0x40 | (ip_len / 4) as u8;
        frame[network + 9] = transport;
    } else {
        frame[network] = 0x60;
        frame[network + 6] = if ip_len == IPV6_HEADER { transport } else { 0 };
    }
    if transport == TCP {
        frame[at + 12] = 8 << 4;
    }
    (frame, at as u16)
}

#[test]
fn what_is_not_the_drivers_to_say_is_left_out() {
    let plain = Ok([0; HEADER_LEN]);
    for allowed in [ALL, Offloads::default()] {
        assert_eq!(for_tap(&[0; HEADER_LEN], &[], LEN, allowed), plain);
        // Without the flag the checksum's place means nothing, nor does the length of headers anywhere, nor
        // do flags that only a device sets.
        assert_eq!(for_tap(&header(0xfe, 0, 0xffff, 9, 0xffff, 0xffff), &[], LEN, allowed), plain);
        let buffers = std::array::from_fn(|at| if at < 10 { 0 } else { 0xff });
        assert_eq!(for_tap(&buffers, &[], LEN, allowed), plain);
        assert!(is_plain(&buffers));
    }
    assert_eq!(for_tap(&header(0xff, 0, 77, 0, 34, 16), &[], LEN, ALL), Ok(header(1, 0, 0, 0, 34, 16)));
}

#[test]
fn a_checksum_must_be_negotiated_and_lie_in_the_frame() {
    let ask = |start, offset, len, allowed| for_tap(&header(1, 0, 0, 0, start, offset), &[], len, allowed);
    assert_eq!(ask(34, 16, LEN, Offloads::default()), Err(HeaderError::NotNegotiated("a checksum")));
    assert!(ask(34, 16, 52, ALL).is_ok() && ask(14, 0, 16, ALL).is_ok());
    for (start, offset, len) in [(34, 16, 51), (0xffff, 0xffff, 65536), (0xfff0, 0xf, 0xffff), (13, 0, 60), (0, 0, 60)]
    {
        assert_eq!(ask(start, offset, len, ALL), Err(HeaderError::Checksum), "{start} {offset} {len}");
    }
}

#[test]
fn frames_that_any_driver_sends_pass() {
    for tags in 0..=2 {
        for (kind, ip, ip_len, transport) in [
            (GSO_TCPV4, 4, 20, TCP),
            (GSO_TCPV4 | GSO_ECN, 4, 60, TCP),
            (GSO_TCPV6, 6, 40, TCP),
            (GSO_TCPV6, 6, 48, TCP),
            (GSO_UDP, 4, 20, UDP),
            (GSO_UDP, 6, 40, UDP),
        ] {
            let (start, at) = frame(tags, ip, ip_len, transport);
            let offset = if transport == TCP { 16 } else { 6 };
            let headers = at + if transport == TCP { 32 } else { 8 };
            // Whatever the driver thinks of their length.
            for hint in [0, headers, 0xffff] {
                let told = for_tap(&header(1, kind, hint, 1448, at, offset), &start, LEN, ALL);
                assert_eq!(told, Ok(header(1, kind, headers, 1448, at, offset)), "{kind:#x}, {tags} tags");
            }
        }
    }
}

#[test]
fn segments_must_be_negotiated() {
    let (tcp4, at4) = frame(0, 4, 20, TCP);
    let (tcp6, at6) = frame(0, 6, 40, TCP);
    let (udp, at_udp) = frame(0, 4, 20, UDP);
    for (kind, start, at, offset, lacking) in [
        (GSO_TCPV4, &tcp4, at4, 16, Offloads { tcp4: false, ..ALL }),
        (GSO_TCPV6, &tcp6, at6, 16, Offloads { tcp6: false, ..ALL }),
        (GSO_UDP, &udp, at_udp, 6, Offloads { udp: false, ..ALL }),
        (GSO_TCPV4 | GSO_ECN, &tcp4, at4, 16, Offloads { ecn: false, ..ALL }),
    ] {
        let header = header(1, kind, 0, 1000, at, offset);
        assert!(for_tap(&header, start, LEN, ALL).is_ok(), "{kind:#x}");
        let refused = for_tap(&header, start, LEN, lacking);
        assert!(matches!(refused, Err(HeaderError::NotNegotiated(_))), "{kind:#x}: {refused:?}");
    }
}

#[test]
fn segments_that_make_no_sense_are_refused() {
    let (start, at) = frame(0, 4, 20, TCP);
    let ask = |header, start: &[u8], len| for_tap(&header, start, len, ALL);
    for kind in [2, 5, 6, 0x7f, GSO_ECN, GSO_UDP | GSO_ECN, 0xff] {
        assert_eq!(ask(header(1, kind, 0, 1000, at, 16), &start, LEN), Err(HeaderError::Kind(kind)));
    }
    assert_eq!(ask(header(0, GSO_TCPV4, 0, 1000, at, 16), &start, LEN), Err(HeaderError::NoChecksum));
    for size in [0, 1, 7, 0xffff] {
        assert_eq!(ask(header(1, GSO_TCPV4, 0, size, at, 16), &start, LEN), Err(HeaderError::Size(size)));
    }
    let wrong = |start: &[u8], kind, at, offset, len| {
        let told = ask(header(1, kind, 0, 1000, at, offset), start, len);
        assert_eq!(told, Err(HeaderError::Protocol), "{kind} {at} {offset} {len}");
    };
    // Checksum and transport header are not where TCP has them, or the frame ends before they do.
    wrong(&start, GSO_TCPV4, at, 6, LEN);
    wrong(&start, GSO_TCPV4, at + 4, 16, LEN);
    wrong(&start, GSO_TCPV4, at - 4, 16, LEN);
    wrong(&start, GSO_TCPV4, at, 16, usize::from(at) + 31);
    wrong(&start[..usize::from(at) + 31], GSO_TCPV4, at, 16, LEN);
    // Another version, another transport, three tags, no IP at all.
    wrong(&start, GSO_TCPV6, at, 16, LEN);
    wrong(&start, GSO_UDP, at, 6, LEN);
    let (tagged, at) = frame(3, 4, 20, TCP);
    wrong(&tagged, GSO_TCPV4, at, 16, LEN);
    let (udp, at) = frame(0, 4, 20, UDP);
    wrong(&udp, GSO_TCPV4, at, 16, LEN);
    wrong(&[0xff; START_MAX], GSO_TCPV4, at, 16, LEN);
    wrong(&[], GSO_TCPV4, at, 16, LEN);
    // Headers of impossible lengths.
    let (mut short, at) = frame(0, 4, 16, TCP);
    wrong(&short, GSO_TCPV4, at, 16, LEN);
    short[14] = 0x45;
    wrong(&short, GSO_TCPV4, at, 16, LEN);
    let (mut version, at) = frame(0, 4, 20, TCP);
    version[14] = 0x65;
    wrong(&version, GSO_TCPV4, at, 16, LEN);
}

#[test]
fn any_header_on_any_frame_is_answered() {
    let mut state = 1_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 32
    };
    for _ in 0..200_000 {
        let (mut start, at) =
            frame(random() as usize % 3, [4, 6][random() as usize % 2], 40, [TCP, UDP][random() as usize % 2]);
        for _ in 0..random() % 4 {
            let at = random() as usize % start.len();
            start[at] = random() as u8;
        }
        start.truncate(random() as usize % (START_MAX + 1));
        let len = FRAME_MIN + random() as usize % 65536;
        let kind = [0, 1, 3, 4, 0x81, random() as u8][random() as usize % 6];
        let header = header(random() as u8, kind, random() as u16, random() as u16, at + random() as u16 % 3, 16);
        let Ok(told) = for_tap(&header, &start, len, ALL) else { continue };
        let fields = Fields::of(&told);
        assert!(fields.checksum_start + fields.checksum_offset + 2 <= len);
        assert!(usize::from(u16::from_le_bytes([told[2], told[3]])) <= len);
        assert_eq!(for_tap(&told, &start, len, ALL), Ok(told), "what is told is itself right");
    }
}

#[test]
fn the_guest_is_told_what_it_has_negotiated_and_nothing_else() {
    let gso = header(1, GSO_TCPV4, 54, 1448, 34, 16);
    assert_eq!(for_guest(&gso, ALL), Some(gso));
    assert_eq!(for_guest(&gso, Offloads { tcp4: false, ..ALL }), None);
    assert_eq!(for_guest(&header(1, 0, 0, 0, 34, 16), Offloads::default()), None, "its checksum is to be computed");
    assert_eq!(for_guest(&header(2, 0, 0, 0, 0, 0), Offloads::default()), Some([0; HEADER_LEN]));
    assert_eq!(for_guest(&header(0xfe, 0, 0, 0, 0, 0), ALL), Some(header(2, 0, 0, 0, 0, 0)));
    assert_eq!(for_guest(&header(1, 5, 0, 100, 34, 6), ALL), None, "a kind that has no feature here");
}

#[test]
fn directions_have_features_of_their_own() {
    let bits = |list: &[u32]| list.iter().fold(0, |features, bit| features | 1_u64 << bit);
    let output = bits(&[VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6]);
    let output = output | bits(&[VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_UFO]);
    assert_eq!((Offloads::of_output(output), Offloads::of_input(output)), (ALL, Offloads::default()));
    let input = bits(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6]);
    let input = input | bits(&[VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_UFO]);
    assert_eq!((Offloads::of_output(input), Offloads::of_input(input)), (Offloads::default(), ALL));
}
