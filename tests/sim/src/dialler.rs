//! How the engine calls other hosts of the world, and the frames of such a call.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ft::ProtectOptions;
use ft::sim::{AskWitness as _, BeatAddresses, Dialler};
use ft_proto::witness::Claim;
use ft_proto::{Epoch, LinkId, Term, VmId, WitnessAnswer};
use ft_transport::dial::{Answer, GreetError, understand};
use ft_transport::frames::{Stamp, write_frame};
use ft_transport::stream::OpenError;
use ft_wire::session::{Hello, Kind, encode_body};

use crate::body::{Effect, Shared};
use crate::ends::{SimStream, SimWitness};
use crate::network::{address_of, host_at};
use crate::slot::Slot;

/// A peer that takes longer for a step is given up.
const PATIENCE: Duration = Duration::from_secs(1);

/// Calls other hosts of the world.
pub(crate) struct SimDialler(pub(crate) Shared);

impl SimDialler {
    /// What the world says by then, or that it said nothing.
    fn wait<T: Send + 'static>(&self, slot: Slot<T>, nothing: T) -> impl Future<Output = T> + Send + use<T> {
        let late = slot.clone();
        self.0.effect(Effect::Later(PATIENCE, Box::new(move || late.say(nothing))));
        poll_fn(move |_| slot.take())
    }
}

impl Dialler for SimDialler {
    type Connection = SimStream;
    type Beats = Option<usize>;
    type Witness = SimWitness;

    fn connect(&self, peer: SocketAddr) -> impl Future<Output = Result<SimStream, OpenError>> + Send {
        let (slot, shared) = (Slot::new(), self.0.clone());
        self.0.effect(Effect::Dial(host_at(peer), slot.clone()));
        let dialled = self.wait(slot, Err(io::ErrorKind::TimedOut.into()));
        async move { Ok(SimStream::new(dialled.await?, shared)) }
    }

    fn greet(
        &self,
        stream: &mut SimStream,
        hello: &Hello,
        term: Term,
    ) -> impl Future<Output = Result<Answer, GreetError>> + Send {
        let slot = Slot::new();
        self.0.effect(Effect::Write(stream.id(), frame(Kind::Hello, term, &encode_body(hello))));
        self.0.effect(Effect::Greet(stream.id(), slot.clone()));
        let heard = self.wait(slot, Err(silent("nobody answers")));
        async move {
            let (header, body) = heard.await?;
            Ok(understand(stream, header, &body)?)
        }
    }

    fn beats(&self, options: &ProtectOptions) -> io::Result<(Option<usize>, BeatAddresses)> {
        let host = self.0.lock().host;
        Ok((Some(host_at(options.peer)), LinkId::ALL.map(|link| address_of(host, link).to_string())))
    }

    fn claim(
        &self,
        witness: &SimWitness,
        vm: VmId,
        claim: Claim,
    ) -> impl Future<Output = WitnessAnswer> + Send + use<> {
        let slot = Slot::new();
        let told = slot.clone();
        witness.ask(vm, claim, move |answer| told.say(answer));
        self.wait(slot, WitnessAnswer::Unreachable(claim, "no answer".to_owned()))
    }
}

/// A frame of its own.
pub(crate) fn frame(kind: Kind, term: Term, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, Stamp { kind, term, epoch: Epoch(0) }, &[body]).expect("memory takes all");
    bytes
}

/// A peer that says nothing, or nothing more.
pub(crate) fn silent(reason: &str) -> GreetError {
    GreetError::Unanswered(reason.to_owned())
}
