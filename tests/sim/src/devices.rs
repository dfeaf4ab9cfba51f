//! Model devices under the real contract (`ft_wire::device_ctl`): a net card that holds frames by epoch, and
//! a disk that mirrors writes by epoch.

use std::collections::VecDeque;

use ft_proto::{Epoch, Time};
use ft_wire::device_ctl::{Command, Report};

use crate::guest::{BLOCKS, Blocks, Frame, Write};
use crate::mutation::Mutation;
use crate::network::{Payload, StreamId};
use crate::record::{Marks, Record};

/// The network card of one process.
#[derive(Debug, Default)]
pub(crate) struct Nic {
    standby: bool,
    epoch: Epoch,
    hold: bool,
    held: VecDeque<(Epoch, Frame)>,
    told: Option<Epoch>,
    sealed: bool,
    /// What the guest has sent since it was sealed.
    waiting: Vec<Frame>,
}

impl Nic {
    /// The guest sends: the frame leaves now, waits, or is held; the first one of an epoch is reported.
    pub(crate) fn send(&mut self, frame: Frame) -> (Option<Frame>, Option<Report>) {
        if self.sealed {
            self.waiting.push(frame);
            return (None, None);
        }
        if !self.hold {
            return (Some(frame), None);
        }
        self.held.push_back((self.epoch, frame));
        let first = self.told.replace(self.epoch) != Some(self.epoch);
        (None, first.then_some(Report::Held { epoch: self.epoch }))
    }

    /// Frames that are held.
    pub(crate) fn held_frames(&self) -> u64 {
        self.held.len() as u64
    }

    /// Whether frames from outside reach the guest.
    pub(crate) fn takes_input(&self) -> bool {
        !self.standby && !self.sealed
    }

    /// Whether it leaves guest memory alone.
    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Whether frames are held from now on.
    pub(crate) fn holds(&self) -> bool {
        self.hold
    }

    /// What the guest has sent while it was sealed.
    pub(crate) fn take_waiting(&mut self) -> Vec<Frame> {
        if self.sealed { Vec::new() } else { std::mem::take(&mut self.waiting) }
    }

    /// Does as told; returns the frames that leave.
    pub(crate) fn command(&mut self, command: &Command, mutation: Option<Mutation>) -> Vec<Frame> {
        match command {
            Command::Standby(on) => self.standby = *on,
            Command::Protect { epoch, hold } => {
                (self.epoch, self.hold) = (*epoch, hold.is_on());
                if !self.hold {
                    return self.leave(Epoch(u64::MAX), mutation);
                }
            }
            Command::Seal { epoch, .. } => {
                (self.epoch, self.sealed) = (epoch.next(), true);
                if mutation == Some(Mutation::ReleaseOnCut) {
                    return self.leave(*epoch, mutation);
                }
            }
            Command::Release(release) => return self.leave(release.epoch(), mutation),
            Command::Discard { after } => self.held.retain(|(epoch, _)| epoch <= after),
            Command::Start { .. } => (self.standby, self.hold, self.sealed) = (false, false, false),
            Command::Resume => self.sealed = false,
            Command::Hello { .. }
            | Command::StreamKeys(_)
            | Command::Mirror { .. }
            | Command::Unmirror
            | Command::Receive { .. }
            | Command::Own { .. }
            | Command::End(_) => {}
        }
        Vec::new()
    }

    fn leave(&mut self, until: Epoch, mutation: Option<Mutation>) -> Vec<Frame> {
        let count = self.held.iter().take_while(|(epoch, _)| *epoch <= until).count();
        let mut frames: Vec<Frame> = self.held.drain(..count).map(|(_, frame)| frame).collect();
        if mutation == Some(Mutation::NewestFirst) {
            frames.reverse();
        }
        frames
    }
}

/// What is on a host's disk: it outlives processes.
#[derive(Debug, Default)]
pub(crate) struct DiskImage {
    pub(crate) blocks: Blocks,
    pub(crate) record: Record,
    /// Whether what was called a whole copy was none.
    pub(crate) stale: bool,
}

/// Primary: writes go to a standby too.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(crate) stream: StreamId,
    /// Blocks that the background copy still has to look at; `None` when it is complete.
    pub(crate) todo: Option<Marks>,
    /// What the two images will have in common.
    pub(crate) base: u64,
    /// Epoch of the last write to each block in this session.
    pub(crate) written: [Epoch; BLOCKS],
    /// Whether anything of the running epoch went into the stream.
    pub(crate) touched: bool,
}

/// Standby: writes come from a primary.
#[derive(Debug)]
pub(crate) struct Receiver {
    pub(crate) stream: StreamId,
    synced: Option<Epoch>,
    complete: Epoch,
    /// It has been told to release until here, and may not have got to it.
    told: Epoch,
    held: VecDeque<(Epoch, Write)>,
    closed: bool,
    /// Blocks that were written since what is in the image is to be called by a new name.
    pub(crate) fresh: Marks,
    /// The primary has not said yet that it knows that name.
    pub(crate) renaming: bool,
}

/// The disk device of one process.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    pub(crate) epoch: Epoch,
    /// It leaves guest memory alone.
    pub(crate) sealed: bool,
    /// Primary: the standby's disk has not said yet what its image is.
    pub(crate) greeting: Option<StreamId>,
    pub(crate) mirror: Option<Mirror>,
    pub(crate) receiver: Option<Receiver>,
    /// Standby: the last committed epoch that the disk has something of.
    pub(crate) committed: Epoch,
    /// On their way to the image, oldest first, and when each is there.
    applying: VecDeque<(Time, usize, u64)>,
    pub(crate) last_due: Time,
}

/// Something is wrong with a mirror stream.
#[derive(Debug)]
pub(crate) struct Violation(pub(crate) &'static str);

impl Disk {
    /// When a request that comes now is done.
    pub(crate) fn due(&mut self, now: Time, latency: std::time::Duration) -> Time {
        self.last_due = self.last_due.max(now) + latency;
        self.last_due
    }

    /// It is slow no longer: what waits for it is done.
    pub(crate) fn catch_up(&mut self, now: Time) {
        self.last_due = self.last_due.min(now);
        self.applying.iter_mut().for_each(|(due, ..)| *due = (*due).min(now));
    }

    /// Lets time pass for writes on their way to the image.
    pub(crate) fn settle(&mut self, now: Time, image: &mut DiskImage) {
        while let Some((_, block, value)) = self.applying.pop_front_if(|(due, ..)| *due <= now) {
            // On stable storage before the write is.
            image.record.mark(block);
            image.blocks[block] = value;
        }
    }

    /// When the image has everything that was applied.
    pub(crate) fn drained_at(&self) -> Option<Time> {
        self.applying.back().map(|(due, ..)| *due)
    }

    /// Whether a stream was given to it.
    pub(crate) fn is_on(&self, stream: StreamId) -> bool {
        self.greeting == Some(stream)
            || self.mirror.as_ref().is_some_and(|mirror| mirror.stream == stream)
            || self.receiver.as_ref().is_some_and(|receiver| receiver.stream == stream)
    }

    /// Primary: whether it has a stream to another disk.
    pub(crate) fn is_mirrored(&self) -> bool {
        self.mirror.is_some() || self.greeting.is_some()
    }

    /// Standby: whether an epoch may be released.
    pub(crate) fn may_release(&self, epoch: Epoch) -> Result<(), String> {
        let incomplete = self.receiver.as_ref().filter(|receiver| receiver.complete < epoch);
        let why = |receiver: &Receiver| {
            format!("epoch {epoch} has not completely arrived at this disk, {} is the last one", receiver.complete)
        };
        incomplete.map_or(Ok(()), |receiver| Err(why(receiver)))
    }

    /// Standby: whether the image can be made what it was at the end of an epoch.
    pub(crate) fn may_roll_back(&self, after: Epoch) -> Result<(), String> {
        self.may_release(after)?;
        let Some(receiver) = &self.receiver else { return Err("no stream was received".to_owned()) };
        if receiver.synced.is_none_or(|synced| synced > after) {
            return Err(format!("the disk was no copy in epoch {after}"));
        }
        let unreleased = receiver.held.iter().find(|(epoch, _)| *epoch <= after);
        unreleased.map_or(Ok(()), |(epoch, _)| Err(format!("epoch {epoch} counts but was never released")))
    }

    /// Standby: it is told to release.
    pub(crate) fn tell_release(&mut self, until: Epoch) {
        if let Some(receiver) = &mut self.receiver {
            receiver.told = receiver.told.max(until);
        }
    }

    /// Standby: what it was told before comes first.
    pub(crate) fn catch_up_with_releases(&mut self, now: Time) {
        if let Some(told) = self.receiver.as_ref().map(|receiver| receiver.told) {
            self.release(told, now, std::time::Duration::ZERO);
        }
    }

    /// Standby: applies what is released.
    pub(crate) fn release(&mut self, until: Epoch, now: Time, latency: std::time::Duration) {
        let Some(receiver) = &mut self.receiver else { return };
        let count = receiver.held.iter().take_while(|(epoch, _)| *epoch <= until).count();
        let writes: Vec<_> = receiver.held.drain(..count).collect();
        for (_, write) in &writes {
            receiver.fresh[write.block] = true;
        }
        for (_, write) in writes {
            let due = self.due(now, latency);
            self.applying.push_back((due, write.block, write.value));
        }
    }

    /// Standby: nothing after this epoch counts, and nothing more is taken.
    pub(crate) fn discard(&mut self, after: Epoch) {
        if let Some(receiver) = &mut self.receiver {
            receiver.closed = true;
            receiver.held.retain(|(epoch, _)| *epoch <= after);
        }
    }

    /// Standby: the stream is over; what it brought whole stays held.
    pub(crate) fn stop_receiving(&mut self) {
        if let Some(receiver) = &mut self.receiver {
            receiver.closed = true;
            let complete = receiver.complete;
            receiver.held.retain(|(epoch, _)| *epoch <= complete);
        }
    }

    /// A stream is lost.
    pub(crate) fn lose(&mut self, stream: StreamId) {
        if self.greeting == Some(stream) {
            self.greeting = None;
        } else if self.mirror.as_ref().is_some_and(|mirror| mirror.stream == stream) {
            self.mirror = None;
        } else {
            self.stop_receiving();
        }
    }

    /// Standby: a new stream; the one before is closed.
    pub(crate) fn receive_from(&mut self, stream: StreamId) {
        let held = VecDeque::new();
        self.committed = Epoch(1);
        self.receiver = Some(Receiver {
            stream,
            synced: None,
            complete: Epoch(0),
            told: Epoch(0),
            held,
            closed: false,
            fresh: Marks::default(),
            renaming: false,
        });
    }

    /// Whether everything until the end of the epoch is here, and the image was a copy by then.
    pub(crate) fn is_complete(&self, epoch: Epoch) -> bool {
        let receiver = self.receiver.as_ref();
        receiver.is_some_and(|receiver| receiver.complete >= epoch && receiver.synced.is_some_and(|at| at <= epoch))
    }

    /// Standby: a frame arrived.
    pub(crate) fn take(
        &mut self,
        payload: Payload,
        now: Time,
        latency: std::time::Duration,
        image: &mut DiskImage,
    ) -> Result<Option<Report>, Violation> {
        let due = self.last_due.max(now) + latency;
        let Some(receiver) = self.receiver.as_mut().filter(|receiver| !receiver.closed) else { return Ok(None) };
        match payload {
            Payload::Block { block, value } if receiver.synced.is_none() => {
                receiver.fresh[block] = true;
                self.last_due = due;
                self.applying.push_back((due, block, value));
            }
            Payload::Mirrored { write, .. } if receiver.synced.is_none() => {
                receiver.fresh[write.block] = true;
                self.last_due = due;
                self.applying.push_back((due, write.block, write.value));
            }
            Payload::Mirrored { epoch, write } if epoch > receiver.complete => {
                receiver.held.push_back((epoch, write));
            }
            Payload::Begin { term, common, marks } if receiver.synced.is_none() => {
                image.record.receive(term, common, &marks);
            }
            Payload::Synced { epoch, truth, .. } if receiver.synced.is_none() => {
                receiver.synced = Some(epoch);
                (receiver.fresh, receiver.renaming) = (Marks::default(), true);
                let mut blocks = image.blocks;
                self.applying.iter().for_each(|(_, block, value)| blocks[*block] = *value);
                image.stale = blocks != truth;
            }
            Payload::DiskEnd { epoch } if epoch > receiver.complete => {
                receiver.complete = epoch;
                return Ok(Some(Report::Complete { epoch }));
            }
            _ => return Err(Violation("a frame that may not come now")),
        }
        Ok(None)
    }

    /// A takeover that forgot to discard.
    pub(crate) fn apply_everything(&mut self, now: Time) {
        self.release(Epoch(u64::MAX), now, std::time::Duration::ZERO);
    }
}
