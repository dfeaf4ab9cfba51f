//! The life of a device process: from sockets to the end, which comes once and leaves nothing behind.

use std::io;
use std::sync::{Mutex, PoisonError, mpsc};

use host_kit::capabilities::{self, Capability};
use host_kit::landlock::{self, Access, Others, Place, around};
use host_kit::namespaces::{self, Left};
use host_kit::sandbox::{self, Needs};
use nix::sys::signal::{SigSet, Signal};

use crate::args::{Common, Endpoint};
use crate::device::Device;
use crate::ends::{End, Ends};
use crate::error::ProcessError;
use crate::served::Served;
use crate::sockets::{ControlSocket, RemoveAtEnd, VhostSocket};

/// What is left to do at the end: files of sockets are removed.
const LAST: Needs = Needs::FILES;

/// A process whose sockets are open.
pub struct Process {
    vhost: VhostSocket,
    control: Option<ControlSocket>,
    ends: Ends,
    ended: mpsc::Receiver<End>,
    signals: SigSet,
}

impl Process {
    /// Blocks the signals that end the process, for this thread and those that it starts, then binds or takes
    /// over the sockets: call it before any thread is started, and when everything is open that the device
    /// has. From here on there are no files but those at `places`, where those of the sockets are added, and
    /// no network, and a process of root has no capabilities but `kept`.
    ///
    /// # Errors
    /// See [`ProcessError`].
    pub fn open(common: &Common, mut places: Vec<Place>, kept: &[Capability]) -> Result<Self, ProcessError> {
        let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
        signals.thread_block().map_err(|e| refused("signals cannot be blocked")(e.into()))?;
        let vhost = VhostSocket::open("--socket", &common.socket)?;
        let control = common.ft_ctl.as_ref().map(|at| ControlSocket::open("--ft-ctl", at)).transpose()?;
        let by_path = [Some(&common.socket), common.ft_ctl.as_ref()].into_iter().flatten().filter_map(Endpoint::path);
        // They are removed at the end.
        places.extend(by_path.map(|path| (around(path), Access::Write)));
        let left = namespaces::leave(&places, kept).map_err(refused("the host's namespaces cannot be left"))?;
        let kept = if left == Left::AsAnotherUser { &[] } else { kept };
        capabilities::keep(kept).map_err(refused("capabilities cannot be given up"))?;
        landlock::limit(&places, Others::OutOfReach).map_err(refused("files cannot be limited"))?;
        let (sender, ended) = mpsc::channel();
        let sender = Mutex::new(sender);
        let ends = Ends::new(move |end| {
            // Nobody listens when the end has come already.
            let _ = sender.lock().unwrap_or_else(PoisonError::into_inner).send(end);
        });
        Ok(Self { vhost, control, ends, ended, signals })
    }

    /// Serves until the frontend disconnects, the ft-ctl link closes or a signal comes. Whichever of them it
    /// is, the end is here: nothing is left to be done when this returns.
    ///
    /// # Errors
    /// When the device cannot start, or the frontend breaks the protocol.
    pub fn serve<D: Device>(self, mut device: Served<D>) -> Result<(), ProcessError> {
        let Self { vhost, control, ends, ended, signals } = self;
        let with_control = control.is_some();
        let files = [vhost.file(), control.as_ref().map(ControlSocket::file).unwrap_or_default()];
        let _files = RemoveAtEnd(files);
        if let Some(control) = control {
            device.connect(control, ends.clone())?;
        }
        let told = ends.clone();
        let wait = move || {
            if let Ok(signal) = signals.wait() {
                told.tell(End::Signal(signal));
            }
        };
        host_kit::thread::spawn("signals", Needs::NOTHING, wait).map_err(refused("a thread cannot be started"))?;
        let inner = device.inner();
        let serve = move || {
            let accepted = device.accept(vhost, with_control);
            ends.tell(End::Frontend(accepted.and_then(|()| device.wait())));
        };
        host_kit::thread::spawn("frontend", frontend_needs::<D>(with_control), serve)
            .map_err(refused("a thread cannot be started"))?;
        sandbox::confine(D::NEEDS | LAST).map_err(refused("system calls cannot be filtered"))?;
        let result = match ended.recv() {
            Ok(End::Frontend(result)) => result,
            Ok(End::Signal(signal)) => {
                tracing::info!("{signal}: ending");
                Ok(())
            }
            Ok(End::Vmm) | Err(_) => Ok(()),
        };
        inner.lock().unwrap_or_else(PoisonError::into_inner).close();
        Ok(result?)
    }
}

/// It takes memory, descriptors and addresses from the frontend, with a thread of the library's.
fn frontend_needs<D: Device>(with_control: bool) -> Needs {
    let relay = if with_control { Needs::NOTHING } else { Needs::NETWORK };
    D::NEEDS | Needs::ACCEPT | Needs::MESSAGES | Needs::SHARED_MEMORY | Needs::THREADS | Needs::FILES | relay
}

fn refused(what: &'static str) -> impl FnOnce(io::Error) -> ProcessError {
    move |source| ProcessError::Host { what, source }
}
