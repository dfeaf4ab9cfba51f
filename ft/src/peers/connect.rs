//! The primary's way to a session: ask everything that could be wrong at once, register with the witness,
//! connect.
//!
//! Runs on a thread of its own, since hosts that are down take their time to be so.

use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use ft_proto::wire::{Hello, Kind, Refusal, Welcome, WireError, decode_body, encode_body};
use ft_proto::witness::{Claim, Verdict};
use ft_proto::{Epoch, LinkId, Term, WitnessAnswer};
use host_kit::error::chain;
use nix::sys::socket::{setsockopt, sockopt};

use crate::identity::SessionKey;
use crate::options::ProtectOptions;
use crate::peers::application::{Applicant, Introduction, Opened, Unopened};
use crate::start::describe;
use crate::transport::addresses::{any_port, anywhere};
use crate::transport::beats::BeatSocket;
use crate::transport::frames::{Stamp, TransportError, read_message, write_frame};
use crate::transport::path::explain;
use crate::witness::WitnessClient;

/// How long a peer may take to accept a connection or answer a greeting, and the witness to judge.
const PATIENCE: Duration = Duration::from_secs(5);
/// After so long without an answer the greeting has not arrived: a standby gives a caller five seconds for
/// it.
const IN_VAIN: Duration = Duration::from_secs(4);

/// Kinds of congestion control that do not pace; the first one that this host has is used.
const BURSTS: [&str; 2] = ["cubic", "reno"];

/// Opens a session with the first of `peers` that accepts, or says every reason why none does.
///
/// # Errors
/// All reasons, one sentence each.
pub fn open_first(
    me: &Applicant<WitnessClient>,
    peers: Vec<ProtectOptions>,
) -> Result<Opened<TcpStream, Vec<BeatSocket>>, Unopened> {
    let mut why = Unopened::default();
    for options in peers {
        match open(me, options) {
            Ok(opened) => return Ok(opened),
            Err(more) => why.and(more),
        }
    }
    Err(why)
}

/// Opens a session, or says every reason why it cannot be.
///
/// # Errors
/// All reasons, one sentence each.
fn open(
    me: &Applicant<WitnessClient>,
    options: ProtectOptions,
) -> Result<Opened<TcpStream, Vec<BeatSocket>>, Unopened> {
    let mut why = Unopened::settled(me.blockers.clone());
    why.and(Unopened::settled(options.faults().iter().map(ToString::to_string).collect()));
    let first = connect(options.peer);
    if me.brief {
        // A host that is down is no reason to bother the witness.
        if let Err(reason) = &first {
            why.and(Unopened::now(reason.clone()));
        }
        if !why.is_none() {
            return Err(why);
        }
    }
    let mut term = me.term;
    if let Some(witness) = &me.witness {
        match own(witness, me) {
            Ok(granted) => term = granted,
            Err(more) => why.and(more),
        }
    }
    let beats = match beat_sockets(&options) {
        Ok(beats) => Some(beats),
        Err(error) => {
            why.and(Unopened::now(format!("no heartbeat link to {}: {error}", options.heartbeat)));
            None
        }
    };
    let addresses = beats.as_ref().map_or([String::new(), String::new()], |(_, addresses)| addresses.clone());
    let introduction = &me.introduction;
    let hello = |check| introduction.session(check, &options, addresses.clone());
    // The standby's reasons are asked for even when ours suffice: an operator wants to see all of them.
    if let Err(theirs) = greet(&hello(true), term, options.peer, first) {
        why.and(theirs);
    }
    let Some((beats, _)) = beats.filter(|_| why.is_none()) else { return Err(why) };
    let (stream, Welcome { node: peer, session, nonce, kept }) =
        greet(&hello(false), term, options.peer, connect(options.peer))?;
    let key = SessionKey { session, nonce };
    let disk = |index| {
        let (stream, _) = greet(&introduction.disk(index, key), term, options.peer, connect(options.peer))?;
        Ok::<_, Unopened>((index, stream))
    };
    let disks = introduction.shape.mirrored().map(disk).collect::<Result<_, _>>()?;
    Ok(Opened { options, stream, disks, beats, peer, term, key, base: introduction.base.filter(|_| kept) })
}

/// Has the witness know that this node runs the VM.
fn own(witness: &WitnessClient, me: &Applicant<WitnessClient>) -> Result<Term, Unopened> {
    let Introduction { node, vm, .. } = me.introduction;
    let claim = Claim::Own { node, term: me.term, first: me.first };
    let asked = me.mandate.claim(|| witness.ask_for(vm, claim));
    let asked = asked.ok_or_else(|| Unopened::settled(vec!["the VM has ended".to_owned()]))?;
    match asked.wait(PATIENCE) {
        WitnessAnswer::Unreachable(_, reason) => Err(Unopened::now(format!("witness {}: {reason}", witness.address()))),
        WitnessAnswer::Judged(_, Verdict::Granted(record)) if record.term() > me.term => Ok(record.term()),
        // Each session needs a term of its own.
        WitnessAnswer::Judged(_, Verdict::Granted(record)) => {
            Err(Unopened::now(format!("the witness gave term {} twice: try again", record.term())))
        }
        WitnessAnswer::Judged(_, Verdict::Refused(None)) => Err(Unopened::settled(vec![format!(
            "the witness at {} has lost its record of this VM: `pollux witness create --help` says what to do",
            witness.address()
        )])),
        WitnessAnswer::Judged(_, Verdict::Refused(record)) => Err(Unopened::settled(vec![describe(record)])),
    }
}

/// A socket for each link, towards the standby, and the addresses they are bound to.
fn beat_sockets(options: &ProtectOptions) -> io::Result<(Vec<BeatSocket>, [String; LinkId::ALL.len()])> {
    let mut sockets = Vec::new();
    let mut addresses = [String::new(), String::new()];
    for (link, peer) in LinkId::ALL.into_iter().zip([options.peer, options.heartbeat]) {
        // Connecting a throw-away socket asks the routing table which of our addresses faces the peer.
        let probe = UdpSocket::bind(anywhere(peer))?;
        probe.connect(peer)?;
        let socket = UdpSocket::bind(any_port(probe.local_addr()?))?;
        socket.set_nonblocking(true)?;
        addresses[link as usize] = socket.local_addr()?.to_string();
        sockets.push(BeatSocket { link, socket: socket.into(), peer: Some(peer) });
    }
    Ok((sockets, addresses))
}

/// Says hello and waits for the answer.
fn greet(
    hello: &Hello,
    term: Term,
    peer: SocketAddr,
    connected: Result<TcpStream, String>,
) -> Result<(TcpStream, Welcome), Unopened> {
    let failed = |error: TransportError| Unopened::now(format!("standby at {peer}: {}", chain(&error)));
    let mut stream = connected.map_err(Unopened::now)?;
    let (hello, called) = (encode_body(hello), Instant::now());
    write_frame(&mut stream, Stamp { kind: Kind::Hello, term, epoch: Epoch(0) }, &[&hello]).map_err(failed)?;
    let unanswered = |error| {
        let error = if called.elapsed() >= IN_VAIN { late_if_closed(error) } else { error };
        let reason = explain(&error, &stream, Some(hello.len()));
        Unopened::now(format!("standby at {peer} has accepted the connection, but not answered: {reason}"))
    };
    let (header, body) = read_message(&stream, PATIENCE).map_err(unanswered)?;
    match header.kind {
        Kind::Welcome => {
            let welcome = decode_body(header.kind, &body).map_err(|error| failed(error.into()))?;
            let forever = stream.set_read_timeout(None).and_then(|()| stream.set_write_timeout(None));
            forever.map_err(|error| failed(TransportError::Io(error)))?;
            Ok((stream, welcome))
        }
        Kind::Refuse => {
            let Refusal { reasons } = decode_body(header.kind, &body).map_err(|error| failed(error.into()))?;
            Err(Unopened::settled(reasons.into_iter().map(|reason| format!("standby at {peer}: {reason}")).collect()))
        }
        got => Err(failed(WireError::Unexpected { got, expected: "welcome or refuse" }.into())),
    }
}

/// A standby that has waited in vain for the rest of a greeting closes the connection, perhaps a moment
/// before we give up.
fn late_if_closed(error: TransportError) -> TransportError {
    if matches!(error, TransportError::Closed) { TransportError::Late } else { error }
}

/// An epoch is a burst that the guest's output waits for. Congestion control that paces (BBR, the default of
/// some hosts) would stretch it although the link is free.
fn send_in_bursts(stream: &TcpStream) {
    let set = |name: &&str| setsockopt(stream, sockopt::TcpCongestion, &OsString::from(name)).is_ok();
    // With any other one it works, too, only slower.
    let _ = BURSTS.iter().any(set);
}

fn connect(peer: SocketAddr) -> Result<TcpStream, String> {
    let connect = || -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&peer, PATIENCE)?;
        stream.set_nodelay(true)?;
        send_in_bursts(&stream);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    };
    connect().map_err(|error| {
        format!("cannot reach a standby at {peer}: {error}: is pollux-vmm running there with --ft listen={peer}?")
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use ft_proto::NodeId;
    use ft_proto::wire::Purpose;
    use nix::sys::socket::getsockopt;

    use super::*;

    #[test]
    fn a_greeting_that_gets_no_answer_tells_its_size_and_the_mtu_of_its_link() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = listener.local_addr().unwrap();
        let node = NodeId::numbered(1, 1);
        let hello = Hello { vm: None, node, purpose: Purpose::Disk { index: 0, session: 1, nonce: 2 } };
        let size = encode_body(&hello).len();
        let why = greet(&hello, Term(1), peer, connect(peer)).unwrap_err();
        let reason = why.reasons.join("");
        assert!(reason.contains(&format!("the {size} bytes that were sent")) && reason.contains("MTU"), "{reason}");
        assert!(!why.settled, "it may be well again soon");
    }

    #[test]
    fn a_greeting_that_a_standby_has_waited_for_in_vain_is_told_alike() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = listener.local_addr().unwrap();
        let hello =
            Hello { vm: None, node: NodeId::numbered(1, 1), purpose: Purpose::Disk { index: 0, session: 1, nonce: 2 } };
        let reason = |patience| {
            std::thread::scope(|scope| {
                let listener = &listener;
                scope.spawn(move || {
                    // Reads what comes: what is unread would be a reset.
                    let (mut stream, _) = listener.accept().unwrap();
                    std::io::Read::read(&mut stream, &mut [0; 4096]).unwrap();
                    std::thread::sleep(patience);
                });
                greet(&hello, Term(1), peer, connect(peer)).unwrap_err().reasons.join("")
            })
        };
        assert!(reason(IN_VAIN).contains("MTU"));
        let at_once = reason(Duration::ZERO);
        assert!(at_once.contains("closed the connection") && !at_once.contains("MTU"), "{at_once}");
    }

    #[test]
    fn the_stream_is_not_paced() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = connect(listener.local_addr().unwrap()).unwrap();
        let name = getsockopt(&stream, sockopt::TcpCongestion).unwrap();
        assert!(BURSTS.iter().any(|burst| name.to_string_lossy().trim_end_matches('\0') == *burst), "{name:?}");
    }
}
