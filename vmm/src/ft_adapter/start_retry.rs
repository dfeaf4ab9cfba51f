//! A host that waits for another one that may never come: asks repeatedly whether it may run the VM itself
//! by now.
//!
//! In: the disks' records, the witness, the other hosts, by way of [`ft::part`]. Out: [`VmEvent::MayRun`],
//! once. Never: a question while a primary's session is open, or a part of a copy is here.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use ft::{Candidate, NodeOptions, NodeTerm};
use ft_proto::HostId;
use host_kit::sandbox::Needs;
use pollux_api::event::EventName;
use pollux_api::status::State;
use serde_json::json;

use crate::config::VmConfig;
use crate::contract::VmEvent;
use crate::ft_adapter::disk_records;

/// Between two questions.
const AGAIN: Duration = Duration::from_secs(2);

/// To ask the other hosts and the witness, and the disk program, which it has started.
const NEEDS: Needs = ft::needs::CALLER.union(Needs::CHILDREN);

/// The right to run the VM that is built next, if somebody has it.
pub type Granted = Arc<Mutex<Option<NodeTerm>>>;

/// The thread that asks; dropping it ends it.
pub struct StartRetry {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What it needs to ask.
pub struct StartRequest {
    /// How this host takes part.
    pub options: NodeOptions,
    /// Its name.
    pub host: HostId,
    /// The VM.
    pub config: VmConfig,
    /// Where the status of the engine that waits is, and events go.
    pub board: ft::Board,
    /// Where the right is put.
    pub granted: Granted,
}

impl StartRetry {
    /// Begins to ask, after the first pause.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(request: StartRequest, events: Sender<VmEvent>) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let thread = host_kit::thread::spawn("ft-start", NEEDS, move || {
            if let Some(node_term) = request.run(&stopped) {
                *request.granted.lock().unwrap_or_else(PoisonError::into_inner) = Some(node_term);
                // A VM that ends at this moment gives the right back when the next one is built, or not.
                let _ = events.send(VmEvent::MayRun);
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for StartRetry {
    fn drop(&mut self) {
        self.stop = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that asks who may run the VM has panicked");
        }
    }
}

impl StartRequest {
    /// Asks until it is granted or told to stop.
    fn run(&self, stopped: &Receiver<()>) -> Option<NodeTerm> {
        let (mut told, mut since) = (None, Instant::now());
        while stopped.recv_timeout(AGAIN) == Err(RecvTimeoutError::Timeout) {
            if self.board.status().state != State::StandbyEmpty {
                since = Instant::now();
                continue;
            }
            let waited = self.options.blackout_wait.is_some_and(|wait| since.elapsed() >= wait);
            let disks = disk_records::read(&self.config);
            let me = Candidate { host: self.host, disks, boots: false, waited };
            let why = match ft::part(&self.options, me) {
                Ok(ft::Part::Run(node_term)) => return Some(node_term),
                Ok(ft::Part::StandBy(why)) => why.unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            if told.as_ref() != Some(&why) {
                self.board.note(EventName::StartedAsStandby, json!({ "reason": why }));
                told = Some(why);
            }
        }
        None
    }
}
