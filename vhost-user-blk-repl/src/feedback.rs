//! What the standby says on the mirror stream, heard on the primary on a thread of its own: its record, which blocks
//! differ, what it has made durable, and why it refuses.

use std::io::{self, Read};

use ft_proto::Epoch;
use tracing::info;

use crate::copy::UNANSWERED;
use crate::mirror::{Body, Shared};
use crate::mirror_wire::{Answer, Frame, HEADER_LEN, Kind, decode, decode_fields};
use crate::record::Base;
use crate::record_file::new_id;
use crate::resync::Plan;

impl Shared {
    /// Listens until the stream ends, and loses it then.
    pub(crate) fn listen(&self) {
        let reason = loop {
            match self.hear().and_then(|(frame, body)| self.take(&frame, &body)) {
                Ok(None) => {}
                Ok(Some(refusal)) => break format!("the peer refused the disk: {refusal}"),
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    break "the peer closed the mirror stream".to_owned();
                }
                Err(e) => break format!("the mirror stream broke: {e}"),
            }
        };
        self.lose(&reason);
    }

    fn hear(&self) -> io::Result<(Frame, Vec<u8>)> {
        let mut stream = &self.stream;
        let mut header = [0; HEADER_LEN];
        stream.read_exact(&mut header)?;
        let pending = decode(&header).map_err(io::Error::other)?;
        let mut body = vec![0; pending.body_len()];
        stream.read_exact(&mut body)?;
        let (frame, _) = pending.finish(&body).map_err(io::Error::other)?;
        Ok((frame, body))
    }

    /// The reason, if it is a refusal.
    fn take(&self, frame: &Frame, body: &[u8]) -> io::Result<Option<String>> {
        match frame.kind {
            Kind::Refused => return Ok(Some(String::from_utf8_lossy(body).into_owned())),
            Kind::Answer if self.state().plan.is_none() => {
                self.plan(&decode_fields(frame.kind, body).map_err(io::Error::other)?)?;
            }
            Kind::Differ if self.state().differ.len() < UNANSWERED => {
                self.state().differ.push_back((frame.offset, frame.len));
                self.changed.notify_all();
            }
            Kind::Durable if self.state().naming.is_some() => self.durable(frame.epoch),
            kind => return Err(io::Error::other(format!("unexpected {kind:?} frame from the standby"))),
        }
        Ok(None)
    }

    fn plan(&self, theirs: &Answer) -> io::Result<()> {
        let ours = self.tracker.record();
        if let (Some(vm), Some(image)) = (ours.vm, theirs.vm.filter(|vm| ours.vm != Some(*vm))) {
            return Err(io::Error::other(format!(
                "the peer's image is of VM {image}, by its record, this one of VM {vm}"
            )));
        }
        let plan = Plan::new(&ours, theirs, Base(new_id()));
        let bytes: u64 = plan.ranges.iter().map(|range| range.len).sum();
        info!("{} resynchronisation of the peer's image, {bytes} bytes to look at", plan.begin.kind.name());
        self.begin(plan);
        Ok(())
    }

    /// What the standby has up to `epoch` is on stable storage there, under its new name. Takes over the name, and says so.
    fn durable(&self, epoch: Epoch) {
        let (base, busy) = {
            let state = self.state();
            let Some(base) = state.naming.filter(|_| state.synced) else { return };
            (base, Self::being_written(&state))
        };
        let settled = self.tracker.settle(self.number, epoch, base, &busy);
        let mut state = self.state();
        state.naming = None;
        if settled {
            let frame = Frame { kind: Kind::Renamed, epoch: state.epoch, offset: 0, len: 0 };
            self.push(&mut state, frame, Body::None);
        }
    }
}
