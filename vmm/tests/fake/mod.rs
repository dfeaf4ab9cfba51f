//! A VMM whose VM is a plain struct: the real API server and control loop, no KVM.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};
use ft::{Call, Control, EventRecord, ProtectOptions, Refused, Status};
use pollux_api::Blocker;
use pollux_api::options::Compression;
use pollux_api::reason::BlockerReport;
use pollux_api::status::{
    ClaimKind, ClaimStatus, CompressionStatus, CopyState, DiskStatus, LinkName, LinkState, LinkStatus, Peer, Progress,
    Replica, ResyncKind, Role, SearchStatus, State, Takeover, WitnessStatus,
};
use pollux_vmm::api::Shared;
use pollux_vmm::api::audit::{Audit, AuditLog};
use pollux_vmm::api::http::HttpServer;
use pollux_vmm::api::socket::{ApiSocket, SocketTarget};
use pollux_vmm::config::VmConfig;
use pollux_vmm::contract::{BoxError, Built, Counters, Machine, Part, VmEvent, VmFactory};
use pollux_vmm::control::control_loop::{Ending, Parts, Vmm};
use pollux_vmm::control::event_monitor::{EventMonitor, EventTarget};
use pollux_vmm::vm::NotHere;
use pollux_vmm::vm::VmError;
use serde_json::{Value, json};

/// What the fakes of one VMM have been told, in order.
pub type Diary = Arc<Mutex<Vec<String>>>;

struct FakeMachine {
    config: VmConfig,
    diary: Diary,
    /// `pause` waits here when it is given: a call that takes long.
    gate: Option<Receiver<()>>,
    /// How often `reset` is refused, since the VM is about to leave.
    leaving: u32,
    /// `reset` fails half way.
    reset_fails: bool,
}

impl FakeMachine {
    fn note(&self, what: &str) -> Result<(), BoxError> {
        self.diary.lock().unwrap().push(what.to_owned());
        Ok(())
    }
}

impl Machine for FakeMachine {
    fn boot(&mut self) -> Result<(), BoxError> {
        if self.config.payload.as_ref().and_then(|payload| payload.cmdline.as_deref()) == Some("fail") {
            return Err("the kernel is no kernel".into());
        }
        self.note("boot")
    }

    fn pause(&mut self) -> Result<(), BoxError> {
        self.note("pause")?;
        if let Some(gate) = &self.gate {
            gate.recv()?;
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), BoxError> {
        self.note("resume")
    }

    fn reset(&mut self) -> Result<(), BoxError> {
        if self.leaving > 0 {
            self.leaving -= 1;
            self.note("reset-refused")?;
            return Err(VmError::NotHere(NotHere::Leaving).into());
        }
        if self.reset_fails {
            self.note("reset-failed")?;
            return Err("its disk does not stop".into());
        }
        self.note("reset")
    }

    fn stop(&mut self) -> Result<(), BoxError> {
        self.note("stop")
    }

    fn shutdown(&mut self) -> Result<(), BoxError> {
        self.note("shutdown")
    }

    fn taken_over(&mut self) -> Result<(), BoxError> {
        self.note("taken-over")
    }

    fn power_button(&mut self) -> Result<(), BoxError> {
        self.note("power-button")
    }

    fn nmi(&mut self) -> Result<(), BoxError> {
        self.note("nmi")
    }

    fn config(&self) -> VmConfig {
        self.config.clone()
    }

    fn memory_size(&self) -> u64 {
        self.config.memory.size
    }

    fn device_tree(&self) -> Value {
        json!({"__rng": {"id": "__rng", "resources": [], "children": []}})
    }

    fn counters(&self) -> Counters {
        [("_disk0".to_owned(), [("read_ops".to_owned(), 3)].into())].into()
    }
}

struct FakeFt {
    diary: Diary,
    /// A standby goes on with the VM when it is asked to.
    has_standby: bool,
}

impl FakeFt {
    fn note(&self, what: &str) -> Result<(), Refused> {
        self.diary.lock().unwrap().push(what.to_owned());
        Ok(())
    }

    fn protect(&self, options: &ProtectOptions) -> Result<(), Refused> {
        self.note(&format!("protect {}", options.peer))?;
        while options.peer.port() == 3 {
            // As one does that waits for a host that is down.
            std::thread::park();
        }
        let failed = |reason: &str| Blocker::SessionFailed { reason: reason.to_owned() };
        let refused = Refused::Preflight(vec![failed("no route"), failed("no disk")]);
        if options.peer.port() == 1 { Err(refused) } else { Ok(()) }
    }
}

impl Control for FakeFt {
    fn vm_started(&self) {}

    fn call(&self, call: Call) -> Result<(), Refused> {
        match call {
            Call::Protect(None) => Err(Refused::NoPeers),
            Call::Protect(Some(options)) => self.protect(&options),
            Call::Stop => self.note("ft-stop"),
            Call::Suspend => self.note("suspend"),
            Call::Resume => self.note("resume"),
            Call::Switchover => self.note("switchover"),
            Call::HandOver(reason) if self.has_standby => self.note(&format!("hand-over ({reason})")),
            Call::TestFailover | Call::HandOver(_) => Err(Refused::NotProtected(State::Unprotected)),
        }
    }

    fn vm_ended(&self) {
        self.diary.lock().unwrap().push("vm-ended".to_owned());
    }

    fn end(&self) {
        self.diary.lock().unwrap().push("ft-end".to_owned());
    }

    fn status(&self) -> Status {
        let progress = Progress { done: 1, total: 2, eta_s: Some(3) };
        let disk = DiskStatus { id: "_disk0".to_owned(), state: CopyState::Copying, ..DiskStatus::default() };
        let link = LinkStatus { name: LinkName::Heartbeat, state: LinkState::Red, silence_ms: 4 };
        let setting = Compression::DeltaZstd;
        Status {
            role: Role::None,
            state: State::Unprotected,
            replica: Replica::None,
            peer: Some(Peer::default()),
            links: vec![link],
            witness: Some(WitnessStatus { answered: Some(true), ..WitnessStatus::default() }),
            claim: Some(ClaimStatus { kind: ClaimKind::GoAlone, since_ms: 5, error: None }),
            compression: Some(CompressionStatus { setting, packing: true, raw: 2, sent: 1 }),
            search: Some(SearchStatus {
                on: true,
                waiting_for: vec!["nobody".to_owned()],
                blockers: vec![BlockerReport::default()],
            }),
            memory_sync: Some(progress),
            disks: vec![DiskStatus { resync: Some(ResyncKind::Full), ..disk }],
            takeover: Some(Takeover::default()),
            ..Status::default()
        }
    }

    fn events(&self) -> Vec<EventRecord> {
        Vec::new()
    }
}

struct FakeAssembler {
    diary: Diary,
    events: Arc<Mutex<Option<Sender<VmEvent>>>>,
    setup: Setup,
}

impl VmFactory for FakeAssembler {
    fn part(&mut self, _: &VmConfig, boots: bool) -> Result<Part, BoxError> {
        Ok(if self.setup.standby && !boots { Part::StandBy } else { Part::Run })
    }

    fn can_stand_by(&self) -> bool {
        self.setup.standby
    }

    fn standby_failed(&self, reason: &str) {
        self.diary.lock().unwrap().push(format!("standby-failed ({reason})"));
    }

    fn assemble(&mut self, config: VmConfig, part: Part, events: Sender<VmEvent>) -> Result<Built, BoxError> {
        let is_first = self.events.lock().unwrap().is_none();
        if !is_first && part == Part::StandBy && self.setup.failing_rebuilds > 0 {
            self.setup.failing_rebuilds -= 1;
            return Err("the address is in use".into());
        }
        *self.events.lock().unwrap() = Some(events);
        let what = if part == Part::StandBy { "assemble standby" } else { "assemble" };
        self.diary.lock().unwrap().push(what.to_owned());
        let Setup { gate, leaving, reset_fails, has_standby, .. } = self.setup.clone();
        let leaving = if leaving { 2 } else { 0 };
        let machine = FakeMachine { config, diary: Arc::clone(&self.diary), gate, leaving, reset_fails };
        let ft = FakeFt { diary: Arc::clone(&self.diary), has_standby };
        Ok(Built { machine: Arc::new(Mutex::new(machine)), ft: Some(Arc::new(ft)) })
    }
}

/// How to start one.
#[derive(Clone, Default)]
pub struct Setup {
    pub gate: Option<Receiver<()>>,
    pub no_shutdown: bool,
    pub standby: bool,
    /// `reset` is refused twice, since the VM is about to leave.
    pub leaving: bool,
    /// `reset` fails half way.
    pub reset_fails: bool,
    /// The VM is protected.
    pub has_standby: bool,
    /// So many times a standby cannot be built anew.
    pub failing_rebuilds: u32,
    /// Where the audit log is.
    pub audit_log: Option<PathBuf>,
}

/// A running VMM. Its socket and event file are in a directory of its own.
pub struct FakeVmm {
    pub diary: Diary,
    pub signals: Sender<i32>,
    events: Arc<Mutex<Option<Sender<VmEvent>>>>,
    dir: tempfile::TempDir,
    thread: JoinHandle<Ending>,
}

impl FakeVmm {
    pub fn start(setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (diary, events) = (Diary::default(), Arc::default());
        let factory = FakeAssembler { diary: Arc::clone(&diary), events: Arc::clone(&events), setup: setup.clone() };
        let monitor = EventMonitor::open(&EventTarget::Path(dir.path().join("events"))).unwrap();
        let (sender, calls) = unbounded();
        let shared = Shared::new(sender);
        let socket = ApiSocket::open(&SocketTarget::at(dir.path().join("api"))).unwrap();
        let open_log = |path: &Path| AuditLog::open(path, Box::new(|_| {})).unwrap();
        let log = setup.audit_log.as_deref().map(open_log);
        let audit = log.as_ref().map_or_else(Audit::default, AuditLog::handle);
        let http = HttpServer::start(socket.listener().unwrap(), Arc::clone(&shared), audit).unwrap();
        let (signal_sender, signals) = unbounded();
        let parts = Parts { factory: Box::new(factory), monitor, shared, no_shutdown: setup.no_shutdown };
        let thread = std::thread::spawn(move || {
            let mut vmm = Vmm::new(parts);
            if setup.standby {
                vmm.start(VmConfig::default()).unwrap();
            }
            let ending = vmm.run(&calls, &signals);
            drop((calls, http));
            drop(socket);
            drop(log);
            ending
        });
        Self { diary, signals: signal_sender, events, dir, thread }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path("api")).unwrap()
    }

    /// What the VM tells the control loop.
    pub fn tell(&self, event: VmEvent) {
        self.events.lock().unwrap().as_ref().unwrap().send(event).unwrap();
    }

    /// Sends one request on a connection of its own and returns the raw answer.
    pub fn raw(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        read_answer(&mut stream)
    }

    pub fn get(&self, route: &str) -> String {
        self.raw(&format!("GET /api/v1/{route} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"))
    }

    pub fn put(&self, route: &str, body: &str) -> String {
        let length = body.len();
        self.raw(&format!("PUT /api/v1/{route} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"))
    }

    /// Names of the events written so far.
    pub fn event_names(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("events")).unwrap();
        let parse = |part: &str| serde_json::from_str::<Value>(part).unwrap();
        let name = |event: Value| format!("{}.{}", event["source"].as_str().unwrap(), event["event"].as_str().unwrap());
        text.split("\n\n").filter(|part| !part.is_empty()).map(parse).map(name).collect()
    }

    /// Waits until the VMM has ended by itself, and returns how, and what it has written and left behind.
    pub fn ended(self) -> (Ending, Vec<String>, Vec<String>) {
        while !self.thread.is_finished() {
            std::thread::yield_now();
        }
        let names = self.event_names();
        let ending = self.thread.join().unwrap();
        let left = std::fs::read_dir(self.dir.path()).unwrap();
        let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        (ending, names, left)
    }
}

/// One whole answer: head, and as much body as its length says.
pub fn read_answer(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    let head = String::from_utf8(answer).unwrap();
    let length = head.split("\r\n").find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    head + &String::from_utf8(body).unwrap()
}

/// The body of an answer as JSON.
pub fn body(answer: &str) -> Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// The status line of an answer.
pub fn status(answer: &str) -> &str {
    answer.split("\r\n").next().unwrap()
}
