//! The API between a client and the control loop: requests, replies, errors, and the copy of the VM's state
//! that is read without asking the loop.
//!
//! `socket` gets the listening socket, `http` turns HTTP into [`ApiRequest`]s and back, `seats` says who may
//! be connected, `audit` notes who had what done. Requests that change something pass through one queue to
//! the loop in `vmm`; `vmm.ping`, `vm.info` and everything about FT never wait for it.

mod answer;
pub mod audit;
mod error;
pub mod ft;
pub mod http;
mod seats;
pub mod socket;

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use crossbeam_channel::Sender;
pub use pollux_api::vm::{CH_VERSION, VmInfo, VmState};
use tokio::sync::oneshot;

pub use self::error::{ApiError, VmmError};
use crate::config::VmConfig;
use crate::contract::Counters;
use crate::ft_api::Control;

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

/// The copy of what the control loop last knew.
#[derive(Clone, Default)]
pub struct Snapshot {
    /// The VM, if there is one.
    pub vm: Option<VmInfo>,
    /// Its protection, if it was built.
    pub ft: Option<Arc<dyn Control>>,
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
        let gone = || ApiError::because(failure, VmmError::Ending);
        self.calls.send(ApiCall { request, reply }).map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}
