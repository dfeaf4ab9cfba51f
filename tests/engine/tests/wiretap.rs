//! A host on the same links that reads everything: it understands nothing of it, and nothing that it repeats,
//! changes or makes up moves the pair.
#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use engine_tests::{Pair, VmOptions};
use ft_wire::{mirror, session};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt};

/// How long the wire is read.
const A_WHILE: Duration = Duration::from_secs(4);
const UDP: u8 = 17;
const TCP: u8 = 6;
/// How frames of a session and of a disk's stream begin where nothing protects them: magic and version. The
/// magic alone is in 170 MB of random bytes once in 25 runs.
const BEGINNINGS: [([u8; 4], u16); 2] = [(*b"PLXF", session::VERSION), (*b"PXMR", mirror::VERSION)];

/// Reads all packets of the network namespace that it is made in.
fn tap() -> OwnedFd {
    let all = SockProtocol::EthAll;
    let fd =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, all).unwrap();
    setsockopt(&fd, sockopt::RcvBuf, &(64 << 20)).unwrap();
    fd
}

/// An IPv4 packet's protocol, destination and payload.
fn parsed(frame: &[u8]) -> Option<(u8, SocketAddr, &[u8])> {
    let ip = frame.get(14..).filter(|_| frame[12..14] == [8, 0])?;
    let at = usize::from(ip[0] & 15) * 4;
    let segment = ip.get(at..)?;
    let address: [u8; 4] = ip[16..20].try_into().unwrap();
    let port = u16::from_be_bytes(segment.get(2..4)?.try_into().unwrap());
    let header = match ip[9] {
        UDP => 8,
        TCP => usize::from(segment.get(12)? >> 4) * 4,
        _ => return None,
    };
    Some((ip[9], SocketAddr::from((address, port)), segment.get(header..)?))
}

/// What crosses the links for a while.
fn read_all(fd: &OwnedFd) -> Vec<Vec<u8>> {
    let (mut frames, mut bytes, begun) = (Vec::new(), vec![0; 80 << 10], Instant::now());
    while begun.elapsed() < A_WHILE {
        match recv(fd.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Ok(len) => frames.push(bytes[..len].to_vec()),
            Err(_) => sleep(Duration::from_millis(1)),
        }
    }
    frames
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn whoever_reads_the_links_learns_nothing_and_moves_nothing() {
    let pair = Pair::new();
    let options = VmOptions::new().guest("bg_pages=100 rate=5000 disk_rate=200");
    let first = pair.node(0, &options);
    pair.client().echo();
    // All of the session is to be read, from the first handshake on.
    let wire = pair.hosts[0].run(tap);
    let second = pair.node(1, &options);
    pair.wait_status(&first, "protected");
    let before = pair.wait_status(&first, "protected")["term"].clone();
    let mut frames = read_all(&wire);
    frames.extend(read_all(&wire));
    let packets: Vec<_> = frames.iter().filter_map(|frame| parsed(frame)).collect();
    let of = |protocol| packets.iter().filter(move |(kind, to, _)| *kind == protocol && is_of_a_link(*to));
    let (bytes, beats) = (of(TCP).map(|(.., payload)| payload.len()).sum::<usize>(), of(UDP).count());
    println!("{} packets read: {bytes} bytes of streams, {beats} beats", packets.len());
    assert!(bytes > 100_000 && beats > 10, "the links were not read");
    for (_, to, payload) in of(TCP) {
        for (magic, version) in BEGINNINGS {
            let beginning = [&magic[..], &version.to_le_bytes()].concat();
            assert!(!contains(payload, &beginning), "a readable frame to {to}");
        }
    }
    let published = [0, 1].map(|link| SocketAddr::from(([10, 77, link, 2], 4700 + u16::from(link))));
    pair.hosts[0].run(|| {
        let out = UdpSocket::bind("0.0.0.0:0").unwrap();
        for (_, to, payload) in of(UDP) {
            let mut forged = payload.to_vec();
            // A term, and whether its host runs the VM: as high as can be believed.
            forged.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
            for datagram in [*payload, &forged[..]] {
                for target in [*to].iter().chain(&published) {
                    let _ = out.send_to(datagram, target);
                }
            }
        }
        // What both ends of a handshake have said, said again.
        for (_, _, payload) in of(TCP).filter(|(.., payload)| payload.first() == Some(&22)) {
            if let Ok(mut stream) = TcpStream::connect(published[0]) {
                let _ = std::io::Write::write_all(&mut stream, payload);
                sleep(Duration::from_millis(20));
            }
        }
    });
    let mut client = pair.client();
    for i in 0..200 {
        client.work(i % 20, i % 2);
    }
    let status = pair.wait_status(&first, "protected");
    assert_eq!(status["term"], before);
    assert_eq!(status["tls"]["on"], true);
    let ready = pair.wait_status(&second, "standby-ready");
    println!("ignored: {}, turned away: {}", ready["ignored_beats"], ready["turned_away"]);
    assert!(ready["ignored_beats"].as_u64() > Some(10) && ready["turned_away"].as_u64() > Some(0), "{ready}");
}

/// Whether it is a host's on one of the two links.
fn is_of_a_link(address: SocketAddr) -> bool {
    matches!(address.ip(), std::net::IpAddr::V4(ip) if ip.octets()[..2] == [10, 77])
}
