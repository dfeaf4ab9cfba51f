//! The API between a client and the control loop: requests, replies, errors, and the copy of the VM's state that is read
//! without asking the loop.
//!
//! `socket` gets the listening socket, `http` turns HTTP into [`ApiRequest`]s and back. Requests that change something pass
//! through one queue to the loop in `vmm`; `vmm.ping`, `vm.info` and everything about FT never wait for it.

pub mod ft;
pub mod http;
mod seats;
pub mod socket;

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use crossbeam_channel::Sender;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::config::{ConfigError, VmConfig};
use crate::ft_api::FtControl;
use crate::gate::NotHere;
use crate::machine::{BoxError, Counters};

/// The version of Cloud Hypervisor whose API this is.
pub const CH_VERSION: &str = "53.0.0";

/// What a client can ask of the control loop.
#[derive(Clone, Debug, PartialEq)]
pub enum ApiRequest {
    /// `vm.create`
    Create(Box<VmConfig>),
    /// `vm.boot`
    Boot,
    /// `vm.shutdown`
    Shutdown,
    /// `vm.reboot`
    Reboot,
    /// `vm.delete`
    Delete,
    /// `vm.pause`
    Pause,
    /// `vm.resume`
    Resume,
    /// `vm.power-button`
    PowerButton,
    /// `vm.nmi`
    Nmi,
    /// `vm.counters`
    Counters,
    /// `vmm.shutdown`
    VmmShutdown,
}

impl ApiRequest {
    /// What did not work when it fails.
    fn failure(&self) -> &'static str {
        match self {
            Self::Create(_) => "The VM could not be created",
            Self::Boot => "The VM could not boot",
            Self::Shutdown => "The VM could not shutdown",
            Self::Reboot => "The VM could not reboot",
            Self::Delete => "The VM could not be deleted",
            Self::Pause => "The VM could not be paused",
            Self::Resume => "The VM could not resume",
            Self::PowerButton => "The power button could not be triggered",
            Self::Nmi => "The NMI could not be raised",
            Self::Counters => "The VM counters are not available",
            Self::VmmShutdown => "The VMM could not shutdown",
        }
    }
}

/// What the control loop answers when it worked.
#[derive(Clone, Debug, PartialEq)]
pub enum ApiReply {
    /// Done.
    Done,
    /// The counters that were asked for.
    Counters(Counters),
}

/// A request and where its answer goes.
#[derive(Debug)]
pub struct ApiCall {
    /// What is asked.
    pub request: ApiRequest,
    /// Takes the answer. The client may be gone.
    pub reply: oneshot::Sender<Result<ApiReply, ApiError>>,
}

/// State of a VM, spelled as in `vm.info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// Configured, not booted; also after `vm.shutdown`.
    Created,
    /// The guest runs.
    Running,
    /// Ended by the guest, not yet deleted.
    Shutdown,
    /// The guest is stopped and can go on.
    Paused,
}

/// Why a request failed: what did not work, and the reason.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
pub struct ApiError {
    failure: &'static str,
    source: VmmError,
}

impl ApiError {
    /// The failure of `request` for a reason.
    #[must_use]
    pub fn new(request: &ApiRequest, source: VmmError) -> Self {
        Self { failure: request.failure(), source }
    }

    /// The reason.
    #[must_use]
    pub fn reason(&self) -> &VmmError {
        &self.source
    }
}

/// Why the control loop did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// There is a VM already.
    #[error("VM is already created")]
    AlreadyCreated,
    /// There is no VM.
    #[error("VM is not created")]
    NotCreated,
    /// There is a VM, but it was not booted.
    #[error("VM is not running")]
    NotRunning,
    /// The VM is not in a state for this. (Text of Cloud Hypervisor.)
    #[error("Invalid transition: InvalidStateTransition({0:?}, {1:?})")]
    Transition(VmState, VmState),
    /// The configuration is wrong.
    #[error("the configuration is wrong")]
    Config(#[source] ConfigError),
    /// The VM itself failed.
    #[error(transparent)]
    Machine(BoxError),
    /// A standby was built without payload, and its guest has to boot again.
    #[error("there is nothing to boot: this VM was a standby that was given no kernel")]
    NothingToBoot,
    /// Only the primary may do this.
    #[error("this VM is a standby: it runs on the host that it protects")]
    Standby,
    /// Nobody may do this: the VM runs elsewhere.
    #[error("this VM was stopped here: another host runs it")]
    Fenced,
    /// The VM is on its way to another host, or there already.
    #[error(transparent)]
    NotHere(NotHere),
    /// No fault tolerance in this VMM.
    #[error("fault tolerance is not available")]
    FtUnavailable,
    /// The engine's reasons.
    #[error("{}", .0.join("; "))]
    Ft(Vec<String>),
    /// The control loop has ended.
    #[error("the VMM is shutting down")]
    Ending,
}

/// What `vm.info` shows.
#[derive(Clone, Debug, Serialize)]
pub struct VmInfo {
    /// The configuration, filled in once the VM was built.
    pub config: VmConfig,
    /// State.
    pub state: VmState,
    /// Memory of the guest, in bytes.
    pub memory_actual_size: u64,
    /// Devices; absent unless the VM was booted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_tree: Option<Value>,
}

/// The copy of what the control loop last knew.
#[derive(Clone, Default)]
pub struct Snapshot {
    /// The VM, if there is one.
    pub vm: Option<VmInfo>,
    /// Its protection, if it was built.
    pub ft: Option<Arc<dyn FtControl>>,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("vm", &self.vm).field("ft", &self.ft.is_some()).finish()
    }
}

/// What the API thread and the control loop share.
#[derive(Debug)]
pub struct Shared {
    snapshot: ArcSwap<Snapshot>,
    calls: Sender<ApiCall>,
}

impl Shared {
    /// Shared state whose requests go to `calls`.
    #[must_use]
    pub fn new(calls: Sender<ApiCall>) -> Arc<Self> {
        Arc::new(Self { snapshot: ArcSwap::default(), calls })
    }

    /// The last copy; never waits.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Replaces the copy.
    pub fn publish(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
    }

    /// Asks the control loop and waits, without blocking the thread, for its answer.
    ///
    /// # Errors
    /// What the control loop says, or that it is gone.
    pub async fn call(&self, request: ApiRequest) -> Result<ApiReply, ApiError> {
        let (reply, answer) = oneshot::channel();
        let failure = request.failure();
        let gone = || ApiError { failure, source: VmmError::Ending };
        self.calls.send(ApiCall { request, reply }).map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}
