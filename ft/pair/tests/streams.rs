//! Streams between hosts over TLS: who is let in, who is believed, and what each side is told otherwise.
#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use ft_pair::authority::Authority;
use ft_pair::folder::Folder;
use ft_proto::{NodeId, Term};
use ft_transport::connection::Connection;
use ft_transport::dial::{self, Answer};
use ft_transport::frames::{Stamp, TransportError, read_body, read_header, write_frame};
use ft_transport::listener::{Arrival, Listener};
use ft_transport::stream::Stream;
use ft_transport::tls::credentials::Credentials;
use ft_wire::nonce::Nonce;
use ft_wire::packing::Unpacker;
use ft_wire::session::{Hello, Kind, Purpose, Welcome};

const LONG: Duration = Duration::from_secs(60);

/// Credentials of two hosts of a new pair.
fn pair(dir: &Path, name: &str) -> [Credentials; 2] {
    let authority = Authority::create(name).unwrap();
    ["a", "b"].map(|host| {
        let folder = Folder::of(name, Some(&dir.join(name).join(host)));
        folder.create(&authority, &authority.issue(&format!("host-{host}")).unwrap()).unwrap();
        folder.credentials().unwrap()
    })
}

/// A standby that welcomes everybody who is let in, and where it is; its streams.
fn standby(tls: Option<Credentials>) -> (Listener, SocketAddr, Receiver<Stream>) {
    let (streams, accepted) = channel();
    let address = free_address();
    let listener = Listener::open(address, tls, move |arrival| {
        if let Arrival::Incoming(incoming) = arrival {
            let welcome = Welcome { node: NodeId::numbered(2, 2), session: 7, nonce: Nonce::new(8), kept: false };
            streams.send(incoming.welcome(&welcome).unwrap()).unwrap();
        }
    });
    (listener.unwrap(), address, accepted)
}

/// One that nobody else has: of this process alone, below those that the kernel hands out.
fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let [_, net, high, low] = std::process::id().to_be_bytes();
    (Ipv4Addr::new(127, net, high, low), NEXT.fetch_add(1, Ordering::Relaxed)).into()
}

/// The stream of a session with the standby at `address`, or why there is none.
fn call(address: SocketAddr, tls: Option<&Credentials>) -> Result<Stream, String> {
    let mut stream = dial::connect(address, LONG, tls).map_err(|error| error.to_string())?;
    let hello = Hello { vm: None, node: NodeId::numbered(1, 1), purpose: Purpose::Ask };
    match dial::greet(&mut stream, &hello, Term(1), LONG) {
        Ok(Answer::Welcome(_)) => Ok(stream),
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn hosts_of_a_pair_have_a_stream_that_carries_frames_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = pair(dir.path(), "east");
    let (_listener, address, accepted) = standby(Some(b));
    let mut near = call(address, Some(&a)).unwrap();
    let mut far = accepted.recv_timeout(LONG).unwrap();
    assert_eq!((near.peer_name(), far.peer_name()), (Some("host-b".to_owned()), Some("host-a".to_owned())));
    far.read_ahead(64 << 10);
    let body: Vec<u8> = (0..3 << 20).map(|at: u32| at.to_le_bytes()[0] ^ at.to_le_bytes()[2]).collect();
    let stamp = Stamp { kind: Kind::Pages, term: Term(1), epoch: ft_proto::Epoch(2) };
    std::thread::scope(|scope| {
        let expected = &body;
        scope.spawn(move || {
            let (mut unpacker, mut read) = (Unpacker::new().unwrap(), Vec::new());
            for _ in 0..3 {
                let header = read_header(&mut far).unwrap();
                read_body(&mut far, &header, &mut read, &mut unpacker).unwrap();
                assert!(read == *expected);
                write_frame(&mut far, Stamp { kind: Kind::Ack, ..stamp }, &[]).unwrap();
            }
            assert!(matches!(read_header(&mut far), Err(TransportError::Closed)));
        });
        for _ in 0..3 {
            write_frame(&mut near, stamp, &[&body[..1000], &body[1000..]]).unwrap();
            assert_eq!(read_header(&mut near).unwrap().kind, Kind::Ack);
        }
        near.finish_and_drain(LONG);
    });
}

#[test]
fn a_stranger_is_not_let_in_and_both_sides_know_why() {
    let dir = tempfile::tempdir().unwrap();
    let ([_, b], [stranger, _]) = (pair(dir.path(), "east"), pair(dir.path(), "west"));
    let (_listener, address, accepted) = standby(Some(b));
    let error = call(address, Some(&stranger)).unwrap_err();
    // The caller is the first to see a certificate that it does not believe.
    assert!(error.contains("TLS handshake failed") || error.contains("not of its pair"), "{error}");
    let error = call(address, None).unwrap_err();
    assert!(error.contains("does not speak the Pollux protocol") || error.contains("closed"), "{error}");
    assert!(accepted.try_recv().is_err(), "nobody was let in");
}

#[test]
fn a_host_whose_peer_does_not_prove_itself_does_not_talk_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let [a, _] = pair(dir.path(), "east");
    let (_listener, address, accepted) = standby(None);
    let error = call(address, Some(&a)).unwrap_err();
    assert!(error.contains("perhaps it is of another pair, or has tls=off"), "{error}");
    assert!(accepted.try_recv().is_err());
}

#[test]
fn a_renewed_certificate_counts_for_the_next_stream_and_a_broken_file_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = pair(dir.path(), "east");
    let (_listener, address, accepted) = standby(Some(b.clone()));
    call(address, Some(&a)).unwrap();
    let folder = Folder::of("east", Some(b.folder()));
    folder.put_host(&folder.authority().unwrap().issue("host-b2").unwrap()).unwrap();
    assert_eq!(call(address, Some(&a)).unwrap().peer_name().as_deref(), Some("host-b2"));
    std::fs::write(b.folder().join("server-cert.pem"), "no certificate").unwrap();
    assert_eq!(call(address, Some(&a)).unwrap().peer_name().as_deref(), Some("host-b2"));
    // A caller has its answer before the standby has passed the stream on.
    for _ in 0..3 {
        accepted.recv_timeout(LONG).unwrap();
    }
    assert!(accepted.try_recv().is_err());
}

#[test]
fn a_long_chain_of_certificates_is_read_whole() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = pair(dir.path(), "east");
    for (folder, name) in [(a.folder(), "client-cert.pem"), (b.folder(), "server-cert.pem")] {
        let path = folder.join(name);
        let mut chain = std::fs::read_to_string(&path).unwrap();
        let more = Authority::create("more").unwrap();
        // Intermediates that nobody needs, as some authorities hand them out.
        chain.extend((0..12).map(|_| more.issue("somebody").unwrap().certificate));
        std::fs::write(&path, &chain).unwrap();
        assert!(chain.len() > 8000);
    }
    let (_listener, address, _accepted) = standby(Some(b));
    call(address, Some(&a)).unwrap();
}

#[test]
fn a_caller_that_shows_no_certificate_is_told_so_and_costs_the_others_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = pair(dir.path(), "east");
    let (_listener, address, _accepted) = standby(Some(b));
    let silent: Vec<_> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut noise = TcpStream::connect(address).unwrap();
    std::io::Write::write_all(&mut noise, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    // An answer, or a reset where it came too late to be read.
    noise.set_read_timeout(Some(LONG)).unwrap();
    let _ = noise.read(&mut [0; 100]);
    call(address, Some(&a)).unwrap();
    drop(silent);
}
