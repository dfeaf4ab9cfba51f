//! The primary's way to a session: ask everything that could be wrong at once, register with the witness,
//! connect.
//!
//! Runs on a thread of its own, since hosts that are down take their time to be so.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ft_proto::witness::{Claim, Verdict};
use ft_proto::{LinkId, Term, WitnessAnswer};
use ft_transport::beats::BeatSocket;
use ft_transport::dial::{self, Answer, GreetError};
use ft_transport::frames::TransportError;
use ft_transport::stream::Stream;
use ft_wire::session::{Hello, Kind, Welcome, WireError};
use host_kit::error::chain;
use pollux_api::Blocker;

use crate::identity::SessionKey;
use crate::options::ProtectOptions;
use crate::peers::application::{Applicant, Introduction, Opened, Unopened};
use crate::start::describe;
use crate::witness::WitnessClient;

/// How long a peer may take to accept a connection or answer a greeting, and the witness to judge.
const PATIENCE: Duration = Duration::from_secs(5);
/// Opens a session with the first of `peers` that accepts, or says every reason why none does.
///
/// # Errors
/// All reasons.
pub fn open_first(
    me: &Applicant<WitnessClient>,
    peers: Vec<ProtectOptions>,
) -> Result<Opened<Stream, Vec<BeatSocket>>, Unopened> {
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
/// All reasons.
fn open(me: &Applicant<WitnessClient>, options: ProtectOptions) -> Result<Opened<Stream, Vec<BeatSocket>>, Unopened> {
    let mut why = Unopened { blockers: me.blockers.clone() };
    why.and(Unopened { blockers: options.faults().into_iter().map(Blocker::from).collect() });
    let first = connect(options.peer);
    if me.brief {
        // A host that is down is no reason to bother the witness.
        if let Err(reason) = &first {
            why.and(reason.clone());
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
            why.and(Blocker::NoHeartbeatLink { peer: options.heartbeat.to_string(), reason: error.to_string() });
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
    let address = || witness.address().to_string();
    let asked = me.mandate.claim(|| witness.ask_for(vm, claim)).ok_or(Blocker::VmEnded)?;
    let blocker = match asked.wait(PATIENCE) {
        WitnessAnswer::Judged(_, Verdict::Granted(record)) if record.term() > me.term => return Ok(record.term()),
        // Each session needs a term of its own.
        WitnessAnswer::Judged(_, Verdict::Granted(record)) => Blocker::TermRepeated { term: record.term().0 },
        WitnessAnswer::Judged(_, Verdict::Refused(None)) => Blocker::WitnessRecordLost { witness: address() },
        WitnessAnswer::Judged(_, Verdict::Refused(record)) => Blocker::RefusedByWitness { record: describe(record) },
        WitnessAnswer::Unreachable(_, reason) => Blocker::WitnessUnreachable { witness: address(), reason },
    };
    Err(blocker.into())
}

/// A socket for each link, towards the standby, and the addresses they are bound to.
fn beat_sockets(options: &ProtectOptions) -> io::Result<(Vec<BeatSocket>, [String; LinkId::ALL.len()])> {
    let mut sockets = Vec::new();
    let mut addresses = [String::new(), String::new()];
    for (link, peer) in LinkId::ALL.into_iter().zip([options.peer, options.heartbeat]) {
        let socket = BeatSocket::towards(link, peer)?;
        addresses[link as usize] = socket.address()?.to_string();
        sockets.push(socket);
    }
    Ok((sockets, addresses))
}

/// Says hello and waits to be welcome.
fn greet(
    hello: &Hello,
    term: Term,
    peer: SocketAddr,
    connected: Result<Stream, Blocker>,
) -> Result<(Stream, Welcome), Unopened> {
    let failed = |error: TransportError| Blocker::ConnectionFailed { peer: peer.to_string(), reason: chain(&error) };
    let mut stream = connected?;
    let blocker = match dial::greet(&mut stream, hello, term, PATIENCE) {
        Ok(Answer::Welcome(welcome)) => return Ok((stream, welcome)),
        Ok(Answer::Refused(reasons)) => {
            let refused = |reason| Blocker::RefusedByStandby { peer: peer.to_string(), reason };
            return Err(Unopened { blockers: reasons.into_iter().map(refused).collect() });
        }
        Ok(Answer::Standing(_)) => {
            failed(WireError::Unexpected { got: Kind::Standing, expected: "welcome or refuse" }.into())
        }
        Err(GreetError::Failed(error)) => failed(error),
        Err(GreetError::Unanswered(reason)) => Blocker::StandbySilent { peer: peer.to_string(), reason },
    };
    Err(blocker.into())
}

fn connect(peer: SocketAddr) -> Result<Stream, Blocker> {
    let unreachable =
        |error: io::Error| Blocker::StandbyUnreachable { peer: peer.to_string(), reason: error.to_string() };
    dial::connect(peer, PATIENCE).map_err(unreachable)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use ft_proto::NodeId;
    use ft_wire::session::{Purpose, encode_body};

    use super::*;

    #[test]
    fn a_greeting_that_gets_no_answer_tells_its_size_and_the_mtu_of_its_link() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = listener.local_addr().unwrap();
        let node = NodeId::numbered(1, 1);
        let hello = Hello { vm: None, node, purpose: Purpose::Disk { index: 0, session: 1, nonce: 2 } };
        let size = encode_body(&hello).len();
        let why = greet(&hello, Term(1), peer, connect(peer)).unwrap_err();
        let reason = why.sentences().join("");
        assert!(reason.contains(&format!("the {size} bytes that were sent")) && reason.contains("MTU"), "{reason}");
        assert!(!why.persists(), "it may be well again soon");
    }
}
