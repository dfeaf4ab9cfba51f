//! A virtio device whose queues are served by a vhost-user backend: one code for disks, network cards and all
//! others.
//!
//! In: the driver's set-up, kicks of the control queue. Out: requests on the [`Link`]. Network cards have
//! their control queue here, everything else is done by the backend.

use std::borrow::Cow;
use std::sync::Arc;

use ft_wire::device_ctl::QueueState;
use vmm_sys_util::eventfd::EventFd;

use crate::machine::memory::guest::GuestRam;
use crate::vhost_user::error::VhostUserError;
use crate::vhost_user::link::{Link, Start};
use crate::vhost_user::log::DirtyLog;
use crate::vhost_user::net_control::{self, Command};
use crate::vhost_user::offer::{Kind, Offer};
use crate::virtio::local_queue::LocalQueue;
use crate::virtio::state::DeviceState;
use crate::virtio::{ActiveQueue, F_EVENT_IDX, F_VERSION_1, VirtioDevice, VirtioError};

/// What the driver has set up.
struct Active {
    features: u64,
    /// Indices of the queues that the backend serves.
    queues: Vec<u16>,
}

/// The device.
pub struct VhostUserDevice {
    id: String,
    offer: Offer,
    link: Link,
    ram: GuestRam,
    log: Arc<DirtyLog>,
    log_on: bool,
    active: Option<Active>,
    positions: Vec<QueueState>,
    /// Network: the control queue, while the driver uses it.
    control: Option<LocalQueue>,
    /// Network: queue pairs in use.
    pairs: u16,
}

impl VhostUserDevice {
    /// A device of `kind` with `queues` queues of at most `queue_size` entries on the backend behind `link`.
    ///
    /// # Errors
    /// When the backend does not do virtio 1, or does not tell its configuration.
    pub fn new(
        id: &str,
        kind: Kind,
        mut link: Link,
        queues: (usize, u16),
        ram: &GuestRam,
        log: Arc<DirtyLog>,
    ) -> Result<Self, VhostUserError> {
        if link.features() & F_VERSION_1 == 0 {
            return Err(link.unsuitable("does not offer VIRTIO_F_VERSION_1"));
        }
        let offer = Offer::new(kind, link.features(), queues, |bytes| link.config(bytes))?;
        Ok(Self {
            id: id.to_owned(),
            positions: Vec::with_capacity(offer.queue_sizes().len()),
            offer,
            link,
            ram: ram.clone(),
            log,
            log_on: false,
            active: None,
            control: None,
            pairs: 1,
        })
    }

    /// Features that the driver has taken, while there is one.
    fn driver_features(&self) -> u64 {
        self.active.as_ref().map_or(0, |active| active.features)
    }

    /// Whether `queue` is the control queue for the driver that is there.
    fn is_control(&self, queue: u16) -> bool {
        self.active.is_some() && self.offer.control_queue(self.driver_features()) == Some(queue)
    }

    fn position(&self, index: u16) -> Option<QueueState> {
        self.positions.iter().find(|position| position.index == index).copied()
    }

    /// Remembers where the control queue stands; the backend knows nothing of it.
    fn note_control_position(&mut self) {
        let Some(position) = self.control.as_ref().map(LocalQueue::position) else { return };
        match self.positions.iter_mut().find(|known| known.index == position.index) {
            Some(known) => *known = position,
            None => self.positions.push(position),
        }
    }

    fn carry_out(&mut self, command: Command) -> bool {
        match command {
            Command::AnnounceAck => {
                self.offer.set_announce(false, 0);
                true
            }
            Command::SetPairs(pairs) => self.set_pairs(pairs).unwrap_or_else(|e| {
                host_kit::log_limited!(error, device = self.id, "cannot change the number of queue pairs: {e}");
                false
            }),
        }
    }

    fn set_pairs(&mut self, pairs: u16) -> Result<bool, VhostUserError> {
        let Some(active) = &self.active else { return Ok(false) };
        if !self.offer.has_pairs(pairs, active.features) {
            return Ok(false);
        }
        self.link.enable(active.queues.iter().map(|queue| (*queue, queue / 2 < pairs)))?;
        self.pairs = pairs;
        Ok(true)
    }

    fn start(&mut self, features: u64, queues: &[ActiveQueue], resume: bool) -> Result<(), VirtioError> {
        let mut vrings = Vec::with_capacity(queues.len());
        for queue in queues {
            let index = queue.ring.index;
            let base = if resume {
                let position = self.position(index);
                let missing = || VirtioError::Differs(format!("the position of queue {index} is missing"));
                position.ok_or_else(missing)?.next_avail
            } else {
                0
            };
            vrings.push(Start { queue, base, enabled: self.offer.is_served(index, self.pairs) });
        }
        Ok(self.link.start(features, &vrings, &self.ram, self.log_on)?)
    }
}

impl VirtioDevice for VhostUserDevice {
    fn device_type(&self) -> u32 {
        self.offer.device_type()
    }

    fn queue_sizes(&self) -> &[u16] {
        self.offer.queue_sizes()
    }

    fn features(&self) -> u64 {
        self.offer.features()
    }

    fn config(&self) -> &[u8] {
        self.offer.config()
    }

    /// Nothing that is offered has a writable field.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    fn has_doorbell(&self, queue: u16) -> bool {
        !self.is_control(queue)
    }

    fn activate(&mut self, features: u64, mut queues: Vec<ActiveQueue>, resume: bool) -> Result<(), VirtioError> {
        if !resume {
            self.positions.clear();
            self.pairs = 1;
        }
        let control =
            self.offer.control_queue(features).and_then(|index| queues.iter().position(|q| q.ring.index == index));
        let control = control.map(|at| queues.swap_remove(at));
        self.start(features, &queues, resume)?;
        if let Some(queue) = control {
            let start = QueueState { index: queue.ring.index, ..Default::default() };
            let position = self.position(queue.ring.index).unwrap_or(start);
            self.control = Some(LocalQueue::new(queue, position, features & F_EVENT_IDX != 0, &self.ram)?);
            self.note_control_position();
        }
        let queues = queues.iter().map(|queue| queue.ring.index).collect();
        self.active = Some(Active { features, queues });
        Ok(())
    }

    fn notify(&mut self, queue: u16) -> Result<(), VirtioError> {
        if !self.is_control(queue) {
            return Ok(());
        }
        // Out of its place while it is served, since commands change the device.
        let Some(mut control) = self.control.take() else { return Ok(()) };
        let served = control.serve(|chain, ram| net_control::serve(chain, ram, |command| self.carry_out(command)));
        self.control = Some(control);
        self.note_control_position();
        served
    }

    fn set_call(&mut self, queue: u16, call: EventFd) -> Result<(), VirtioError> {
        if self.is_control(queue) {
            if let Some(control) = &mut self.control {
                control.set_call(call);
            }
        } else if self.is_set_up(queue) {
            self.link.set_call(queue, &call)?;
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), VirtioError> {
        self.positions.clear();
        self.control = None;
        self.pairs = 1;
        self.offer.set_announce(false, 0);
        match self.active.take() {
            Some(active) => Ok(self.link.stop(active.queues.into_iter())?),
            None => Ok(()),
        }
    }

    fn pause(&mut self, paused: bool) -> Result<(), VirtioError> {
        let Some(active) = &self.active else { return Ok(()) };
        let served = |queue: u16| !paused && self.offer.is_served(queue, self.pairs);
        let vrings: Vec<_> = active.queues.iter().map(|queue| (*queue, served(*queue))).collect();
        Ok(self.link.enable(vrings.into_iter())?)
    }

    fn set_dirty_log(&mut self, on: bool) -> Result<(), VirtioError> {
        if let (true, Some(missing)) = (on, self.link.lacks_for_log()) {
            return Err(VirtioError::NoDirtyLog { id: self.id.clone(), missing });
        }
        if on || self.log_on {
            let running = self.active.as_ref().map(|active| active.features);
            self.link.set_log(&self.log, on, running)?;
        }
        self.log_on = on;
        Ok(())
    }

    fn set_positions(&mut self, queues: &[QueueState]) {
        self.positions.clear();
        self.positions.extend_from_slice(queues);
        // A queue that was set up after the seal is where it was started: nothing of it was served yet.
        for index in self.active.iter().flat_map(|active| &active.queues) {
            if queues.iter().all(|queue| queue.index != *index) {
                self.positions.push(QueueState { index: *index, ..Default::default() });
            }
        }
        self.note_control_position();
    }

    fn is_set_up(&self, queue: u16) -> bool {
        self.active.as_ref().is_some_and(|active| active.queues.contains(&queue))
    }

    fn state(&self) -> DeviceState<'_> {
        DeviceState {
            config: Cow::Borrowed(self.offer.config()),
            features: self.offer.features(),
            positions: Cow::Borrowed(&self.positions),
            pairs: self.pairs,
        }
    }

    fn set_state(&mut self, state: &DeviceState<'_>, features: u64) -> Result<(), VirtioError> {
        self.offer.adopt(state, features)?;
        self.positions.clear();
        self.positions.extend_from_slice(&state.positions);
        self.pairs = state.pairs.max(1);
        Ok(())
    }

    fn moved(&mut self) {
        self.offer.set_announce(true, self.driver_features());
    }
}
