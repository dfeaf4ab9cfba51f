//! What receives on a standby: the engine's own intake, fed with the bytes that arrive.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use ft::guest::Memory;
use ft::sim::{Intake, Received, apply_pages};
use ft_proto::{Epoch, Time};
use ft_transport::frames::{read_body, read_header};
use ft_wire::packing::Unpacker;
use ft_wire::session::Kind;

use crate::guest::{SimMemory, Vcpu, decode};
use crate::ids::{IDS, device_of};

/// The receiving thread of a session.
pub(crate) struct Feed {
    intake: Intake,
    unpacker: Unpacker,
    memory: Arc<SimMemory>,
    tell: Box<dyn Fn(Received) + Send>,
    /// Pages are written as they arrive: a defect.
    early: bool,
    over: bool,
    disks: usize,
    /// Of each whole epoch its vCPU, and of each disk whether it has nothing of it.
    pub(crate) whole: BTreeMap<Epoch, (Vcpu, Vec<bool>)>,
}

impl Feed {
    pub(crate) fn new(
        memory: Arc<SimMemory>,
        disks: usize,
        committed: Arc<AtomicU64>,
        early: bool,
        tell: Box<dyn Fn(Received) + Send>,
    ) -> Self {
        let intake = Intake::new(memory.clone(), committed);
        let unpacker = Unpacker::new().expect("there is memory");
        Self { intake, unpacker, memory, tell, early, over: false, disks, whole: BTreeMap::new() }
    }

    /// Bytes of whole frames arrived. Returns the epochs that are whole by them.
    pub(crate) fn take(&mut self, mut bytes: &[u8], now: Time) -> Vec<Epoch> {
        let mut whole = Vec::new();
        while !bytes.is_empty() && !self.over {
            match self.step(&mut bytes, now) {
                Ok(None) => {}
                Ok(Some(received)) => {
                    if let Received::Whole(image) = &received {
                        let (_, _, vcpu) = decode(image.state());
                        let idle = (0..self.disks).map(|disk| image.is_idle(IDS[device_of(disk)])).collect();
                        self.whole.insert(image.epoch(), (vcpu, idle));
                        whole.push(image.epoch());
                    }
                    self.over = matches!(received, Received::Yielded(..) | Received::Left(..));
                    (self.tell)(received);
                }
                Err(reason) => self.end(reason),
            }
        }
        whole
    }

    fn step(&mut self, bytes: &mut &[u8], now: Time) -> Result<Option<Received>, String> {
        let mut body = Vec::new();
        let header = read_header(bytes).map_err(|error| error.to_string())?;
        read_body(bytes, &header, &mut body, &mut self.unpacker).map_err(|error| error.to_string())?;
        if self.early && header.kind == Kind::Pages {
            let _ = apply_pages(header.kind, &body, &*self.memory as &dyn Memory);
        }
        self.intake.take(&header, &mut body, now).map_err(|error| error.to_string())
    }

    /// The stream is at its end.
    pub(crate) fn end(&mut self, reason: String) {
        if !std::mem::replace(&mut self.over, true) {
            (self.tell)(Received::Ended(reason));
        }
    }
}
