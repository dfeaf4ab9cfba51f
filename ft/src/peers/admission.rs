//! Who is let in at the door: a primary that this node becomes the standby of, its disks, and hosts that only ask.
//!
//! What a caller says of itself proves nothing. With a witness the record is the proof: it names the caller, this incarnation of
//! it, in the term that it says. Without one, whoever comes from a session that is over shows that session's nonce, and nobody else
//! takes the place of a session that lives. Policy is this host's own. Who is of another VM is told nothing.

use std::net::SocketAddr;
use std::time::Duration;

use ft_proto::wire::{Kind, Part, Purpose, Standing, decode_body};
use ft_proto::witness::Record;
use ft_proto::{OnPartition, Settings, State, Time};
use serde_json::json;

use crate::engine::inbox::Message;
use crate::engine::{Engine, Session};
use crate::guest::Shape;
use crate::options::silence;
use crate::peers::alike::differences;
use crate::peers::bounds;
use crate::transport::addresses::as_seen_here;
use crate::transport::listener::Caller;
use crate::witness::Stored;

/// A caller whose witness is read no sooner is not waiting any more.
const DOOR_LIMIT: Duration = Duration::from_secs(4);

/// What the witness says, or why it does not.
type Read = Result<Option<Stored>, String>;

impl Engine {
    /// Somebody said hello at the door. Who wants a session waits there until the witness has been read, if there is one.
    pub(crate) fn caller(&mut self, caller: Caller) {
        if let (Some(ours), Some(theirs)) = (self.identity.vm, caller.hello.vm)
            && ours != theirs
        {
            return caller.refuse(vec!["this host has nothing to do with that VM".to_owned()]);
        }
        let session = matches!(caller.hello.purpose, Purpose::Session { .. });
        let Some(witness) = self.witness.as_ref().filter(|_| session) else { return self.answer(caller, None) };
        let (post, since) = (self.post.clone(), self.clock.now());
        witness.read(move |record| post.send(Message::Vouched(Box::new(caller), since, record)));
    }

    /// The witness has been read for a caller.
    pub(crate) fn vouched(&mut self, caller: Caller, since: Time, record: Read) {
        if self.clock.now().since(since) > DOOR_LIMIT {
            // It has given up; a session must not end for somebody who is gone.
            return caller.refuse(vec!["the witness took too long".to_owned()]);
        }
        self.answer(caller, Some(record));
    }

    fn answer(&mut self, caller: Caller, record: Option<Read>) {
        match caller.hello.purpose.clone() {
            Purpose::Ask => caller.tell(&self.standing()),
            Purpose::Session { .. } => self.session_caller(caller, record),
            Purpose::Disk { index, session, nonce } => {
                let ours = self.identity.session.is_some_and(|key| (key.session, key.nonce) == (session, nonce));
                if ours {
                    return self.disk_caller(caller, index);
                }
                caller.refuse(vec!["the session that this disk belongs to is over".to_owned()]);
            }
        }
    }

    /// What this node does about the VM.
    fn standing(&self) -> Standing {
        let part = match &self.session {
            _ if self.node.runs() => Part::Runs,
            Session::Standby(side) if self.node.state() == State::StandbyReady && self.takes_over() => {
                Part::WillTakeOver(side.primary)
            }
            _ => Part::Waits,
        };
        Standing { node: self.node.id(), vm: self.identity.vm, term: self.node.term(), part }
    }

    /// Whether this node, as a standby, takes over by itself.
    fn takes_over(&self) -> bool {
        let settings = self.node.settings();
        settings.silence.is_some() && settings.on_partition != Some(OnPartition::Primary)
    }

    fn session_caller(&mut self, caller: Caller, record: Option<Read>) {
        let Purpose::Session { check, shape, beats, detect_ms, disk_buffer, took_over, on_partition, base, previous } =
            caller.hello.purpose.clone()
        else {
            return;
        };
        let shape: Option<Shape> = decode_body(Kind::Hello, &shape).ok();
        let addresses = beats.map(|address| address.parse().ok());
        let (Some(shape), [Some(first), Some(second)]) = (shape, addresses) else {
            return caller.refuse(vec!["the greeting does not decode".to_owned()]);
        };
        let (first, second) = (as_seen_here(first, caller.address), self.on_second_link(second));
        let mut reasons = self.objections(&caller, &shape);
        reasons.extend(bounds::objection(disk_buffer));
        reasons.extend(self.policy_objection(on_partition));
        match record {
            Some(record) => reasons.extend(self.witness_objection(&caller, record)),
            None => reasons.extend(self.session_objection(&caller, previous)),
        }
        if !reasons.is_empty() {
            return caller.refuse(reasons);
        }
        if check {
            return drop(caller.welcome(&self.welcome(None, false)));
        }
        let own = self.listen.as_ref().and_then(|options| options.detect_ms);
        let silence = silence(own.unwrap_or(detect_ms));
        let settings = Settings { silence, on_partition, ..*self.node.settings() };
        let joined = json!({
            "node": caller.hello.node.to_string(),
            "address": caller.address.to_string(),
            "term": caller.term.0,
            "took_over": took_over,
        });
        self.join(caller, shape, [first, second], (disk_buffer, base), settings);
        if self.node.state() == State::StandbySyncing {
            self.note("primary-joined", joined);
        }
    }

    /// A primary's address on the second link.
    fn on_second_link(&self, address: SocketAddr) -> SocketAddr {
        self.listen.as_ref().map_or(address, |options| as_seen_here(address, options.heartbeat))
    }

    /// What speaks against any primary of this kind.
    fn objections(&mut self, caller: &Caller, shape: &Shape) -> Vec<String> {
        let mut reasons = Vec::new();
        if !matches!(self.node.state(), State::StandbyEmpty | State::StandbySyncing | State::StandbyReady) {
            reasons.push(format!("this node is no standby, it is {}", self.state_name()));
        }
        if caller.hello.vm.is_none() {
            reasons.push("the caller does not say which VM it runs".to_owned());
        }
        if caller.hello.node.host == self.node.id().host {
            reasons.push(format!(
                "both hosts are called {}: give each a name of its own with --ft node=",
                caller.hello.node.host
            ));
        }
        if caller.term < self.node.term() {
            reasons.push(format!("the caller's term {} is older than this node's {}", caller.term, self.node.term()));
        }
        reasons.extend(differences(&self.guest.shape(), shape));
        // The number of vCPUs is part of the CPU features, and has been complained about already.
        if self.guest.shape().vcpus == shape.vcpus {
            reasons.extend(self.guest.check_cpu(&shape.cpuid));
        }
        reasons
    }

    /// Who decides when the two cannot see each other is this host's business as much as the caller's.
    fn policy_objection(&self, theirs: Option<OnPartition>) -> Option<String> {
        let ours = self.listen.as_ref().and_then(|options| options.on_partition);
        match (self.witness.is_some(), ours, theirs) {
            (true, _, None) => None,
            (true, _, Some(_)) => {
                Some("this standby relies on a witness: protect the VM with the same witness=".to_owned())
            }
            (false, None, None) => {
                Some("the primary relies on a witness and this standby has none: start it with witness=".to_owned())
            }
            (false, ours, theirs) if ours == theirs => None,
            (false, ours, _) => {
                let ours =
                    ours.map_or("nothing".to_owned(), |policy| format!("on_partition={policy:?}").to_lowercase());
                Some(format!(
                    "who goes on in a partition must be the same on both hosts, and this standby says {ours}: give both \
                     witness=, or the same on_partition="
                ))
            }
        }
    }

    /// Whether the witness names the caller: only who runs the VM can have written itself there, and nobody who is on record with
    /// a standby begins a session with another one.
    fn witness_objection(&self, caller: &Caller, record: Read) -> Option<String> {
        let address = self.witness.as_ref()?.address();
        let stored = match record {
            Ok(stored) => stored,
            Err(reason) => return Some(format!("witness {address}: {reason}")),
        };
        let vm = caller.hello.vm;
        match stored.filter(|stored| stored.vm == vm).map(|stored| stored.record) {
            Some(Record::Solo { owner, term, .. }) if owner == caller.hello.node && term == caller.term => None,
            _ => Some(format!(
                "the witness at {address} does not show the primary's record: do both hosts use the same one?"
            )),
        }
    }

    /// Without a witness: a session that lives is not replaced by whoever calls next.
    fn session_objection(&self, caller: &Caller, previous: u128) -> Option<String> {
        let Session::Standby(side) = &self.session else { return None };
        // A primary that calls again says itself that its session is over, however open our end of the stream looks.
        let proven = previous != 0 && previous == self.identity.proof();
        let is_past = !side.is_connected() && (caller.term > self.node.term() || !side.has_copy());
        (!proven && !is_past).then(|| format!("this node is the standby of host {} already", side.primary.host))
    }
}
