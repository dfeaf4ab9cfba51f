//! A whole device process in a few lines: it answers its VMM, holds nothing, and has one queue that nobody
//! serves.
#![allow(missing_docs, clippy::unwrap_used)] // Helpers of tests panic as tests do.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::time::Duration;

use device_api::client::Client;
use device_kit::args::{Common, Endpoint};
use device_kit::control::Control;
use device_kit::ends::{End, Ends};
use device_kit::events::{Event, Events, exit_event};
use device_kit::process::Process;
use device_kit::vring::positions;
use device_kit::{Device, Memory, QUEUE_SIZE_MAX, Served, Vring};
use ft_proto::{Epoch, Term};
use ft_wire::device_ctl::{Command, DeviceInfo, Release, Report, decode, encode};
use host_kit::sandbox::{Mode, Needs};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::VhostUserBackendMut;
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

#[derive(Default)]
struct Null {
    control: Option<Control>,
}

fn obey(control: &Control, command: Command, vrings: &[Vring]) {
    match command {
        Command::Hello { version } => control.greet(version, DeviceInfo::Net { tap: "null".into(), mtu: 1500 }),
        Command::Seal { epoch, cpu } => {
            let queues = positions(vrings).collect();
            let idle = true;
            control.report(&Report::Sealed { epoch, queues, in_flight: vec![], held_frames: 0, held_bytes: 0, idle });
            host_kit::sched::pin_to_cpu(cpu);
        }
        Command::Discard { .. } => control.report(&Report::Discarded),
        Command::Start { .. } => control.report(&Report::Started),
        Command::End(_) => control.report(&Report::Ended),
        Command::Standby(_) | Command::Protect { .. } | Command::Resume | Command::Release(_) => {}
        Command::StreamKeys(_) | Command::Mirror { .. } | Command::Unmirror | Command::Receive { .. } => {}
        Command::Own { .. } => {}
    }
}

impl Device for Null {
    const NEEDS: Needs = Needs::MESSAGES;

    fn attach(&mut self, _events: &Events) -> io::Result<()> {
        Ok(())
    }

    fn connect(&mut self, control: Control) {
        self.control = Some(control);
    }

    fn close(&mut self) {
        self.control = None;
    }
}

impl VhostUserBackendMut for Null {
    type Bitmap = BitmapMmapRegion;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE_MAX
    }

    fn features(&self) -> u64 {
        1 << 32
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, _memory: GuestMemoryAtomic<Memory>) -> io::Result<()> {
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        exit_event()
    }

    fn handle_event(&mut self, event: u16, _set: EventSet, vrings: &[Vring], _thread: usize) -> io::Result<()> {
        let Some(Event::Control) = Event::of(event, 1) else { return Ok(()) };
        let Some(control) = &mut self.control else { return Ok(()) };
        while let Some((command, _fd)) = control.next_command() {
            obey(control, command, vrings);
        }
        Ok(())
    }
}

const LIMIT: Duration = Duration::from_secs(60);

/// A null device in this process, its VMM, and where its end is told.
fn served() -> (Served<Null>, Client, mpsc::Receiver<End>) {
    let served = Served::new("null", Null::default()).unwrap();
    let (client, far) = Client::pair().unwrap();
    let (sender, ended) = mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let ends = Ends::new(move |end| sender.lock().unwrap().send(end).unwrap());
    served.connect(far.into(), ends).unwrap();
    (served, client, ended)
}

fn report(client: &mut Client) -> Report {
    assert!(client.wait(LIMIT).unwrap(), "no report");
    client.receive().unwrap().unwrap()
}

#[test]
fn a_device_answers_its_vmm() {
    let (_served, mut client, _ended) = served();
    assert!(matches!(client.hello(LIMIT).unwrap(), DeviceInfo::Net { mtu: 1500, .. }));
    client.send(&Command::Seal { epoch: Epoch(3), cpu: None }, None).unwrap();
    assert!(
        matches!(report(&mut client), Report::Sealed { epoch: Epoch(3), queues, idle: true, .. } if queues.is_empty())
    );
    let mut buffer = [0; 16];
    // A real one is made of a `Committed` token; on the wire it is an epoch.
    let release = decode::<Release>(encode(&Epoch(3), &mut buffer).unwrap()).unwrap();
    client.send(&Command::Resume, None).unwrap();
    client.send(&Command::Release(release), None).unwrap();
    client.send(&Command::Start { in_flight: vec![], macs: vec![] }, None).unwrap();
    assert_eq!(report(&mut client), Report::Started);
    client.send(&Command::End(Term(1)), None).unwrap();
    assert_eq!(report(&mut client), Report::Ended);
}

#[test]
fn what_is_no_command_is_told_and_ends_the_device() {
    let (_served, mut client, ended) = served();
    client.hello(LIMIT).unwrap();
    let link = device_api::link::Link::new(client.socket().unwrap());
    link.send(&[255_u8; 9], None).unwrap();
    assert!(matches!(report(&mut client), Report::Failed { reason } if reason.contains("not a command")));
    assert!(matches!(ended.recv_timeout(LIMIT), Ok(End::Vmm)));
    assert!(client.wait(LIMIT).unwrap() && client.receive().is_err(), "the link is closed");
}

#[test]
fn the_end_of_the_vmm_is_the_end_of_the_device() {
    let (served, client, ended) = served();
    drop(client);
    assert!(matches!(ended.recv_timeout(LIMIT), Ok(End::Vmm)));
    served.close();
}

/// Runs a whole process, in a thread, until `end` has ended it.
fn process(end: impl FnOnce(UnixStream, Client)) {
    let dir = tempfile::tempdir().unwrap();
    let [vhost, control] = ["vhost", "ctl"].map(|name| dir.path().join(name));
    // A socket file that nobody listens at is no obstacle.
    drop(UnixListener::bind(&vhost).unwrap());
    let endpoint = |path: &std::path::Path| Endpoint::Path(path.into());
    let (ft_ctl, counters, verbose) = (Some(endpoint(&control)), None, 0);
    let common = Common { socket: endpoint(&vhost), ft_ctl, counters, seccomp: Mode::False, verbose };
    let process = Process::open(&common, Vec::new(), &[]).unwrap();
    assert!(Process::open(&common, Vec::new(), &[]).is_err_and(|error| error.to_string().contains("in use")));
    let thread = std::thread::spawn(move || process.serve(Served::new("null", Null::default()).unwrap()));
    let link = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    connect(link.as_raw_fd(), &UnixAddr::new(&control).unwrap()).unwrap();
    let mut client = Client::new(link);
    client.hello(LIMIT).unwrap();
    assert!(!control.exists(), "one VMM is enough");
    end(UnixStream::connect(&vhost).unwrap(), client);
    thread.join().unwrap().unwrap();
    assert!(!vhost.exists());
}

#[test]
fn a_process_ends_with_its_frontend() {
    process(|frontend, _client| drop(frontend));
}

#[test]
fn a_process_ends_with_its_vmm() {
    process(|_frontend, client| drop(client));
}
