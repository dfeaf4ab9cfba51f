//! Decides which connections are admitted: a primary that this node becomes the standby of, its disks, and
//! hosts that only ask.
//!
//! What a caller says of itself proves nothing. With a witness the record is the proof: it names the caller,
//! this incarnation of it, in the term that it says. Without one, whoever comes from a session that is over
//! shows that session's nonce, and nobody else takes the place of a session that lives. Policy is this host's
//! own. Whoever is of another VM is told nothing.

use std::net::SocketAddr;
use std::time::Duration;

use ft_proto::witness::Record;
use ft_proto::{Light, LinkId, OnPartition, Settings, State, Time};
use ft_transport::addresses::as_seen_here;
use ft_transport::connection::Connection;
use ft_transport::listener::Incoming;
use ft_wire::nonce::Nonce;
use ft_wire::session::{Kind, Part, Purpose, Standing, decode_body};
use serde_json::{Value, json};

use crate::context::Context;
use crate::context::inbox::Message;
use crate::guest::Shape;
use crate::options::{StandbyOptions, silence};
use crate::peers::compatibility::differences;
use crate::peers::limits;
use crate::platform::Platform;
use crate::session::Session;
use crate::session::standby::{Join, welcome};
use crate::witness::{AskWitness, Stored};

/// A caller whose witness is read no sooner is not waiting any more.
const WITNESS_LIMIT: Duration = Duration::from_secs(4);

/// What the witness says, or why it does not.
type Read = Result<Option<Stored>, String>;

/// An admitted connection.
pub(super) enum Admitted<C> {
    /// A primary, and what is noted of it.
    Session(Box<Join<C>>, Value),
    /// A disk of this number, of the primary of the open session.
    Disk(Box<Incoming<C>>, u16),
}

/// The rules by which this host admits a primary.
pub(super) struct Admission {
    options: Option<StandbyOptions>,
}

impl Admission {
    /// `options`: what an operator has configured for this host as a standby.
    pub(super) fn new(options: Option<StandbyOptions>) -> Self {
        Self { options }
    }

    /// Somebody said hello. Whoever wants a session waits until the witness has been read, if there is one.
    pub(super) fn connected<P: Platform>(
        &self,
        cx: &mut Context<P>,
        session: &Session<P>,
        incoming: Incoming<P::Connection>,
    ) -> Option<Admitted<P::Connection>> {
        if let (Some(ours), Some(theirs)) = (cx.identity().vm(), incoming.hello.vm)
            && ours != theirs
        {
            incoming.refuse(vec!["this host is not configured for that VM".to_owned()]);
            return None;
        }
        let wants_session = matches!(incoming.hello.purpose, Purpose::Session { .. });
        let Some(witness) = cx.witness().client().filter(|_| wants_session) else {
            return self.judge(cx, session, incoming, None);
        };
        let (post, since) = (cx.post(), cx.now());
        witness.read(move |record| post.send(Message::WitnessRead(Box::new(incoming), since, record)));
        None
    }

    /// The witness has been read for a caller.
    pub(super) fn witness_read<P: Platform>(
        &self,
        cx: &mut Context<P>,
        session: &Session<P>,
        incoming: Incoming<P::Connection>,
        since: Time,
        record: Read,
    ) -> Option<Admitted<P::Connection>> {
        if cx.now().since(since) > WITNESS_LIMIT {
            // It has given up; a session must not end for somebody who is gone.
            incoming.refuse(vec!["the witness did not answer in time".to_owned()]);
            return None;
        }
        self.judge(cx, session, incoming, Some(record))
    }

    fn judge<P: Platform>(
        &self,
        cx: &mut Context<P>,
        session: &Session<P>,
        incoming: Incoming<P::Connection>,
        record: Option<Read>,
    ) -> Option<Admitted<P::Connection>> {
        match incoming.hello.purpose.clone() {
            Purpose::Ask => {
                incoming.tell(&standing(cx, session));
                None
            }
            Purpose::Session { .. } => self.session_request(cx, session, incoming, record),
            Purpose::Disk { index, session, nonce } => {
                let ours = cx.identity().session().is_some_and(|key| key.is(session, nonce));
                if ours {
                    return Some(Admitted::Disk(Box::new(incoming), index));
                }
                incoming.refuse(vec!["the session that this disk belongs to is over".to_owned()]);
                None
            }
        }
    }

    fn session_request<P: Platform>(
        &self,
        cx: &mut Context<P>,
        session: &Session<P>,
        incoming: Incoming<P::Connection>,
        record: Option<Read>,
    ) -> Option<Admitted<P::Connection>> {
        let Purpose::Session { check, shape, beats, detect_ms, disk_buffer, took_over, on_partition, base, previous } =
            incoming.hello.purpose.clone()
        else {
            return None;
        };
        let shape: Option<Shape> = decode_body(Kind::Hello, &shape).ok();
        let addresses = beats.map(|address| address.parse().ok());
        let (Some(shape), [Some(first), Some(second)]) = (shape, addresses) else {
            incoming.refuse(vec!["the greeting cannot be decoded".to_owned()]);
            return None;
        };
        let beats = [as_seen_here(first, incoming.address), self.on_second_link(second)];
        let mut reasons = objections(cx, &incoming, &shape);
        reasons.extend(limits::objection(disk_buffer));
        reasons.extend(self.disk_objection());
        reasons.extend(self.policy_objection(cx.witness().client().is_some(), on_partition));
        match record {
            Some(record) => reasons.extend(witness_objection(cx, &incoming, record)),
            None => reasons.extend(session_objection(cx, session, &incoming, previous)),
        }
        if !reasons.is_empty() {
            incoming.refuse(reasons);
            return None;
        }
        if check {
            drop(incoming.welcome(&welcome(cx, None, false)));
            return None;
        }
        let own = self.options.as_ref().and_then(|options| options.detect_ms);
        let silence = silence(own.unwrap_or(detect_ms));
        let settings = Settings { silence, on_partition, ..*cx.node().settings() };
        let joined = json!({
            "node": incoming.hello.node.to_string(),
            "address": incoming.address.to_string(),
            "certificate": incoming.stream.peer_name(),
            "term": incoming.term.0,
            "took_over": took_over,
        });
        Some(Admitted::Session(Box::new(Join { incoming, shape, beats, disk_buffer, base, settings }), joined))
    }

    /// A primary's address on the second link.
    fn on_second_link(&self, address: SocketAddr) -> SocketAddr {
        self.options.as_ref().map_or(address, |options| as_seen_here(address, options.heartbeat))
    }

    /// What is in the disks may be all that there is of it.
    fn disk_objection(&self) -> Option<String> {
        let keeps = self.options.as_ref().is_some_and(|options| options.keeps_data);
        keeps.then(|| {
            "a disk of this standby holds data and has never been a copy: give it an empty image (truncate), or start \
             the standby with overwrite=on in --ft"
                .to_owned()
        })
    }

    /// The policy for a partition is this host's decision as much as the caller's.
    fn policy_objection(&self, witnessed: bool, theirs: Option<OnPartition>) -> Option<String> {
        let ours = self.options.as_ref().and_then(|options| options.on_partition);
        match (witnessed, ours, theirs) {
            (true, _, None) => None,
            (true, _, Some(_)) => {
                Some("this standby relies on a witness: protect the VM with the same witness=".to_owned())
            }
            (false, None, None) => {
                Some("the primary relies on a witness and this standby has none: start it with witness=".to_owned())
            }
            (false, ours, theirs) if ours == theirs => None,
            (false, ours, _) => {
                let ours = ours.map_or("none".to_owned(), |policy| format!("on_partition={policy:?}").to_lowercase());
                Some(format!(
                    "the policy for a partition must be the same on both hosts, and this standby has {ours}: give both \
                     hosts witness=, or the same on_partition="
                ))
            }
        }
    }
}

/// What this node does about the VM.
pub(super) fn standing<P: Platform>(cx: &Context<P>, session: &Session<P>) -> Standing {
    let settings = cx.node().settings();
    // Whether this node, as a standby, takes over by itself.
    let takes_over = settings.silence.is_some() && settings.on_partition != Some(OnPartition::Primary);
    let part = match session {
        _ if cx.node().runs() => Part::Runs,
        Session::Standby(session) if cx.state() == State::StandbyReady && takes_over => {
            Part::WillTakeOver(session.primary())
        }
        _ => Part::Waits,
    };
    Standing { node: cx.node().id(), vm: cx.identity().vm(), term: cx.term(), part }
}

/// What speaks against any primary of this kind.
fn objections<P: Platform>(cx: &mut Context<P>, incoming: &Incoming<P::Connection>, shape: &Shape) -> Vec<String> {
    let mut reasons = Vec::new();
    if !matches!(cx.state(), State::StandbyEmpty | State::StandbySyncing | State::StandbyReady) {
        reasons.push(format!("this node is not a standby, it is {}", cx.state_name(false)));
    }
    if incoming.hello.vm.is_none() {
        reasons.push("the caller does not name its VM".to_owned());
    }
    if incoming.hello.node.host == cx.node().id().host {
        reasons.push(format!(
            "both hosts are called {}: give each a name of its own with --ft node=",
            incoming.hello.node.host
        ));
    }
    if incoming.term < cx.term() {
        reasons.push(format!("the caller's term {} is older than this node's {}", incoming.term, cx.term()));
    }
    let ours = cx.machine().shape();
    reasons.extend(differences(&ours, shape));
    // The number of vCPUs is part of the CPU features, and has been complained about already.
    if ours.vcpus == shape.vcpus {
        reasons.extend(cx.machine_mut().guest().check_cpu(shape));
    }
    reasons
}

/// Whether the witness names the caller: only whoever runs the VM can have written itself there, and nobody
/// who is on record with a standby begins a session with another one.
fn witness_objection<P: Platform>(cx: &Context<P>, incoming: &Incoming<P::Connection>, record: Read) -> Option<String> {
    let address = cx.witness().client()?.address();
    let stored = match record {
        Ok(stored) => stored,
        Err(reason) => return Some(format!("witness {address}: {reason}")),
    };
    let vm = incoming.hello.vm;
    match stored.filter(|stored| stored.vm == vm).map(|stored| stored.record) {
        Some(Record::Solo { owner, term, .. }) if owner == incoming.hello.node && term == incoming.term => None,
        _ => Some(format!(
            "the witness at {address} does not show the primary's record: do both hosts use the same one?"
        )),
    }
}

/// Whether the other node of the session has not been heard on any link for too long.
fn is_silent<P: Platform>(cx: &Context<P>) -> bool {
    let now = cx.now();
    LinkId::ALL.into_iter().all(|link| cx.node().link(link, now).0 == Light::Red)
}

/// Without a witness: a session that lives is not replaced by whoever calls next.
fn session_objection<P: Platform>(
    cx: &Context<P>,
    session: &Session<P>,
    incoming: &Incoming<P::Connection>,
    previous: Nonce,
) -> Option<String> {
    let Session::Standby(session) = session else { return None };
    let claim = Claim {
        proven: previous != Nonce::NONE && previous == cx.identity().proof(),
        newer: incoming.term > cx.term(),
        lives: session.is_connected() && !is_silent(cx),
        has_copy: session.has_copy(),
    };
    (!claim.holds()).then(|| format!("this node is the standby of host {} already", session.primary().host))
}

/// What is known, without a witness, of a session of this standby, and of a caller who wants the place of its
/// primary.
#[derive(Clone, Copy)]
struct Claim {
    /// The caller is the session's primary: it knows the session's nonce.
    proven: bool,
    /// It comes in a later term.
    newer: bool,
    /// The session's stream is open and its primary is heard.
    lives: bool,
    /// The session has made this standby a whole copy.
    has_copy: bool,
}

impl Claim {
    /// A primary that calls again says itself that its session is over, however open our end of the stream
    /// looks. One whose host lost its power leaves it open for ever, and does not come from that session;
    /// then a copy that may be needed yields to a later term only.
    fn holds(self) -> bool {
        self.proven || !self.lives && (self.newer || !self.has_copy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_witness_a_living_session_is_left_only_for_its_own_primary() {
        for case in 0..16 {
            let [proven, newer, lives, has_copy] = [0, 1, 2, 3].map(|bit| case >> bit & 1 == 1);
            let expected = match (proven, lives, newer, has_copy) {
                (true, ..) => true,
                (false, true, ..) => false,
                // A host that lost its power, and ran the VM again since.
                (false, false, true, _) => true,
                // The same term: it may be a stranger, and the copy may be all that there is.
                (false, false, false, has_copy) => !has_copy,
            };
            let claim = Claim { proven, newer, lives, has_copy };
            assert_eq!(claim.holds(), expected, "{proven} {newer} {lives} {has_copy}");
        }
    }
}
