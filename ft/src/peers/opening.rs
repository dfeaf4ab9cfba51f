//! The primary's way to a session: ask everything that could be wrong at once, register with the witness,
//! connect. Written once; a [`Dialler`] says how a host is reached.

use std::io;
use std::net::SocketAddr;

use ft_proto::witness::{Claim, Verdict};
use ft_proto::{LinkId, Term, VmId, WitnessAnswer};
use ft_transport::connection::Connection;
use ft_transport::dial::{Answer, GreetError};
use ft_transport::frames::TransportError;
use ft_transport::stream::OpenError;
use ft_transport::tls::TlsError;
use ft_wire::session::{Hello, Kind, Welcome, WireError};
use host_kit::error::chain;
use pollux_api::Blocker;

use crate::identity::SessionKey;
use crate::options::ProtectOptions;
use crate::peers::application::{Applicant, Introduction, Opened, Unopened};
use crate::start::describe;
use crate::witness::AskWitness;

/// Where this host's beats come from, on each link.
pub type BeatAddresses = [String; LinkId::ALL.len()];

/// Calls other hosts for whoever opens a session. Nothing waits without end.
pub trait Dialler: Sync {
    /// A stream to another host.
    type Connection: Connection;
    /// Heartbeats to it.
    type Beats: Send;
    /// The way to the witness.
    type Witness: AskWitness + Sync;

    /// Connects to a host.
    fn connect(&self, peer: SocketAddr) -> impl Future<Output = Result<Self::Connection, OpenError>> + Send;

    /// Why this host cannot connect to any other one.
    fn blocker(&self) -> Option<Blocker> {
        None
    }

    /// Says `hello` on a new connection, and waits for the answer.
    fn greet(
        &self,
        stream: &mut Self::Connection,
        hello: &Hello,
        term: Term,
    ) -> impl Future<Output = Result<Answer, GreetError>> + Send;

    /// What heartbeats are sent and received by, and where that is bound.
    ///
    /// # Errors
    /// When there is no way to the standby.
    fn beats(&self, options: &ProtectOptions) -> io::Result<(Self::Beats, BeatAddresses)>;

    /// Makes a claim: what is asked later is judged after it. The answer may take its time.
    fn claim(
        &self,
        witness: &Self::Witness,
        vm: VmId,
        claim: Claim,
    ) -> impl Future<Output = WitnessAnswer> + Send + use<Self>;
}

/// A session that a dialler has opened.
pub type OpenedBy<D> = Opened<<D as Dialler>::Connection, <D as Dialler>::Beats>;

/// Opens a session with the first of `peers` that accepts, or says every reason why none does.
///
/// # Errors
/// All reasons.
pub async fn open_first<D: Dialler>(
    dialler: &D,
    me: &Applicant<D::Witness>,
    peers: Vec<ProtectOptions>,
) -> Result<OpenedBy<D>, Unopened> {
    let mut why = Unopened::default();
    for options in peers {
        match open(dialler, me, options).await {
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
async fn open<D: Dialler>(
    dialler: &D,
    me: &Applicant<D::Witness>,
    options: ProtectOptions,
) -> Result<OpenedBy<D>, Unopened> {
    let mut why = Unopened { blockers: me.blockers.clone() };
    why.and(Unopened { blockers: options.faults().into_iter().map(Blocker::from).collect() });
    let first = connect(dialler, options.peer).await;
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
        match own(dialler, witness, me).await {
            Ok(granted) => term = granted,
            Err(more) => why.and(more),
        }
    }
    let beats = match dialler.beats(&options) {
        Ok(beats) => Some(beats),
        Err(error) => {
            why.and(Blocker::NoHeartbeatLink { peer: options.heartbeat.to_string(), reason: error.to_string() });
            None
        }
    };
    let addresses = beats.as_ref().map_or_else(BeatAddresses::default, |(_, addresses)| addresses.clone());
    let introduction = &me.introduction;
    let hello = |check| introduction.session(check, &options, addresses.clone());
    let host = Standby { dialler, peer: options.peer, term };
    // The standby's reasons are asked for even when ours suffice: an operator wants to see all of them.
    if let Err(theirs) = host.greet(&hello(true), first).await {
        why.and(theirs);
    }
    let Some((beats, _)) = beats.filter(|_| why.is_none()) else { return Err(why) };
    let (stream, Welcome { node: peer, session, nonce, kept }) = host.call(&hello(false)).await?;
    let key = SessionKey { session, nonce };
    let mut disks = Vec::new();
    for index in introduction.shape.mirrored() {
        let (stream, _) = host.call(&introduction.disk(index, key)).await?;
        disks.push((index, stream));
    }
    Ok(Opened { options, stream, disks, beats, peer, term, key, base: introduction.base.filter(|_| kept) })
}

/// Has the witness know that this node runs the VM.
async fn own<D: Dialler>(dialler: &D, witness: &D::Witness, me: &Applicant<D::Witness>) -> Result<Term, Unopened> {
    let Introduction { node, vm, .. } = me.introduction;
    let claim = Claim::Own { node, term: me.term, first: me.first };
    let address = || witness.address().to_string();
    let asked = me.mandate.claim(|| dialler.claim(witness, vm, claim)).ok_or(Blocker::VmEnded)?;
    let blocker = match asked.await {
        WitnessAnswer::Judged(_, Verdict::Granted(record)) if record.term() > me.term => return Ok(record.term()),
        // Each session needs a term of its own.
        WitnessAnswer::Judged(_, Verdict::Granted(record)) => Blocker::TermRepeated { term: record.term().0 },
        WitnessAnswer::Judged(_, Verdict::Refused(None)) => Blocker::WitnessRecordLost { witness: address() },
        WitnessAnswer::Judged(_, Verdict::Refused(record)) => Blocker::RefusedByWitness { record: describe(record) },
        WitnessAnswer::Unreachable(_, reason) => Blocker::WitnessUnreachable { witness: address(), reason },
    };
    Err(blocker.into())
}

async fn connect<D: Dialler>(dialler: &D, peer: SocketAddr) -> Result<D::Connection, Blocker> {
    if let Some(blocker) = dialler.blocker() {
        return Err(blocker);
    }
    let why = |error: OpenError| {
        let (peer, reason) = (peer.to_string(), chain(&error));
        match error {
            OpenError::Io(_) => Blocker::StandbyUnreachable { peer, reason },
            // It may be about to start, or to end.
            OpenError::Tls(TlsError::HungUp) => Blocker::ConnectionFailed { peer, reason },
            OpenError::Tls(_) => Blocker::NotOfThePair { peer, reason },
            OpenError::Credentials(_) => Blocker::NoCredentials { reason },
        }
    };
    dialler.connect(peer).await.map_err(why)
}

/// A host that is asked for a session in a term.
struct Standby<'a, D> {
    dialler: &'a D,
    peer: SocketAddr,
    term: Term,
}

impl<D: Dialler> Standby<'_, D> {
    /// Connects, says hello and waits to be welcome.
    async fn call(&self, hello: &Hello) -> Result<(D::Connection, Welcome), Unopened> {
        self.greet(hello, connect(self.dialler, self.peer).await).await
    }

    /// Says hello and waits to be welcome.
    async fn greet(
        &self,
        hello: &Hello,
        connected: Result<D::Connection, Blocker>,
    ) -> Result<(D::Connection, Welcome), Unopened> {
        let peer = || self.peer.to_string();
        let failed = |error: TransportError| Blocker::ConnectionFailed { peer: peer(), reason: chain(&error) };
        let mut stream = connected?;
        let blocker = match self.dialler.greet(&mut stream, hello, self.term).await {
            Ok(Answer::Welcome(welcome)) => return Ok((stream, welcome)),
            Ok(Answer::Refused(reasons)) => {
                let refused = |reason| Blocker::RefusedByStandby { peer: peer(), reason };
                return Err(Unopened { blockers: reasons.into_iter().map(refused).collect() });
            }
            Ok(Answer::Standing(_)) => {
                failed(WireError::Unexpected { got: Kind::Standing, expected: "welcome or refuse" }.into())
            }
            Err(GreetError::Failed(TransportError::Tls(error))) => {
                Blocker::NotOfThePair { peer: peer(), reason: chain(&error) }
            }
            Err(GreetError::Failed(error)) => failed(error),
            Err(GreetError::Unanswered(reason)) => Blocker::StandbySilent { peer: peer(), reason },
        };
        Err(blocker.into())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use ft_proto::NodeId;
    use ft_wire::nonce::Nonce;
    use ft_wire::session::{Purpose, encode_body};

    use super::*;
    use crate::peers::connect::{Tcp, complete};
    use crate::peers::tls::PeerTls;

    #[test]
    fn a_greeting_that_gets_no_answer_tells_its_size_and_the_mtu_of_its_link() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = listener.local_addr().unwrap();
        let node = NodeId::numbered(1, 1);
        let hello = Hello { vm: None, node, purpose: Purpose::Disk { index: 0, session: 1, nonce: Nonce::new(2) } };
        let size = encode_body(&hello).len();
        let host = Standby { dialler: &Tcp(PeerTls::off()), peer, term: Term(1) };
        let why = complete(host.call(&hello)).unwrap().unwrap_err();
        let reason = why.sentences().join("");
        assert!(reason.contains(&format!("the {size} bytes that were sent")) && reason.contains("MTU"), "{reason}");
        assert!(!why.persists(), "it may be well again soon");
    }
}
