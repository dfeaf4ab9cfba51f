//! The engine's platform in production: threads, epoll, sockets and the monotonic clock.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use ft_proto::{Term, Time};
use ft_transport::beats::Beats;
use ft_transport::stream::Stream;
use host_kit::cpu_load::CpuLoad;
use pollux_api::Blocker;

use super::poller::{Poller, Token};
use super::{OpenedOn, Platform};
use crate::clock::Clock;
use crate::devices::DeviceKey;
use crate::devices::socket::ControlSocket;
use crate::guest::Memory;
use crate::identity::SessionKey;
use crate::needs;
use crate::options::ProtectOptions;
use crate::peers::application::{Applicant, Unopened};
use crate::peers::connect::{Tcp, complete};
use crate::peers::opening::open_first;
use crate::peers::tls::PeerTls;
use crate::stream::ends::{Received, Sent};
use crate::stream::history::History;
use crate::stream::receiver::ReceiverHandle;
use crate::stream::sender::SenderHandle;
use crate::witness::{WitnessAddress, WitnessClient};

/// What is read beyond what is needed at once from a protected stream that carries checkpoints.
const READ_AHEAD: usize = 256 << 10;
/// And from one that carries acknowledgements.
const SHORT_READ_AHEAD: usize = 4 << 10;

/// This host.
#[derive(Clone, Debug)]
pub(crate) struct Linux {
    clock: Clock,
    poller: Poller,
    tls: PeerTls,
}

impl Linux {
    pub(crate) fn new(clock: Clock, tls: PeerTls) -> io::Result<Self> {
        Ok(Self { clock, poller: Poller::new()?, tls })
    }

    pub(crate) fn poller(&self) -> &Poller {
        &self.poller
    }
}

impl Platform for Linux {
    type Connection = Stream;
    type Control = ControlSocket;
    type Beats = Beats;
    type Witness = WitnessClient;
    type Sender = SenderHandle;
    type Receiver = ReceiverHandle;

    fn now(&self) -> Time {
        self.clock.now()
    }

    fn draw_session(&self) -> SessionKey {
        SessionKey::draw()
    }

    fn set_realtime(&self, on: bool) {
        host_kit::sched::set_realtime(on);
    }

    fn pin_to_cpu(&self, cpu: Option<u16>) {
        host_kit::sched::pin_to_cpu(cpu);
    }

    fn cpu_load(&self) -> Option<CpuLoad> {
        Some(CpuLoad::since_now())
    }

    fn watch_stream(&self, stream: &Stream) -> io::Result<()> {
        stream.read_ahead(SHORT_READ_AHEAD);
        self.poller.watch(Token::Stream, stream)
    }

    fn unwatch_stream(&self, stream: &Stream) {
        self.poller.unwatch(stream.as_fd());
    }

    fn watch_device(&self, key: DeviceKey, control: &ControlSocket) -> io::Result<()> {
        self.poller.watch(Token::Device(key), control)
    }

    fn unwatch_device(&self, control: &ControlSocket) {
        self.poller.unwatch(control.as_fd());
    }

    fn witness(&self, address: &WitnessAddress) -> io::Result<WitnessClient> {
        WitnessClient::start(address)
    }

    /// Hosts that are down take their time to be so: a thread of its own waits for them.
    fn open_session(
        &self,
        applicant: Applicant<WitnessClient>,
        peers: Vec<ProtectOptions>,
        done: impl FnOnce(Result<OpenedOn<Self>, Unopened>) + Send + 'static,
    ) -> io::Result<()> {
        let tls = self.tls.clone();
        let open = move || {
            let exhausted = |error: io::Error| Err(Blocker::HostExhausted { reason: error.to_string() }.into());
            done(complete(open_first(&Tcp(tls), &applicant, peers)).unwrap_or_else(exhausted));
        };
        host_kit::thread::spawn("ft-open", needs::CALLER, open)?;
        Ok(())
    }

    fn start_sender(
        &self,
        stream: &Stream,
        term: Term,
        history: impl FnOnce() -> History + Send + 'static,
        tell: impl Fn(Sent) + Send + 'static,
    ) -> io::Result<SenderHandle> {
        SenderHandle::start(stream.try_clone()?, self.clock, term, history, tell)
    }

    fn start_receiver(
        &self,
        stream: &Stream,
        memory: Arc<dyn Memory>,
        tell: impl Fn(Received) + Send + 'static,
    ) -> io::Result<ReceiverHandle> {
        stream.read_ahead(READ_AHEAD);
        ReceiverHandle::start(stream.try_clone()?, self.clock, memory, tell)
    }
}
