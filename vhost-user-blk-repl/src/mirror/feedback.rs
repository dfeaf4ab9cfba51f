//! The thread that reads the standby's answers on the mirror stream: its record, which blocks differ, what it
//! has on stable storage, or a refusal. The copy and the sending thread get theirs through channels, which
//! close when this thread ends.

use std::io;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};
use ft_proto::{Epoch, VmId};
use ft_transport::mirror::ReadError;
use ft_wire::mirror::{Answer, Begin, Kind, WireError, decode_fields};
use tracing::info;

use crate::mirror::plan::Plan;
use crate::mirror::stream::Stream;
use crate::record::{Base, new_id};
use crate::tracker::PrimarySession;

/// Chunks whose hashes may be under way: both sides hash at the same time.
pub const UNANSWERED: usize = 16;

/// The answers that the copy waits for.
pub struct Answers {
    /// How the images are made equal, and which ranges are compared or copied. Comes first.
    pub plan: Receiver<Plan>,
    /// Answers to hashes: where, and which blocks differ.
    pub differ: Receiver<(u64, u64)>,
}

/// Why the stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the peer closed the mirror stream")]
    Closed,
    #[error("the mirror stream broke: {0}")]
    Read(io::Error),
    #[error("the mirror stream broke: {0}")]
    Wire(#[from] WireError),
    #[error("the mirror stream broke: unexpected {0:?} frame from the standby")]
    Unexpected(Kind),
    #[error("the mirror stream broke: the peer's image is of VM {theirs}, by its record, this one of VM {ours}")]
    OtherVm { ours: VmId, theirs: VmId },
    #[error("the peer refused the disk: {0}")]
    Refused(String),
}

impl From<ReadError> for End {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::Closed | ReadError::Truncated => Self::Closed,
            ReadError::Io(e) => Self::Read(e),
            ReadError::Wire(e) => Self::Wire(e),
        }
    }
}

/// The thread's state.
pub struct Feedback {
    stream: Arc<Stream>,
    record: Arc<PrimarySession>,
    /// Where the plan goes; `None` once the peer has answered the greeting.
    unplanned: Option<(Sender<Begin>, Sender<Plan>)>,
    differ: Sender<(u64, u64)>,
}

impl Feedback {
    /// On this stream; also returns what the sending thread and the copy wait for.
    #[must_use]
    pub fn new(stream: Arc<Stream>, record: Arc<PrimarySession>) -> (Self, Receiver<Begin>, Answers) {
        let ((begin, begins), (plan, plans), (differ, differs)) = (bounded(1), bounded(1), bounded(UNANSWERED));
        let feedback = Self { stream, record, unplanned: Some((begin, plan)), differ };
        (feedback, begins, Answers { plan: plans, differ: differs })
    }

    /// Listens until the stream ends, and loses it then.
    pub fn run(mut self) {
        let end = loop {
            if let Err(end) = self.take_frame() {
                break end;
            }
        };
        self.stream.lose(&end.to_string());
    }

    fn take_frame(&mut self) -> Result<(), End> {
        let (frame, body, _) = self.stream.socket().read()?;
        let unexpected = Err(End::Unexpected(frame.kind));
        match frame.kind {
            Kind::Refused => Err(End::Refused(String::from_utf8_lossy(&body).into_owned())),
            Kind::Answer => match self.unplanned.take() {
                Some((begin, plan)) => self.plan(&decode_fields(frame.kind, &body)?, &begin, &plan),
                None => unexpected,
            },
            Kind::Differ => self.differ.try_send((frame.offset, frame.len)).or(unexpected),
            Kind::Durable if self.stream.with(|state| state.is_naming()) => {
                self.durable(frame.epoch);
                Ok(())
            }
            _ => unexpected,
        }
    }

    fn plan(&self, theirs: &Answer, begin: &Sender<Begin>, copy: &Sender<Plan>) -> Result<(), End> {
        let ours = self.record.record();
        if let (Some(ours), Some(theirs)) = (ours.vm, theirs.vm.filter(|vm| ours.vm != Some(*vm))) {
            return Err(End::OtherVm { ours, theirs });
        }
        let plan = Plan::new(&ours, theirs, Base(new_id()));
        let bytes: u64 = plan.ranges.iter().map(|range| range.len).sum();
        info!("{} resynchronisation of the peer's image, {bytes} bytes to look at", plan.begin.kind.name());
        self.stream.with(|state| state.begin_naming(Base(plan.begin.base)));
        // Fails only when the stream has ended.
        let _ = begin.send(plan.begin.clone());
        let _ = copy.send(plan);
        Ok(())
    }

    /// The standby has everything up to `epoch` on stable storage, under a new name. Records the name here,
    /// too, and confirms.
    fn durable(&self, epoch: Epoch) {
        let Some((base, busy)) = self.stream.with(|state| state.named()) else { return };
        let settled = self.record.settle(epoch, base, &busy);
        self.stream.update(|state| state.end_naming(settled));
    }
}
