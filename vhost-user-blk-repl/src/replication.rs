//! The disk's part in replication: the record of its image, the stream to the peer or from it, and the VMM,
//! which is told what becomes of them.
//!
//! In: what the VMM wants of streams and record, on the vhost worker thread. Out: reports. Never: the guest's
//! requests; those are `serve`'s, which asks here for room in the mirror and for marks.

use std::collections::HashSet;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use device_kit::Vmm;
use device_kit::control::Reporter;
use ft_proto::{Epoch, Term, VmId};
use ft_transport::mirror::MirrorStream;
use ft_wire::device_ctl::Report;
use tracing::{error, warn};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::image::{Image, OpError};
use crate::mirror::{Mirror, Settings};
use crate::receive::{Applier, Disk, Receiver};
use crate::record::Opened;
use crate::session::Session;
use crate::tracker::{Ticket, Tracker};

/// Record and streams of one image.
pub struct Replication {
    tracker: Tracker,
    /// Signalled when the mirror has room again or is lost, when the record is written or cannot be, and
    /// when the image has failed.
    wake: Arc<EventFd>,
    mirror: Option<Mirror>,
    receiver: Option<Receiver>,
    applier: Option<Arc<Applier>>,
    /// The change that says that this host owns the image, until it is on stable storage.
    owning: Option<Ticket>,
    vmm: Vmm,
    failed: bool,
}

impl Replication {
    /// Of `image`, with the record that was found beside it.
    ///
    /// # Errors
    /// When the kernel refuses a thread or an eventfd.
    pub fn new(image: Arc<dyn Image>, record: Option<Opened>) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        Ok(Self {
            tracker: Tracker::new(record, image, wake.clone())?,
            wake,
            mirror: None,
            receiver: None,
            applier: None,
            owning: None,
            vmm: Vmm::default(),
            failed: false,
        })
    }

    /// The image, as it is to be used.
    #[must_use]
    pub fn image(&self) -> &Arc<dyn Image> {
        self.tracker.image()
    }

    /// Its record.
    #[must_use]
    pub fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    /// The stream to the peer, while there is one.
    #[must_use]
    pub fn mirror(&self) -> Option<&Mirror> {
        self.mirror.as_ref()
    }

    /// The VMM.
    pub fn vmm(&mut self) -> &mut Vmm {
        &mut self.vmm
    }

    /// Tells the VMM.
    pub fn report(&self, report: &Report) {
        self.vmm.report(report);
    }

    /// The disk cannot serve the VM any more. Reported once.
    pub fn fail(&mut self, reason: &str) {
        if !mem::replace(&mut self.failed, true) {
            error!("{reason}");
            self.report(&Report::Failed { reason: reason.to_owned() });
        }
    }

    /// The mirror stream, of either direction, cannot be used.
    pub fn lost(&self, reason: &str) {
        warn!("mirror stream: {reason}");
        self.report(&Report::MirrorLost { reason: reason.to_owned() });
    }

    /// Readable when [`Replication::take_news`] has something.
    #[must_use]
    pub fn wake_event(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// Looks at what has become of mirror and record. True: the mirror is lost, and the guest hears of
    /// failures from here on.
    #[must_use]
    pub fn take_news(&mut self) -> bool {
        let _ = self.wake.read();
        let lost = self.mirror.as_ref().is_some_and(Mirror::is_lost);
        if lost {
            self.mirror = None;
        }
        lost
    }

    /// Reports what has become of changes of the record, and of the image on its way to stable storage.
    pub fn report_record(&mut self) {
        self.report_owned();
        if let Some(failure) = self.tracker.image_failure() {
            self.fail(&failure);
        }
        if let Some(trouble) = self.tracker.take_trouble() {
            self.fail(&trouble.to_string());
        }
    }

    /// `vm` runs from this image in `term`. Reported once that is on stable storage; the guest's reads do not
    /// wait for it.
    pub fn own(&mut self, vm: VmId, term: Term) {
        match self.tracker.own(vm, term) {
            Ok(ticket) => {
                self.owning = Some(ticket);
                self.report_owned();
            }
            Err(e) => self.fail(&e.to_string()),
        }
    }

    fn report_owned(&mut self) {
        let Some(outcome) = self.owning.and_then(|ticket| self.tracker.outcome(ticket)) else { return };
        self.owning = None;
        match outcome {
            Ok(()) => self.report(&Report::Owned),
            Err(e) => self.fail(&e.to_string()),
        }
    }

    /// The VM is shut down in `term`, and this is its newest image. Blocks until that is on stable storage.
    pub fn end_vm(&self, term: Term) {
        match self.tracker.end(term) {
            Ok(()) => self.report(&Report::Ended),
            Err(e) => warn!("{e}"),
        }
    }

    /// This host runs the VM now, from the last epoch that was released.
    pub fn take_over(&self) {
        self.tracker.take_over();
        self.report(&Report::Started);
    }

    /// Begins to mirror to the peer on `stream`; `before` are writes that are not in the image yet.
    pub fn start_mirror(&mut self, stream: MirrorStream, settings: Settings, before: HashSet<u64>) {
        (self.mirror, self.failed) = (None, false);
        if let Some(failure) = self.tracker.image_failure() {
            return self.lost(&failure);
        }
        let Some(reports) = self.vmm.reporter().map(Session::new) else { return };
        let (image, wake) = (self.image().clone(), self.wake.clone());
        match Mirror::new(stream, settings, image, before, reports, (self.tracker.clone(), wake)) {
            Ok(mirror) => self.mirror = Some(mirror),
            Err(e) => self.lost(&format!("cannot use the stream: {e}")),
        }
    }

    /// What the mirror sends belongs to `epoch` from now on.
    pub fn set_epoch(&self, epoch: Epoch) {
        if let Some(mirror) = &self.mirror {
            mirror.set_epoch(epoch);
        }
    }

    /// `epoch` is over, and `next` follows. Whether nothing of it is on the stream.
    pub fn end_epoch(&self, epoch: Epoch, next: Epoch) -> bool {
        self.mirror.as_ref().is_some_and(|mirror| mirror.end(epoch, next))
    }

    /// Bytes that wait for a release, on either side.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.mirror.as_ref().map_or(0, Mirror::uncommitted) + self.receiver.as_ref().map_or(0, Receiver::held)
    }

    /// Stops to mirror: this host is the standby.
    pub fn drop_mirror(&mut self) {
        self.mirror = None;
    }

    /// Stops to mirror: the VM runs from this image alone.
    pub fn run_alone(&mut self) {
        self.mirror = None;
        self.tracker.alone();
    }

    /// Asks the peer what it has on stable storage, if that is due.
    pub fn settle_if_due(&self) {
        if let Some(mirror) = &self.mirror {
            mirror.settle_if_due();
        }
    }

    /// Begins to take the peer's writes from `stream`. The image belongs to the stream from here on.
    pub fn start_receiving(&mut self, stream: MirrorStream, max_uncommitted: u64, serial: String) {
        let Some(reporter) = self.vmm.reporter() else { return };
        if let Some(failure) = self.tracker.image_failure() {
            return self.lost(&failure);
        }
        let Some(applier) = self.applier(&reporter) else { return };
        let disk = Disk { image: self.image().clone(), tracker: self.tracker.clone(), serial, applier };
        match Receiver::new(stream, disk, max_uncommitted, Session::new(reporter)) {
            Ok(receiver) => self.receiver = Some(receiver),
            Err(e) => self.lost(&format!("cannot use the stream: {e}")),
        }
    }

    /// One for the life of the disk: the next stream's writes come after those of the last one.
    fn applier(&mut self, reporter: &Reporter) -> Option<Arc<Applier>> {
        if self.applier.is_none() {
            let reporter = reporter.clone();
            let on_error = move |e: OpError| reporter.report(&Report::Failed { reason: e.to_string() });
            match Applier::new(self.tracker.clone(), Box::new(on_error)) {
                Ok(applier) => self.applier = Some(Arc::new(applier)),
                Err(e) => self.lost(&format!("cannot start a thread: {e}")),
            }
        }
        self.applier.clone()
    }

    /// Closes the stream from the peer; what is not released is gone.
    pub fn stop_receiving(&mut self) {
        self.receiver = None;
    }

    /// Blocks until all that was released is in the image. False: it is not, or the image has failed,
    /// which has been reported.
    #[must_use]
    pub fn drain(&self) -> bool {
        self.applier.as_ref().is_none_or(|applier| applier.drain()) && self.tracker.image_failure().is_none()
    }

    /// `epoch` is committed: the peer holds it, or this image takes it in.
    pub fn release(&mut self, epoch: Epoch) {
        if let Some(mirror) = &self.mirror {
            mirror.release(epoch);
        }
        if let Some(Err(e)) = self.receiver.as_ref().map(|receiver| receiver.release(epoch)) {
            self.fail(&e.to_string());
        }
    }

    /// Drops what came from the peer after epoch `after`, and reports when the rest is in the image.
    pub fn discard(&mut self, after: Epoch) {
        if after == Epoch(0) {
            // The session is over: nobody asks what the image is.
            self.receiver = None;
        }
        if let Some(Err(e)) = self.receiver.as_ref().map(|receiver| receiver.discard_after(after)) {
            return self.fail(&e.to_string());
        }
        let Some(reporter) = self.vmm.reporter() else { return };
        match &self.applier {
            // When the image failed, that has been reported, and the VMM must not start on it.
            Some(applier) => applier.then(
                0,
                Box::new(move |ok| {
                    if ok {
                        reporter.report(&Report::Discarded);
                    }
                }),
            ),
            None => reporter.report(&Report::Discarded),
        }
    }

    /// Closes both streams and the link to the VMM.
    pub fn disconnect(&mut self) {
        (self.mirror, self.receiver) = (None, None);
        self.vmm.disconnect();
    }

    /// Blocks until what counts is in the image, and its record says that nobody writes to it any more.
    pub fn close(&mut self) {
        self.disconnect();
        // What is released belongs to the image, also when the VMM ends.
        let _ = self.drain();
        self.tracker.close();
    }
}
