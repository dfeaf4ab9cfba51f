//! What the engine stands on: time, threads, sockets, device processes, the witness. Production has
//! [`linux::Linux`]; the simulator brings a platform in virtual time, and runs the same executor on it.
//!
//! Everything behind this trait either answers at once, or later with a message for the executor. Rules
//! live above it.

pub(crate) mod linux;
pub(crate) mod poller;

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use ft_proto::{Settings, Term, Time};
use ft_transport::connection::Connection;
use ft_transport::heartbeats::Heartbeats;
use host_kit::cpu_load::CpuLoad;

use crate::devices::DeviceKey;
use crate::devices::control::DeviceControl;
use crate::guest::Memory;
use crate::identity::SessionKey;
use crate::options::ProtectOptions;
use crate::peers::application::{Applicant, Opened, Unopened};
use crate::stream::ends::{Received, ReceivingEnd, SendingEnd, Sent};
use crate::stream::history::History;
use crate::witness::{AskWitness, WitnessAddress};

/// A session that has been opened on a platform.
pub type OpenedOn<P> = Opened<<P as Platform>::Connection, <<P as Platform>::Beats as Heartbeats>::Sockets>;

/// What the engine stands on.
pub trait Platform: Debug + Sized + Send + 'static {
    /// A stream between the hosts.
    type Connection: Connection;
    /// The way to a device process, and what it can be given a stream by.
    type Control: DeviceControl<Stream = Self::Connection>;
    /// Heartbeats of this node.
    type Beats: Heartbeats;
    /// The way to the witness.
    type Witness: AskWitness;
    /// What sends a primary's jobs. Dropped, it breaks the stream.
    type Sender: SendingEnd;
    /// What receives them on the standby. Dropped, it breaks the stream.
    type Receiver: ReceivingEnd;

    /// The time.
    fn now(&self) -> Time;

    /// Names a session that begins, and draws its secret.
    fn draw_session(&self) -> SessionKey;

    /// The settings of a session that begins. Only the simulator changes what no operator sets.
    fn tune(&self, settings: Settings) -> Settings {
        settings
    }

    /// Whether what this thread does from now on is waited for.
    fn set_realtime(&self, on: bool);

    /// Where this thread works from now on. `None`: anywhere.
    fn pin_to_cpu(&self, cpu: Option<u16>);

    /// How busy the processors are. `None`: they are all alike.
    fn cpu_load(&self) -> Option<CpuLoad>;

    /// What the stream brings is read from now on.
    ///
    /// # Errors
    /// When it cannot be waited for.
    fn watch_stream(&self, stream: &Self::Connection) -> io::Result<()>;

    /// And no more. One that was not watched is none.
    fn unwatch_stream(&self, stream: &Self::Connection);

    /// What the device reports is read from now on.
    ///
    /// # Errors
    /// When it cannot be waited for.
    fn watch_device(&self, key: DeviceKey, control: &Self::Control) -> io::Result<()>;

    /// And no more. One that was not watched is none.
    fn unwatch_device(&self, control: &Self::Control);

    /// The way to this witness. Nothing is asked yet.
    ///
    /// # Errors
    /// When there is no thread for it.
    fn witness(&self, address: &WitnessAddress) -> io::Result<Self::Witness>;

    /// Has `peers` asked one after the other for a session; what comes of it goes to `done`.
    ///
    /// # Errors
    /// When there is no thread for it.
    fn open_session(
        &self,
        applicant: Applicant<Self::Witness>,
        peers: Vec<ProtectOptions>,
        done: impl FnOnce(Result<OpenedOn<Self>, Unopened>) + Send + 'static,
    ) -> io::Result<()>;

    /// Begins to send on a session's stream. `history` may take a while to make; what becomes of jobs goes
    /// to `tell`.
    ///
    /// # Errors
    /// When there is no thread for it.
    fn start_sender(
        &self,
        stream: &Self::Connection,
        term: Term,
        history: impl FnOnce() -> History + Send + 'static,
        tell: impl Fn(Sent) + Send + 'static,
    ) -> io::Result<Self::Sender>;

    /// Begins to receive from a session's stream into `memory`; what comes goes to `tell`.
    ///
    /// # Errors
    /// When there is no thread for it.
    fn start_receiver(
        &self,
        stream: &Self::Connection,
        memory: Arc<dyn Memory>,
        tell: impl Fn(Received) + Send + 'static,
    ) -> io::Result<Self::Receiver>;
}
