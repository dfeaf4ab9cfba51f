//! Builds real VMs for the control loop, and makes what happens in them its events.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::Sender;
use ft::{Candidate, Ft, NodeOptions, NodeTerm, PLAIN, PeerTls, Setup, StandbyOptions, TlsChoice};
use ft_proto::HostId;
use ft_proto::witness::Disks;
use host_kit::event_loop::{EventLoop, readable};
use host_kit::log_limit::{self, Limit};
use host_kit::sandbox::Needs;
use pollux_api::event::EventName;
use pollux_api::options::StartRole;
use serde_json::Value;

use crate::config::{DiskPurpose, VmConfig};
use crate::contract::{BoxError, Built, Counters, Machine, Part, VmEvent, VmFactory};
use crate::files;
use crate::ft_adapter::disk_records;
use crate::ft_adapter::guest::GuestAdapter;
use crate::ft_adapter::start_retry::{Granted, StartRequest, StartRetry};
use crate::legacy::serial::{self, Earlier};
use crate::machine::cpu::GuestEvent;
use crate::process::ChildExits;
use crate::virtio::DeviceEvent;
use crate::virtio::pci_transport::Observer;
use crate::vm::Vm;

/// So many times in a [`log_limit::PERIOD`] it is told that drivers set devices up and take them down.
const DEVICE_EVENTS_BURST: u32 = 100;

/// Builds VMs on KVM, one after the other.
#[derive(Debug, Default)]
pub struct KvmFactory {
    options: Option<NodeOptions>,
    /// What the next engine begins with; its board is that of all of them.
    setup: Setup,
    /// The right to run the VM that is built next.
    granted: Granted,
    /// What the disks had on record when that right was given.
    disks: Disks,
    /// Files that this VMM makes and removes itself.
    own_files: Vec<PathBuf>,
}

impl KvmFactory {
    /// Builds VMs of a host with these FT options; the VMM has `own_files` besides.
    ///
    /// # Errors
    /// When there are no certificates for TLS, and the VM is to be protected.
    pub fn new(options: Option<NodeOptions>, own_files: Vec<PathBuf>) -> Result<Self, BoxError> {
        let tls = PeerTls::new(options.as_ref().map_or(TlsChoice::OnlyPair, |options| options.tls.clone()));
        let mut setup = Setup { tls, ..Setup::default() };
        if let Some(options) = &options {
            match setup.tls.credentials() {
                Ok(None) => tracing::warn!(target: "ft", "{PLAIN}"),
                Ok(Some(_)) => {}
                Err(reason) => return Err(format!("--ft: {reason}").into()),
            }
            setup.peers.clone_from(&options.peers);
            setup.witness.clone_from(&options.witness);
            setup.listen.clone_from(&options.standby);
            setup.notes_disks = true;
        }
        Ok(Self { options, setup, granted: Granted::default(), disks: Disks::default(), own_files })
    }

    /// Who waits by its own decision asks on whether it has to.
    fn start_retry(&self, config: VmConfig, events: Sender<VmEvent>) -> Result<Option<StartRetry>, BoxError> {
        let decides = |options: &&NodeOptions| options.role == StartRole::Auto && options.witness.is_some();
        let Some(options) = self.options.clone().as_ref().filter(decides).cloned() else { return Ok(None) };
        let Setup { host, board, .. } = self.setup.clone();
        let request = StartRequest { options, host, config, board, granted: self.granted.clone() };
        Ok(Some(StartRetry::start(request, events)?))
    }

    /// How this host is a standby, and whether it may overwrite data that is not Pollux's.
    fn standby_options(&self) -> Result<(StandbyOptions, bool), BoxError> {
        let options = self.options.as_ref().ok_or("there is no --ft")?;
        Ok((options.standby.clone().ok_or("--ft has no listen= to wait at")?, options.overwrite))
    }

    fn grant(&self, node_term: NodeTerm) {
        *self.granted.lock().unwrap_or_else(PoisonError::into_inner) = Some(node_term);
    }

    fn granted(&self) -> Option<NodeTerm> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn build(
        &mut self,
        mut config: VmConfig,
        part: Part,
        node_term: Option<NodeTerm>,
        events: Sender<VmEvent>,
    ) -> Result<Built, BoxError> {
        let witnessed = node_term.is_some() && self.setup.witness.is_some();
        let purpose = match part {
            Part::StandBy => DiskPurpose::StandBy,
            Part::Run if witnessed => DiskPurpose::RunElected,
            Part::Run => DiskPurpose::Run,
        };
        config.disks.iter_mut().flatten().for_each(|disk| disk.purpose = purpose);
        // Before its process opens it.
        let other_data = part == Part::StandBy && disk_records::hold_other_data(&config);
        let mut machine = KvmMachine::new(config.clone(), part, events.clone())?;
        if part == Part::StandBy {
            machine.start_retry = self.start_retry(config, events.clone())?;
        }
        let guest = Box::new(GuestAdapter::new(machine.vm()?, events));
        let setup = self.setup.clone();
        let ft = match part {
            Part::Run => Ft::solo(guest, node_term.unwrap_or_else(NodeTerm::unasked), setup)?,
            Part::StandBy => {
                let (options, overwrite) = self.standby_options()?;
                let keeps_data = !overwrite && other_data;
                Ft::standby(guest, StandbyOptions { keeps_data, ..options }, setup)?
            }
        };
        Ok(Built { machine: Arc::new(Mutex::new(machine)), ft: Some(Arc::new(ft)) })
    }
}

/// What this host is called: by its operator, or by the machine and what it has of the VM.
fn host(options: &NodeOptions, config: &VmConfig) -> HostId {
    options.node.unwrap_or_else(|| {
        let images = config.disks.iter().flatten().filter_map(|disk| disk.path.as_deref());
        let mut what: Vec<String> = images.map(|path| real(path).display().to_string()).collect();
        if let Some(standby) = options.standby.as_ref().filter(|_| what.is_empty()) {
            what.push(standby.listen.to_string());
        }
        ft::default_host(&what.join("\0"))
    })
}

/// A VM that nobody was asked about, and that may be protected later: it is the one that its disks are of,
/// and goes on from there.
fn unasked(config: &VmConfig, disks: Disks) -> NodeTerm {
    let options = NodeOptions::default();
    let node = ft::incarnation_of(host(&options, config));
    NodeTerm { vm: disks.vm.unwrap_or_else(ft::new_vm), node, term: disks.state.term().next(), first: true }
}

fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

impl VmFactory for KvmFactory {
    fn part(&mut self, config: &VmConfig, boots: bool) -> Result<Part, BoxError> {
        // No more than that, if it was not so from the start: the API's thread has begun before.
        files::limit_to(config, self.options.as_ref(), &self.own_files)?;
        self.disks = disk_records::read(config);
        self.setup.vm = self.disks.vm;
        let Some(options) = &mut self.options else {
            self.grant(unasked(config, self.disks));
            return Ok(Part::Run);
        };
        ft::check_alone(options)?;
        self.setup.host = host(options, config);
        let me = Candidate { host: self.setup.host, disks: self.disks, boots, waited: false };
        let part = ft::part(options, me)?;
        // It was meant for one start, not for each one that this process sees.
        options.force = None;
        Ok(match part {
            ft::Part::Run(node_term) => {
                self.grant(node_term);
                Part::Run
            }
            ft::Part::StandBy(why) => {
                if let Some(why) = why {
                    // Seen in the events of the engine that is about to be made.
                    self.setup.board.note(EventName::StartedAsStandby, serde_json::json!({ "reason": why }));
                }
                Part::StandBy
            }
        })
    }

    fn can_stand_by(&self) -> bool {
        self.options.as_ref().is_some_and(|options| options.standby.is_some())
    }

    fn standby_failed(&self, reason: &str) {
        self.setup.board.standby_failed(reason);
    }

    fn assemble(&mut self, config: VmConfig, part: Part, events: Sender<VmEvent>) -> Result<Built, BoxError> {
        let node_term = self.granted();
        let built = self.build(config, part, node_term, events);
        if let (Err(_), Some(node_term), Some(options)) = (&built, node_term, &self.options) {
            ft::give_back(options, node_term, self.disks);
        }
        built
    }
}

/// A [`Vm`] for the control loop, with its events. Empty after `shutdown`.
pub struct KvmMachine {
    live: Option<Live>,
    /// Of a standby.
    start_retry: Option<StartRetry>,
    config: VmConfig,
}

struct Live {
    // Dropped first: it reports device processes that end, and they are about to be ended.
    _watch: EventLoop,
    vm: Vm,
}

impl KvmMachine {
    /// Builds the VM of `config`, to be this `part` of a pair.
    ///
    /// # Errors
    /// When a part cannot be had.
    pub fn new(config: VmConfig, part: Part, events: Sender<VmEvent>) -> Result<Self, BoxError> {
        let guest = events.clone();
        let earlier = match part {
            Part::Run => Earlier::Removed,
            Part::StandBy => Earlier::Kept,
        };
        let vm = Vm::new(config, earlier, Arc::new(move |event| send(&guest, event.into())))?;
        let watch = {
            let devices = vm.devices().lock().unwrap_or_else(PoisonError::into_inner);
            devices.set_observer(&observer(events.clone()));
            watch_exits(devices.child_exits().clone(), events)?
        };
        let config = vm.config().clone();
        Ok(Self { live: Some(Live { _watch: watch, vm }), start_retry: None, config })
    }

    /// The VM itself.
    ///
    /// # Errors
    /// After `shutdown`.
    pub fn vm(&mut self) -> Result<&mut Vm, BoxError> {
        match &mut self.live {
            Some(live) => Ok(&mut live.vm),
            None => Err("the VM is shut down".into()),
        }
    }
}

/// Tells of what drivers do to their devices, but not as often as a guest can do it, which is faster than
/// anybody reads of it. The counters count all of it.
fn observer(events: Sender<VmEvent>) -> Observer {
    let limit = Limit::new(DEVICE_EVENTS_BURST, log_limit::PERIOD);
    Arc::new(move |id, event| {
        if limit.admit().is_none() {
            return;
        }
        let id = id.to_owned();
        let event = match event {
            DeviceEvent::Activated => VmEvent::DeviceActivated { id },
            DeviceEvent::Reset => VmEvent::DeviceReset { id },
        };
        send(&events, event);
    })
}

impl From<GuestEvent> for VmEvent {
    fn from(event: GuestEvent) -> Self {
        match event {
            GuestEvent::Shutdown => Self::Shutdown,
            GuestEvent::Reset => Self::Reset,
            GuestEvent::Crash(reason) => Self::Crashed { reason },
            GuestEvent::HostFailed(reason) => Self::HostFailed { reason },
        }
    }
}

fn send(events: &Sender<VmEvent>, event: VmEvent) {
    if events.send(event).is_err() {
        tracing::debug!("nobody listens to the VM's events any more");
    }
}

impl Machine for KvmMachine {
    fn boot(&mut self) -> Result<(), BoxError> {
        Ok(self.vm()?.boot()?)
    }

    fn pause(&mut self) -> Result<(), BoxError> {
        Ok(self.vm()?.pause()?)
    }

    fn resume(&mut self) -> Result<(), BoxError> {
        Ok(self.vm()?.resume()?)
    }

    fn reset(&mut self) -> Result<(), BoxError> {
        Ok(self.vm()?.reset()?)
    }

    fn taken_over(&mut self) -> Result<(), BoxError> {
        self.start_retry = None;
        Ok(self.vm()?.taken_over()?)
    }

    fn stop(&mut self) -> Result<(), BoxError> {
        match &mut self.live {
            Some(live) => Ok(live.vm.stop()?),
            None => Ok(()),
        }
    }

    fn shutdown(&mut self) -> Result<(), BoxError> {
        self.start_retry = None;
        self.live = None;
        Ok(())
    }

    fn power_button(&mut self) -> Result<(), BoxError> {
        Ok(self.vm()?.power_button()?)
    }

    fn nmi(&mut self) -> Result<(), BoxError> {
        Ok(self.vm()?.nmi()?)
    }

    fn config(&self) -> VmConfig {
        self.config.clone()
    }

    fn memory_size(&self) -> u64 {
        self.config.memory.size
    }

    fn device_tree(&self) -> Value {
        let Some(live) = &self.live else { return Value::Null };
        live.vm.devices().lock().unwrap_or_else(PoisonError::into_inner).device_tree()
    }

    fn counters(&self) -> Counters {
        let Some(live) = &self.live else { return Counters::default() };
        let mut counters = live.vm.devices().lock().unwrap_or_else(PoisonError::into_inner).counters();
        if let Some(console) = live.vm.console() {
            counters.insert(serial::ID.to_owned(), [("lost_bytes".to_owned(), console.lost_bytes())].into());
        }
        counters
    }
}

/// Reports device processes that end by themselves, on a thread of its own, until it is dropped.
fn watch_exits(exits: Arc<ChildExits>, events: Sender<VmEvent>) -> io::Result<EventLoop> {
    EventLoop::start("device-watch", Needs::NOTHING, vec![readable(exits.event(), 0)], move |_| {
        for ended in exits.take() {
            send(&events, VmEvent::DeviceExited { id: ended.id, status: ended.status.to_string() });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_resets_its_device_for_ever_fills_no_queue() {
        let (sender, events) = crossbeam_channel::unbounded();
        let observer = observer(sender);
        for _ in 0..100_000 {
            observer("_disk0", DeviceEvent::Reset);
        }
        assert_eq!(events.len(), DEVICE_EVENTS_BURST as usize);
    }
}
