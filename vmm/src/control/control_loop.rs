//! The control loop: one thread that owns the VM and does one thing at a time to it.
//!
//! In: requests of the API, signals, events of the VM. Out: calls to the [`Machine`], answers, events for the
//! monitor, the copy that the API reads. Never: work of its own; it waits in one place, for all three sources
//! at once.

mod host_failure;
mod rebuilds;
mod standby;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, at, never, select, unbounded};
use host_kit::error::chain;

use crate::api::{ApiCall, ApiError, ApiReply, ApiRequest, Shared, Snapshot, VmInfo, VmState, VmmError};
use crate::config::VmConfig;
use crate::contract::{BoxError, Machine, Part, VmEvent, VmFactory};
use crate::control::event_monitor::EventMonitor;
use crate::ft_api::Control;
use crate::vm::NotHere;
use crate::vm::VmError;
use host_kit::warn_limited;
use rebuilds::Rebuilds;

/// How the VMM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// As somebody wanted it to: exit code 0.
    Clean,
    /// The VM could not go on: exit code 1.
    Failed,
}

/// What the VMM is started with.
pub struct Parts {
    /// Puts VMs together.
    pub factory: Box<dyn VmFactory>,
    /// The event stream.
    pub monitor: EventMonitor,
    /// The copy that the API reads.
    pub shared: Arc<Shared>,
    /// Stay when the guest powers itself off.
    pub no_shutdown: bool,
}

/// The control loop.
pub struct Vmm {
    parts: Parts,
    config: Option<VmConfig>,
    live: Option<Live>,
    /// When to try again to become a standby.
    standby_retry_at: Option<Instant>,
    /// How soon, and how it went before.
    rebuilds: Rebuilds,
    /// The guest has asked for a reset while the VM was about to leave.
    reset_due: bool,
}

/// A VM that was built.
struct Live {
    machine: Arc<Mutex<dyn Machine>>,
    ft: Option<Arc<dyn Control>>,
    events: Receiver<VmEvent>,
    state: VmState,
    role: Role,
}

/// Whose VM it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It runs here.
    Own,
    /// It runs on the host that this one stands by for.
    Standby,
    /// It ran here; another host runs it now.
    Fenced,
}

impl Live {
    /// The engine, unless another host runs the VM and there is nothing to tell about it here. Whether this
    /// host runs it the engine knows best, which may just be taking over.
    fn unfenced_ft(&self) -> Option<&dyn Control> {
        self.ft.as_deref().filter(|_| self.role != Role::Fenced)
    }

    /// The machine. A panic of another thread does not make it unusable: what follows is its orderly end.
    fn machine(&self) -> MutexGuard<'_, dyn Machine + 'static> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vmm {
    /// A control loop without a VM.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        parts.monitor.event("vmm", "starting");
        Self {
            parts,
            config: None,
            live: None,
            standby_retry_at: None,
            rebuilds: Rebuilds::default(),
            reset_due: false,
        }
    }

    /// What the command line asks for before the loop starts: create, then boot or wait as a standby.
    ///
    /// # Errors
    /// When the VM cannot be built or booted. Nothing of it is left behind.
    pub fn start(&mut self, config: VmConfig) -> Result<(), ApiError> {
        let create = ApiRequest::Create(Box::new(config.clone()));
        self.handle(create)?;
        let part = self.parts.factory.part(&config, false).map_err(VmmError::Machine);
        let started = part.and_then(|part| match part {
            Part::Run => self.boot_here(),
            Part::StandBy => self.stand_by(),
        });
        self.publish();
        started.map_err(|error| ApiError::new(&ApiRequest::Boot, error))
    }

    /// Serves requests, signals and the VM's events until one of them ends the VMM.
    pub fn run(mut self, calls: &Receiver<ApiCall>, signals: &Receiver<i32>) -> Ending {
        let ending = loop {
            let events = self.live.as_ref().map_or_else(never, |live| live.events.clone());
            let again = self.standby_retry_at.map_or_else(never, at);
            let ended = select! {
                recv(again) -> _ => {
                    self.rebuild_standby();
                    None
                }
                recv(calls) -> call => call.ok().and_then(|call| self.on_call(call)),
                recv(signals) -> signal => signal.ok().map(|signal| {
                    tracing::info!("ending on signal {signal}");
                    // Whoever ends this process does not want to end a protected VM.
                    self.hand_over("pollux-vmm was told to end");
                    Ending::Clean
                }),
                recv(events) -> event => match event {
                    Ok(event) => self.on_event(event),
                    Err(_) => self.on_event(VmEvent::HostFailed { reason: "its threads are gone".to_owned() }),
                },
            };
            if let Some(ending) = ended {
                break ending;
            }
        };
        self.end_vmm();
        ending
    }

    /// Ends the VM, if there is one, and says that the VMM ends.
    pub fn end_vmm(&mut self) {
        if let Err(error) = self.delete() {
            tracing::error!("the VM did not shut down cleanly: {}", chain(&error));
        }
        self.parts.monitor.event("vmm", "shutdown");
    }

    fn on_call(&mut self, call: ApiCall) -> Option<Ending> {
        let ends = call.request == ApiRequest::VmmShutdown;
        tracing::debug!("API request {:?}", call.request);
        let answer = self.handle(call.request);
        if let Err(error) = &answer {
            warn_limited!("API request failed: {}", chain(error));
        }
        if call.reply.send(answer).is_err() {
            tracing::debug!("the client has not waited for its answer");
        }
        ends.then_some(Ending::Clean)
    }

    fn handle(&mut self, request: ApiRequest) -> Result<ApiReply, ApiError> {
        let done = match &request {
            ApiRequest::Create(config) => self.create(config),
            ApiRequest::Boot => self.boot(),
            ApiRequest::Shutdown => self.shutdown(),
            ApiRequest::Reboot => self.reboot_by_request(),
            ApiRequest::Delete => self.delete(),
            ApiRequest::Pause => self.pause(),
            ApiRequest::Resume => self.resume(),
            ApiRequest::PowerButton => self.on_running(|machine| machine.power_button()),
            ApiRequest::Nmi => self.on_running(|machine| machine.nmi()),
            ApiRequest::VmmShutdown => Ok(()),
            ApiRequest::Counters => {
                let live = self.live.as_ref().ok_or(self.absent());
                let counters = live.map(|live| ApiReply::Counters(live.machine().counters()));
                return counters.map_err(|error| ApiError::new(&request, error));
            }
        };
        self.publish();
        done.map(|()| ApiReply::Done).map_err(|error| ApiError::new(&request, error))
    }

    fn create(&mut self, config: &VmConfig) -> Result<(), VmmError> {
        if self.config.is_some() {
            return Err(VmmError::AlreadyCreated);
        }
        config.validate_limits().map_err(VmmError::Config)?;
        let mut config = config.clone();
        // Known from now on, and the same at every boot.
        config.fill_in_macs(host_kit::random::bytes).map_err(|error| VmmError::Machine(error.into()))?;
        self.config = Some(config);
        Ok(())
    }

    fn boot(&mut self) -> Result<(), VmmError> {
        if self.live.is_some() {
            return match self.running()?.state {
                VmState::Paused => self.resume(),
                state => Err(VmmError::Transition(state, VmState::Running)),
            };
        }
        let config = self.config.as_ref().ok_or(VmmError::NotCreated)?;
        config.validate().map_err(VmmError::Config)?;
        self.parts.factory.part(config, true).map_err(VmmError::Machine)?;
        self.boot_here()
    }

    /// Boots the VM, to which this host has the right.
    fn boot_here(&mut self) -> Result<(), VmmError> {
        let config = self.config.clone().ok_or(VmmError::NotCreated)?;
        config.validate().map_err(VmmError::Config)?;
        warn_ignored(&config);
        self.parts.monitor.event("vm", "booting");
        let live = self.assemble(config, Part::Run)?;
        let booted = live.machine().boot();
        if let Err(error) = booted {
            end_or_log(&live);
            return Err(VmmError::Machine(error));
        }
        if let Some(ft) = &live.ft {
            ft.vm_started();
        }
        self.live = Some(Live { state: VmState::Running, ..live });
        self.parts.monitor.event("vm", "booted");
        Ok(())
    }

    fn assemble(&mut self, config: VmConfig, part: Part) -> Result<Live, VmmError> {
        let (sender, events): (Sender<VmEvent>, _) = unbounded();
        self.reset_due = false;
        let built = self.parts.factory.assemble(config, part, sender).map_err(VmmError::Machine)?;
        Ok(Live { machine: built.machine, ft: built.ft, events, state: VmState::Created, role: Role::Own })
    }

    /// `vm.shutdown`: the VM is gone, its configuration stays.
    fn shutdown(&mut self) -> Result<(), VmmError> {
        let live = self.live.take().ok_or(VmmError::NotRunning)?;
        self.standby_retry_at = None;
        let ended = end(&live);
        self.parts.monitor.event("vm", "shutdown");
        ended
    }

    fn delete(&mut self) -> Result<(), VmmError> {
        if self.config.is_none() {
            return Ok(());
        }
        let ended = if self.live.is_some() { self.shutdown() } else { Ok(()) };
        self.config = None;
        self.parts.monitor.event("vm", "deleted");
        self.publish();
        ended
    }

    fn reboot(&mut self) -> Result<(), VmmError> {
        if self.live.is_none() {
            return Err(VmmError::NotCreated);
        }
        self.running()?;
        // A standby that has taken over may have none. Better to know before the guest is stopped.
        if self.config.as_ref().is_some_and(|config| config.payload.is_none()) {
            return Err(VmmError::NothingToBoot);
        }
        self.parts.monitor.event("vm", "rebooting");
        let reset = self.on_running(|machine| machine.reset());
        if matches!(reset, Err(VmmError::NotHere(_))) {
            return reset;
        }
        if let Some(live) = &mut self.live {
            live.state = if reset.is_ok() { VmState::Running } else { VmState::Shutdown };
        }
        reset?;
        self.parts.monitor.event("vm", "rebooted");
        Ok(())
    }

    fn pause(&mut self) -> Result<(), VmmError> {
        self.transit(VmState::Running, VmState::Paused, ["pausing", "paused"], |machine| machine.pause())
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        self.transit(VmState::Paused, VmState::Running, ["resuming", "resumed"], |machine| machine.resume())
    }

    fn transit(
        &mut self,
        from: VmState,
        to: VmState,
        [before, after]: [&str; 2],
        act: impl FnOnce(&mut dyn Machine) -> Result<(), BoxError>,
    ) -> Result<(), VmmError> {
        let state = self.running()?.state;
        if state != from {
            return Err(VmmError::Transition(state, to));
        }
        self.parts.monitor.event("vm", before);
        self.on_running(act)?;
        if let Some(live) = &mut self.live {
            live.state = to;
        }
        self.parts.monitor.event("vm", after);
        Ok(())
    }

    /// The VM, if it is booted and ours to change.
    fn running(&self) -> Result<&Live, VmmError> {
        let live = self.live.as_ref().ok_or(VmmError::NotRunning)?;
        match live.role {
            Role::Own => Ok(live),
            Role::Standby => Err(VmmError::Standby),
            Role::Fenced => Err(VmmError::Fenced),
        }
    }

    fn on_running(&self, act: impl FnOnce(&mut dyn Machine) -> Result<(), BoxError>) -> Result<(), VmmError> {
        let live = self.running()?;
        let mut machine = live.machine();
        act(&mut *machine).map_err(machine_error)
    }

    /// Why there is no VM to ask.
    fn absent(&self) -> VmmError {
        if self.config.is_some() { VmmError::NotRunning } else { VmmError::NotCreated }
    }

    fn on_event(&mut self, event: VmEvent) -> Option<Ending> {
        tracing::debug!("VM event {event:?}");
        let monitor = &self.parts.monitor;
        match event {
            VmEvent::Shutdown => return self.on_vm_end(Ending::Clean),
            VmEvent::Reset => return self.on_guest_reset(),
            VmEvent::Crashed { reason } => {
                tracing::error!("the VM cannot go on: {reason}");
                return self.on_vm_end(Ending::Failed);
            }
            VmEvent::HostFailed { reason } => return self.on_host_failure(&reason),
            VmEvent::Stays if std::mem::take(&mut self.reset_due) => return self.on_guest_reset(),
            VmEvent::Stays => {}
            VmEvent::Ft { event, properties } => {
                monitor.event_with("ft", &event, &properties);
                // Nothing of what the API reads has changed, and to look at all devices could mean to wait
                // for one.
                return None;
            }
            VmEvent::Fenced { reason } => {
                tracing::error!("the VM is stopped here: {reason}");
                self.fenced();
            }
            VmEvent::Unusable { reason } => {
                self.standby_unusable(&reason);
            }
            VmEvent::MayRun => self.boot_instead(),
            VmEvent::TakenOver { paused } => self.on_taken_over(paused),
            VmEvent::DeviceExited { id, status } => {
                tracing::error!("the process of device {id} is gone: {status}");
                let properties = [("id".to_owned(), id), ("status".to_owned(), status)].into();
                monitor.event_with("device", "exited", &properties);
            }
            VmEvent::DeviceActivated { id } => {
                monitor.event_with("virtio-device", "activated", &[("id".to_owned(), id)].into());
            }
            VmEvent::DeviceReset { id } => {
                monitor.event_with("virtio-device", "reset", &[("id".to_owned(), id)].into());
            }
        }
        self.publish();
        None
    }

    fn on_taken_over(&mut self, paused: bool) {
        let (state, event) = if paused { (VmState::Paused, "paused") } else { (VmState::Running, "resumed") };
        self.turn_into(Role::Own, state);
        if let Err(error) = self.on_running(|machine| machine.taken_over()) {
            tracing::error!("after the takeover: {}", chain(&error));
        }
        self.parts.monitor.event("vm", event);
    }

    fn turn_into(&mut self, role: Role, state: VmState) {
        if let Some(live) = &mut self.live {
            (live.role, live.state) = (role, state);
        }
    }

    fn on_guest_reset(&mut self) -> Option<Ending> {
        match self.reboot() {
            Ok(()) => {
                self.publish();
                None
            }
            // Wherever the VM goes on, this is pending. If that is here, the guest gets it.
            Err(VmmError::NotHere(place)) => {
                self.reset_due = place == NotHere::Leaving;
                self.publish();
                None
            }
            Err(error) => self.on_host_failure(&format!("the VM cannot be reset: {}", chain(&error))),
        }
    }

    /// The VM has ended by itself: so does the VMM, unless it was told to stay.
    fn on_vm_end(&mut self, ending: Ending) -> Option<Ending> {
        if !self.parts.no_shutdown {
            return Some(ending);
        }
        if let Err(error) = self.shutdown() {
            tracing::error!("the VM did not shut down cleanly: {}", chain(&error));
        }
        self.publish();
        None
    }

    /// Replaces the copy that the API reads.
    fn publish(&self) {
        let vm = self.config.as_ref().map(|config| match &self.live {
            None => VmInfo {
                config: config.clone(),
                state: VmState::Created,
                memory_actual_size: config.memory.size,
                device_tree: None,
            },
            Some(live) => {
                let machine = live.machine();
                VmInfo {
                    config: machine.config(),
                    state: live.state,
                    memory_actual_size: machine.memory_size(),
                    device_tree: Some(machine.device_tree()),
                }
            }
        });
        let ft = self.live.as_ref().and_then(|live| live.ft.clone());
        self.parts.shared.publish(Snapshot { vm, ft });
    }
}

/// Ends a VM: first its vCPUs, then, if it is ours, the standby's wish to go on with it, which must not take
/// a wanted end for a failure, then the engine, whoever still waits for an answer of it, and then everything
/// else.
fn end(live: &Live) -> Result<(), VmmError> {
    let stopped = live.machine().stop();
    if let Some(ft) = live.unfenced_ft() {
        ft.vm_ended();
    }
    if let Some(ft) = &live.ft {
        ft.end();
    }
    live.machine().shutdown().and(stopped).map_err(VmmError::Machine)
}

fn machine_error(error: BoxError) -> VmmError {
    match error.downcast::<VmError>().map(|error| *error) {
        Ok(VmError::NotHere(place)) => VmmError::NotHere(place),
        Ok(error) => VmmError::Machine(error.into()),
        Err(error) => VmmError::Machine(error),
    }
}

/// Ends a VM that did not come to life; why it did not is the error that matters.
fn end_or_log(live: &Live) {
    if let Err(error) = end(live) {
        tracing::warn!("the VM did not shut down cleanly: {}", chain(&error));
    }
}

fn warn_ignored(config: &VmConfig) {
    for field in config.ignored() {
        tracing::warn!("{field} has no effect in pollux-vmm");
    }
}
