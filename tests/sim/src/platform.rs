//! The engine's platform in virtual time: clock, streams, device processes, heartbeats, the witness, and
//! what production runs on threads. All of it turns what the engine does into effects, which the world lets
//! happen.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ft::guest::{DeviceCaps, Memory};
use ft::sim::{
    Applicant, Coder, CpuLoad, DeviceControl, DeviceKey, Done, History, Job, LinkError, OpenedOn, Platform, Received,
    ReceivingEnd, SendingEnd, Sent, SessionKey, Unopened, open_first, perform,
};
use ft::{ProtectOptions, WitnessAddress};
use ft_proto::{Beat, Epoch, LinkId, OnPartition, Settings, Term, Time};
use ft_transport::frames::TransportError;
use ft_transport::heartbeats::{Heartbeats, Ignored};
use ft_wire::beat::BeatKey;
use ft_wire::device_ctl::{self, Command, Report};
use ft_wire::nonce::Nonce;
use ft_wire::session::HEADER_LEN;

use crate::body::{Effect, Shared};
use crate::dialler::SimDialler;
use crate::ends::{SimStream, SimWitness};
use crate::guest::digest;
use crate::ids::{IDS, disk_at};
use crate::intake::Feed;
use crate::mutation::Mutation;
use crate::network::{StreamId, host_at};

/// What the devices can do.
pub(crate) const DISK_CAPS: DeviceCaps = DeviceCaps { mirrors: true, holds_output: false, in_flight: true };
pub(crate) const NIC_CAPS: DeviceCaps = DeviceCaps { mirrors: false, holds_output: true, in_flight: false };
/// How often to beat when nobody is suspected.
const LEISURE: Duration = Duration::from_millis(500);

/// What the body of a host knows its session by.
fn low_half(nonce: Nonce) -> u64 {
    nonce.to_le_bytes().first_chunk().map_or(0, |low| u64::from_le_bytes(*low))
}

/// What an engine stands on here.
#[derive(Clone, Debug)]
pub(crate) struct Sim(pub(crate) Shared);

impl Platform for Sim {
    type Connection = SimStream;
    type Control = SimControl;
    type Beats = SimBeats;
    type Witness = SimWitness;
    type Sender = SimSender;
    type Receiver = SimReceiver;

    fn now(&self) -> Time {
        let body = self.0.lock();
        body.local + body.spent
    }

    fn tune(&self, settings: Settings) -> Settings {
        let knobs = self.0.lock().knobs;
        let both = knobs.mutation == Some(Mutation::BothGoOn);
        let on_partition = settings.on_partition.map(|policy| if both { OnPartition::Both } else { policy });
        Settings { ack_limit: knobs.ack_limit, depth: knobs.depth, on_partition, ..settings }
    }

    fn draw_session(&self) -> SessionKey {
        let mut body = self.0.lock();
        let (session, high, low) = (body.rng.word(), body.rng.word(), body.rng.word() | 1);
        let session = if body.has(Mutation::SessionsAlike) { 1 } else { session };
        (body.session, body.committed) = (low, Epoch(0));
        SessionKey { session, nonce: Nonce::new(u128::from(high) << 64 | u128::from(low)) }
    }

    fn set_realtime(&self, _: bool) {}

    fn pin_to_cpu(&self, _: Option<u16>) {}

    fn cpu_load(&self) -> Option<CpuLoad> {
        None
    }

    fn watch_stream(&self, stream: &SimStream) -> io::Result<()> {
        let mut body = self.0.lock();
        body.watched = Some(stream.id);
        body.effect(Effect::Readable(stream.id));
        Ok(())
    }

    fn unwatch_stream(&self, stream: &SimStream) {
        self.0.lock().watched.take_if(|watched| *watched == stream.id);
    }

    fn watch_device(&self, _: DeviceKey, _: &SimControl) -> io::Result<()> {
        Ok(())
    }

    fn unwatch_device(&self, _: &SimControl) {}

    fn witness(&self, address: &WitnessAddress) -> io::Result<SimWitness> {
        Ok(SimWitness { address: address.clone(), shared: self.0.clone() })
    }

    fn open_session(
        &self,
        applicant: Applicant<SimWitness>,
        peers: Vec<ProtectOptions>,
        done: impl FnOnce(Result<OpenedOn<Self>, Unopened>) + Send + 'static,
    ) -> io::Result<()> {
        let shared = self.0.clone();
        let open = async move {
            let opened = open_first(&SimDialler(shared.clone()), &applicant, peers).await;
            if let Ok(opened) = &opened {
                shared.lock().session = low_half(opened.key.nonce);
            }
            done(opened);
        };
        self.0.effect(Effect::Open(Box::pin(open)));
        Ok(())
    }

    fn start_sender(
        &self,
        stream: &SimStream,
        term: Term,
        history: impl FnOnce() -> History + Send + 'static,
        tell: impl Fn(Sent) + Send + 'static,
    ) -> io::Result<SimSender> {
        let thread = Mutex::new(Sending { coder: Coder::new(history()), through: Time(0), failed: false });
        let tell: Tell = Arc::new(Mutex::new(Box::new(tell)));
        Ok(SimSender { stream: stream.id, shared: self.0.clone(), term, thread, tell })
    }

    fn start_receiver(
        &self,
        stream: &SimStream,
        _: Arc<dyn Memory>,
        tell: impl Fn(Received) + Send + 'static,
    ) -> io::Result<SimReceiver> {
        let committed = Arc::new(AtomicU64::new(0));
        let mut body = self.0.lock();
        let early = body.has(Mutation::ApplyOnArrival);
        let disks = body.disks.len();
        let feed = Feed::new(body.guest.memory.clone(), disks, committed.clone(), early, Box::new(tell));
        body.feeds.insert(stream.id, feed);
        let session = body.session;
        Ok(SimReceiver { stream: stream.id, shared: self.0.clone(), session, committed })
    }
}

/// The control socket of a device.
#[derive(Debug)]
pub(crate) struct SimControl {
    device: usize,
    shared: Shared,
}

impl SimControl {
    pub(crate) fn new(device: usize, shared: Shared) -> Self {
        Self { device, shared }
    }

    fn gone(&self) -> LinkError {
        LinkError::Gone(self.id().to_owned())
    }
}

impl DeviceControl for SimControl {
    type Stream = SimStream;
    type Deadline = ();

    fn id(&self) -> &str {
        IDS[self.device]
    }

    fn send(&mut self, command: &Command, stream: Option<&SimStream>) -> Result<(), LinkError> {
        let mut body = self.shared.lock();
        if body.links[self.device].broken {
            return Err(self.gone());
        }
        let disk = disk_at(self.device);
        match (command, disk) {
            (Command::Seal { epoch, .. }, _) => {
                let report = match disk {
                    Some(disk) => body.seal_disk(disk, *epoch),
                    None => body.seal_nic(*epoch),
                };
                body.links[self.device].reports.push_back(report);
            }
            (Command::Release(release), Some(disk)) => body.disks[disk].tell_release(release.epoch()),
            (Command::Discard { after }, Some(disk)) if *after > Epoch(0) => {
                body.roll_back(disk, *after);
                body.links[self.device].answer = Some(Report::Discarded);
            }
            (Command::End(_), _) => body.links[self.device].answer = Some(Report::Ended),
            (Command::Start { .. }, _) => body.links[self.device].answer = Some(Report::Started),
            _ => {}
        }
        // It crosses a socket.
        let mut buffer = [0; 256];
        let bytes = device_ctl::encode(command, &mut buffer).expect("it is short");
        let command = device_ctl::decode(bytes).expect("it was encoded");
        match stream {
            Some(stream) => {
                stream.given.store(true, Ordering::Relaxed);
                body.effect(Effect::Connect(disk.expect("the card has no stream"), command, stream.id));
            }
            None => body.effect(Effect::Command(self.device, command)),
        }
        Ok(())
    }

    fn recv_now(&mut self) -> Result<Option<Report>, LinkError> {
        let mut body = self.shared.lock();
        let link = &mut body.links[self.device];
        if link.broken { Err(self.gone()) } else { Ok(link.reports.pop_front()) }
    }

    fn deadline(&self, _: Duration) {}

    fn wait(&mut self, (): &()) -> Result<bool, LinkError> {
        let mut body = self.shared.lock();
        if body.links[self.device].broken {
            return Err(self.gone());
        }
        let Some(answer) = body.links[self.device].answer.take() else { return Ok(false) };
        if let Some(disk) = disk_at(self.device).filter(|_| answer == Report::Discarded) {
            let drained = body.disks[disk].drained_at().unwrap_or(body.now);
            body.spent = body.spent.max(drained.since(body.now));
        } else {
            let span = body.micros(100, 1000);
            body.spend(span);
        }
        body.links[self.device].reports.push_back(answer);
        Ok(true)
    }
}

impl crate::body::Body {
    /// What came to a disk after an epoch is dropped.
    fn roll_back(&mut self, disk: usize, after: Epoch) {
        let after = if self.has(Mutation::RollBackAlike) { self.committed } else { after };
        let now = self.now;
        self.disks[disk].catch_up_with_releases(now);
        if let Err(why) = self.disks[disk].may_roll_back(after) {
            self.effect(Effect::Forbidden(why));
        }
        if self.has(Mutation::TakeOverWithoutDiscard) {
            self.disks[disk].apply_everything(now);
        }
        self.disks[disk].discard(after);
    }

    /// A disk ends an epoch, and says whether it has anything of it.
    fn seal_disk(&mut self, disk: usize, epoch: Epoch) -> Report {
        let always = self.has(Mutation::AlwaysIdle) && epoch > Epoch(1);
        let like_the_first = self.has(Mutation::IdleLikeTheFirst) && disk > 0;
        let first = self.sealed_idle;
        self.disks[disk].epoch = epoch.next();
        let mirror = self.disks[disk].mirror.as_mut();
        let mirrored = mirror.is_some();
        // What has no stream cannot tell that there was nothing.
        let mut idle = mirror.is_some_and(|mirror| !std::mem::take(&mut mirror.touched) || always);
        if disk == 0 {
            self.sealed_idle = idle;
        }
        idle |= like_the_first && first && mirrored;
        if mirrored && !idle {
            self.effect(Effect::DiskEnd(disk, epoch));
        }
        sealed(epoch, 0, u64::from(mirrored), idle)
    }

    /// The card ends an epoch.
    fn seal_nic(&mut self, epoch: Epoch) -> Report {
        let frames = self.nic.held_frames();
        sealed(epoch, frames, frames, frames == 0)
    }
}

fn sealed(epoch: Epoch, held_frames: u64, held_bytes: u64, idle: bool) -> Report {
    Report::Sealed { epoch, queues: Vec::new(), in_flight: Vec::new(), held_frames, held_bytes, idle }
}

/// The heartbeats of a process.
#[derive(Debug)]
pub(crate) struct SimBeats(pub(crate) Shared);

impl Heartbeats for SimBeats {
    /// The host at the other end.
    type Sockets = Option<usize>;

    fn key(&self, key: Option<BeatKey>) {
        self.0.effect(Effect::Key(key));
    }

    fn route(&self, to: Option<usize>, interval: Option<Duration>) {
        self.0.effect(Effect::Route(to, interval.unwrap_or(LEISURE)));
    }

    fn aim(&self, peers: [SocketAddr; LinkId::ALL.len()], interval: Option<Duration>) {
        self.0.effect(Effect::Route(Some(host_at(peers[0])), interval.unwrap_or(LEISURE)));
    }

    fn say(&self, beat: Beat, _: Time) {
        let mut body = self.0.lock();
        let says = (beat.term, beat.runs);
        if body.said.replace(says) != Some(says) {
            body.effect(Effect::Say(beat.term, beat.runs));
        }
    }

    fn ignored(&self) -> Ignored {
        Ignored::default()
    }
}

type Tell = Arc<Mutex<Box<dyn Fn(Sent) + Send>>>;

/// The sending thread of a primary: bytes leave when they are given to it, and it says so a little later.
pub(crate) struct SimSender {
    stream: StreamId,
    shared: Shared,
    term: Term,
    thread: Mutex<Sending>,
    tell: Tell,
}

/// What that thread knows.
struct Sending {
    coder: Coder,
    /// When it is through with what it was given.
    through: Time,
    /// The stream is broken, and that was told.
    failed: bool,
}

impl fmt::Debug for SimSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimSender({})", self.stream)
    }
}

impl SendingEnd for SimSender {
    fn send(&self, job: Job) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let mut body = self.shared.lock();
        if thread.failed {
            return;
        }
        thread.failed = body.received.get(&self.stream).is_some_and(|received| received.closed);
        let mut bytes = Vec::new();
        let volume =
            perform(&mut thread.coder, &mut bytes, self.term, &job, body.local + body.spent).expect("memory takes all");
        for frame in frames(&bytes) {
            body.effect(Effect::Write(self.stream, frame.to_vec()));
        }
        let lag = body.knobs.lag_us;
        let (took, now) = (body.micros(30, 600.max(lag)), body.now + body.spent);
        let sent = match job {
            _ if thread.failed => Sent::Failed(TransportError::Closed),
            Job::Copy(image, packed) | Job::Epoch(image, packed, _) => {
                let forms = thread.coder.take_forms();
                Sent::Done(Done { image, packed, volume, took, forms })
            }
            Job::Progress(_) => Sent::Told,
            Job::Yield(..) | Job::Bye(_) => return,
        };
        let tell = self.tell.clone();
        let tell = move || tell.lock().unwrap_or_else(PoisonError::into_inner)(sent);
        // It tells in order.
        thread.through = thread.through.max(now + took);
        body.effect(Effect::Later(thread.through.since(now), Box::new(tell)));
    }

    fn leave(self, last: Job) {
        self.send(last);
    }
}

impl Drop for SimSender {
    fn drop(&mut self) {
        self.shared.effect(Effect::Close(self.stream));
    }
}

/// The bytes of whole frames, frame by frame.
fn frames(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let head = bytes.first_chunk::<HEADER_LEN>()?;
        let len = ft_wire::session::Header::decode(head).map_or(bytes.len(), |header| HEADER_LEN + header.len as usize);
        let (frame, rest) = bytes.split_at(len.min(bytes.len()));
        bytes = rest;
        Some(frame)
    })
}

/// The receiving thread of a standby, as its engine sees it.
#[derive(Debug)]
pub(crate) struct SimReceiver {
    stream: StreamId,
    shared: Shared,
    session: u64,
    committed: Arc<AtomicU64>,
}

impl ReceivingEnd for SimReceiver {
    /// Called when an epoch has been applied.
    fn stay_on(&self, _: Option<u16>) {
        let epoch = Epoch(self.committed.load(Ordering::Relaxed));
        let mut body = self.shared.lock();
        let Some((vcpu, idle)) = body.feeds.get_mut(&self.stream).and_then(|feed| feed.whole.remove(&epoch)) else {
            return;
        };
        let digest = digest(&body.guest.memory.pages(), &vcpu);
        body.effect(Effect::Applied { session: self.session, epoch, digest, idle });
    }

    fn committed(&self, epoch: Epoch) {
        self.committed.store(epoch.0, Ordering::Relaxed);
        self.shared.lock().committed = epoch;
    }

    fn give_back(&self, _: Vec<u8>) {}
}

impl Drop for SimReceiver {
    fn drop(&mut self) {
        let mut body = self.shared.lock();
        body.feeds.remove(&self.stream);
        body.effect(Effect::Close(self.stream));
    }
}
