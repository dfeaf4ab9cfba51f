//! Calls other hosts over TCP, for a thread that has nothing else to do: hosts that are down take their time
//! to be so.

use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ft_proto::witness::Claim;
use ft_proto::{LinkId, Term, VmId, WitnessAnswer};
use ft_transport::beats::BeatSocket;
use ft_transport::dial::{self, Answer, GreetError};
use ft_transport::stream::{OpenError, Stream};
use ft_wire::session::Hello;
use pollux_api::Blocker;

use super::opening::{BeatAddresses, Dialler};
use super::tls::PeerTls;
use crate::options::ProtectOptions;
use crate::witness::WitnessClient;

/// How long a peer may take to accept a connection or answer a greeting, and the witness to judge.
const PATIENCE: Duration = Duration::from_secs(5);

/// Every step blocks until it is done.
#[derive(Debug)]
pub(crate) struct Tcp(pub(crate) PeerTls);

impl Dialler for Tcp {
    type Connection = Stream;
    type Beats = Vec<BeatSocket>;
    type Witness = WitnessClient;

    fn connect(&self, peer: SocketAddr) -> impl Future<Output = Result<Stream, OpenError>> + Send {
        // Without credentials it was not asked.
        let tls = self.0.credentials().ok().flatten();
        ready(dial::connect(peer, PATIENCE, tls.as_ref()))
    }

    fn blocker(&self) -> Option<Blocker> {
        self.0.credentials().err().map(|reason| Blocker::NoCredentials { reason })
    }

    fn greet(
        &self,
        stream: &mut Stream,
        hello: &Hello,
        term: Term,
    ) -> impl Future<Output = Result<Answer, GreetError>> + Send {
        ready(dial::greet(stream, hello, term, PATIENCE))
    }

    /// A socket for each link, towards the standby, and the addresses they are bound to.
    fn beats(&self, options: &ProtectOptions) -> io::Result<(Vec<BeatSocket>, BeatAddresses)> {
        let mut sockets = Vec::new();
        let mut addresses = BeatAddresses::default();
        for (link, peer) in LinkId::ALL.into_iter().zip([options.peer, options.heartbeat]) {
            let socket = BeatSocket::towards(link, peer)?;
            addresses[link as usize] = socket.address()?.to_string();
            sockets.push(socket);
        }
        Ok((sockets, addresses))
    }

    fn claim(
        &self,
        witness: &WitnessClient,
        vm: VmId,
        claim: Claim,
    ) -> impl Future<Output = WitnessAnswer> + Send + use<> {
        let asked = witness.ask_for(vm, claim);
        async move { asked.wait(PATIENCE) }
    }
}

/// Runs `work` to its end on this thread.
///
/// # Errors
/// When there is nothing to run it with.
pub(crate) fn complete<T>(work: impl Future<Output = T>) -> io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().build()?.block_on(work))
}
