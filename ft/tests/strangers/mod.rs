//! Callers at the door whom nobody has asked: they speak the protocol, and know whatever does not cross the
//! network in secret.

use std::io::{Read, Write};
use std::net::TcpStream;

use ft::guest::{Guest, Shape};
use ft_proto::{Epoch, HostId, NodeId, Term, VmId};
use ft_wire::hash::hash_of_parts;
use ft_wire::nonce::Nonce;
use ft_wire::session::{HEADER_LEN, Header, Hello, Kind, Part, Purpose, Refusal, Standing, decode_body, encode_body};

use super::*;

/// What a greeting is answered with.
fn call(to: SocketAddr, term: Term, hello: &Hello) -> (Kind, Vec<u8>) {
    let body = encode_body(hello);
    let len = u32::try_from(body.len()).unwrap();
    let body_hash = hash_of_parts(&[&body]);
    let header = Header { kind: Kind::Hello, term, epoch: Epoch(0), len, raw: len, body_hash };
    let mut stream = TcpStream::connect(to).unwrap();
    stream.write_all(&[&header.encode()[..], &body].concat()).unwrap();
    let mut head = [0; HEADER_LEN];
    stream.read_exact(&mut head).unwrap();
    let header = Header::decode(&head).unwrap();
    let mut body = vec![0; header.len as usize];
    stream.read_exact(&mut body).unwrap();
    (header.kind, body)
}

/// Why it is refused.
fn refused(to: SocketAddr, term: Term, hello: &Hello) -> String {
    let (kind, body) = call(to, term, hello);
    assert_eq!(kind, Kind::Refuse);
    decode_body::<Refusal>(kind, &body).unwrap().reasons.join("\n")
}

fn standing(to: SocketAddr, vm: Option<VmId>) -> Standing {
    let (kind, body) = call(to, Term(0), &Hello { vm, node: stranger(), purpose: Purpose::Ask });
    assert_eq!(kind, Kind::Standing);
    decode_body(kind, &body).unwrap()
}

fn stranger() -> NodeId {
    NodeId::numbered(666, 1)
}

fn session(shape: &Shape, on_partition: Option<OnPartition>, previous: Nonce) -> Purpose {
    Purpose::Session {
        check: false,
        shape: encode_body(shape),
        beats: ["127.0.0.1:9".to_owned(), "127.0.0.1:9".to_owned()],
        detect_ms: 1000,
        disk_buffer: 64 << 20,
        took_over: None,
        on_partition,
        base: None,
        previous,
    }
}

fn vm_of(ft: &Ft) -> VmId {
    ft.status().vm.unwrap().parse().unwrap()
}

/// The pair is protected, and goes on to be.
fn unmoved(pair: &Pair, term: u64) {
    let before = committed(&pair.a().status());
    wait(|| committed(&pair.a().status()) > before + 3, || format!("{:?}", pair.a().status()));
    let (a, b) = (pair.a().status(), pair.b.status());
    assert_eq!((a.state, a.term, b.state), (State::Protected, term, State::StandbyReady));
    assert_eq!((pair.guest_a.fenced(), pair.guest_b.started()), (None, None));
}

#[test]
fn a_caller_does_not_choose_the_policy() {
    let shape = ToyGuest::new().shape();
    let hello = |policy| Hello { vm: Some(VmId(1)), node: stranger(), purpose: session(&shape, policy, Nonce::NONE) };
    let witnessed = Pair::new();
    let reason = refused(witnessed.options.peer, Term(5), &hello(Some(OnPartition::Both)));
    assert!(reason.contains("relies on a witness"), "{reason}");
    let by_policy = Pair::by_policy(OnPartition::Primary);
    for other in [Some(OnPartition::Both), Some(OnPartition::Standby), None] {
        let reason = refused(by_policy.options.peer, Term(5), &hello(other));
        assert!(reason.contains("on_partition=primary") || reason.contains("has none"), "{other:?}: {reason}");
    }
    assert_eq!(witnessed.b.status().state, State::StandbyEmpty);
}

#[test]
fn a_session_that_lives_is_not_replaced_by_whoever_calls() {
    let shape = ToyGuest::new().shape();
    let protected = |pair: Pair| {
        pair.a().protect(Some(pair.options.clone())).unwrap();
        wait_state(pair.a(), State::Protected);
        pair
    };
    let pairs = [
        (protected(Pair::new()), None, "does not show the primary's record"),
        (protected(Pair::by_policy(OnPartition::Both)), Some(OnPartition::Both), "is the standby of host"),
    ];
    for (pair, policy, expected) in pairs {
        let (status, vm) = (pair.a().status(), Some(vm_of(pair.a())));
        // Under a name of its own, and under that of the primary, which a stranger may have read somewhere.
        for node in [stranger(), status.node.parse().unwrap()] {
            for term in [status.term, status.term + 1, Term::MAX.0] {
                let hello = Hello { vm, node, purpose: session(&shape, policy, Nonce::new(7)) };
                let reason = refused(pair.options.peer, Term(term), &hello);
                assert!(reason.contains(expected), "{node} in {term}: {reason}");
            }
        }
        let disk = Purpose::Disk { index: 0, session: 1, nonce: Nonce::new(1) };
        let reason = refused(pair.options.peer, Term(status.term), &Hello { vm, node: stranger(), purpose: disk });
        assert!(reason.contains("is over"), "{reason}");
        unmoved(&pair, status.term);
    }
}

#[test]
fn whoever_is_of_another_vm_is_told_nothing() {
    let pair = Pair::protected();
    let shape = ToyGuest::new().shape();
    for purpose in [Purpose::Ask, session(&shape, None, Nonce::NONE)] {
        let reason = refused(pair.options.peer, Term(9), &Hello { vm: Some(VmId(1)), node: stranger(), purpose });
        assert_eq!(reason, "this host is not configured for that VM");
    }
}

#[test]
fn a_host_says_what_it_does_about_the_vm_to_whoever_is_of_it() {
    let pair = Pair::protected();
    let vm = vm_of(pair.a());
    let primary: NodeId = pair.a().status().node.parse().unwrap();
    let told = standing(pair.options.peer, Some(vm));
    assert_eq!((told.vm, told.part), (Some(vm), Part::WillTakeOver(primary)));
    let Pair { a, b, guest_b, options, folder: _folder, .. } = pair;
    drop(a);
    wait(|| guest_b.started().is_some(), || format!("{:?}", b.status()));
    wait(|| standing(options.peer, Some(vm)).part == Part::Runs, || format!("{:?}", b.status()));
}

#[test]
fn two_hosts_of_one_name_are_no_pair() {
    let pair = Pair::new();
    let host: HostId = pair.b.status().node.parse::<NodeId>().unwrap().host;
    let node_term = NodeTerm { node: ft::incarnation_of(host), ..NodeTerm::unasked() };
    let namesake = Ft::solo(Box::new(ToyGuest::new()), node_term, Setup::default()).unwrap();
    let reasons = namesake.protect(Some(pair.options.clone())).unwrap_err().to_string();
    assert!(reasons.contains("both hosts are called") && reasons.contains("node="), "{reasons}");
}
