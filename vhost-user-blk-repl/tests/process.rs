//! The program itself: refusals before anything is started, inherited sockets, and its end.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Output, Stdio};

use common::program::*;
use common::*;
use device_api::counters::{DiskCounters, Page};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SIZE: usize = 1 << 20;

fn refused(args: &[&str]) -> String {
    let Output { status, stderr, .. } = program().args(args).output().unwrap();
    let text = String::from_utf8(stderr).unwrap();
    assert!(!status.success(), "{args:?}");
    text
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn bad_images_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let missing = dir.path().join("missing");
    let odd = make_image(dir.path(), "odd", &[0; 700]);
    let empty = make_image(dir.path(), "empty", &[]);
    let qcow2 = make_image(dir.path(), "qcow2", &[&b"QFI\xfb"[..], &[0; 1020]].concat());
    for (image, reason) in [
        (missing.as_path(), "truncate -s"),
        (&odd, "multiple of 512"),
        (&empty, "multiple of 512"),
        (&qcow2, "qemu-img convert"),
        (dir.path(), "regular file"),
        (Path::new("/dev/null"), "regular file"),
    ] {
        let told = refused(&["--socket", path(&socket), "--path", path(image)]);
        assert!(told.contains(reason) && told.contains(path(image)) && told.lines().count() == 1, "{told}");
        assert!(!socket.exists());
    }
}

#[test]
fn bad_sockets_are_refused_by_flag() {
    let dir = tempfile::tempdir().unwrap();
    let image = make_image(dir.path(), "disk", &[0; SIZE]);
    for (flag, told) in [("--socket", "listening unix socket"), ("--ft-ctl", "SOCK_SEQPACKET")] {
        let socket = dir.path().join("s");
        let good = if flag == "--ft-ctl" { vec!["--socket", path(&socket)] } else { vec![] };
        for value in ["fd=1", "fd=999"] {
            let error = refused(&[&good[..], &["--path", path(&image), flag, value]].concat());
            assert!(error.contains(flag) && error.contains(told), "{error}");
        }
        assert!(!socket.exists(), "{flag}");
    }
    let taken = dir.path().join("taken");
    let _listener = UnixListener::bind(&taken).unwrap();
    let error = refused(&["--socket", path(&taken), "--path", path(&image)]);
    assert!(error.contains("--socket") && error.contains("in use"), "{error}");
}

#[test]
fn an_image_in_use_is_refused_with_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    let image = make_image(dir.path(), "disk", &[0; SIZE]);
    let socket = dir.path().join("first");
    let running = start(&["--socket", path(&socket), "--path", path(&image)], vec![]);
    soon(|| socket.exists().then_some(()));
    let told = refused(&["--socket", path(&dir.path().join("second")), "--path", path(&image)]);
    let holder = format!("in use by process {} (vhost-user-blk", running.0.id());
    assert!(told.contains(&holder), "{told}");
    // Reading beside a writer is no good either; two readers are.
    let told = refused(&["--socket", path(&dir.path().join("second")), "--path", path(&image), "--readonly"]);
    assert!(told.contains("in use"), "{told}");
}

#[test]
fn serves_a_frontend_and_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let content = Rng(1).bytes(SIZE);
    let image = make_image(dir.path(), "disk", &content);
    let socket = dir.path().join("s");
    let mut running = start(&["--socket", path(&socket), "--path", path(&image), "--serial", "abc"], vec![]);
    soon(|| socket.exists().then_some(()));
    let mut guest = Guest::connect(&socket, 1, 0);
    assert_eq!(guest.read(0, 0, 4096), (0, content[..4096].to_vec()));
    assert_eq!(guest.write(0, 0, &[1; 512]), 0);
    assert_eq!(&guest.get_id(0).1[..4], b"abc\0");
    drop(guest);
    assert_eq!(running.exit_code(), Some(0));
    assert!(!socket.exists());
    assert_eq!(std::fs::read(&image).unwrap()[..512], [1; 512]);
}

#[test]
fn counts_requests_their_bytes_and_their_time() {
    let dir = tempfile::tempdir().unwrap();
    let image = make_image(dir.path(), "disk", &[0; SIZE]);
    let (socket, counters) = (dir.path().join("s"), dir.path().join("counters"));
    let args = ["--socket", path(&socket), "--path", path(&image), "--counters", path(&counters)];
    let told = refused(&args);
    assert!(told.contains("--counters") && told.contains(path(&counters)) && !socket.exists(), "{told}");
    std::fs::write(&counters, [0; 4096]).unwrap();
    let _running = start(&args, vec![]);
    soon(|| socket.exists().then_some(()));
    let mut guest = Guest::connect(&socket, 1, 0);
    assert_eq!(guest.read(0, 0, 4096).0, 0);
    assert_eq!(guest.write(0, 0, &[1; 512]), 0);
    assert_eq!(guest.write(0, 8, &[1; 1024]), 0);
    assert_ne!(guest.write(0, SIZE as u64, &[1; 512]), 0);
    // The last request is counted after the guest was told.
    assert_eq!(guest.get_id(0).0, 0);
    let list = DiskCounters::list(&Page::open(&counters).unwrap());
    let count = |name| list.iter().find(|counter| counter.0 == name).unwrap().1;
    let counts = ["read_ops", "read_bytes", "write_ops", "write_bytes"].map(count);
    assert_eq!(counts, [1, 4096, 2, 1536]);
    let latency = ["write_latency_min", "write_latency_avg", "write_latency_max"].map(count);
    assert!(latency.is_sorted() && latency[2] < 3_600_000_000, "{latency:?}");
}

#[test]
fn the_limit_of_file_sizes_is_an_error_of_one_request() {
    let dir = tempfile::tempdir().unwrap();
    let image = make_image(dir.path(), "disk", &[]);
    std::fs::File::options().write(true).open(&image).unwrap().set_len(SIZE as u64).unwrap();
    let socket = dir.path().join("s");
    let mut command = program();
    command.args(["--socket", path(&socket), "--path", path(&image)]).stderr(Stdio::null());
    let limit = libc::rlimit { rlim_cur: SIZE as u64 / 2, rlim_max: SIZE as u64 / 2 };
    // SAFETY: setrlimit is async-signal-safe, and its argument lives in the closure.
    unsafe {
        command.pre_exec(move || {
            if libc::setrlimit(libc::RLIMIT_FSIZE, &limit) == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        })
    };
    let mut running = Running(command.spawn().unwrap());
    soon(|| socket.exists().then_some(()));
    let mut guest = Guest::connect(&socket, 1, 0);
    let half = SIZE as u64 / 1024;
    assert_eq!(guest.write(0, half, &[1; 512]), 1);
    assert_eq!(guest.write(0, half - 1, &[1; 512]), 0);
    drop(guest);
    assert_eq!(running.exit_code(), Some(0));
}

#[test]
fn ends_on_sigterm_without_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let image = make_image(dir.path(), "disk", &[0; SIZE]);
    let (socket, control) = (dir.path().join("s"), dir.path().join("c"));
    let args = ["--socket", path(&socket), "--path", path(&image), "--ft-ctl", path(&control)];
    let mut running = start(&args, vec![]);
    let client = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Unix,
        nix::sys::socket::SockType::SeqPacket,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    let address = nix::sys::socket::UnixAddr::new(&control).unwrap();
    soon(|| nix::sys::socket::connect(client.as_raw_fd(), &address).ok());
    let vmm = Vmm::from_fd(client);
    vmm.send(&ft_wire::device_ctl::Command::Hello { version: ft_wire::device_ctl::CTL_VERSION });
    assert!(matches!(vmm.recv(), ft_wire::device_ctl::Report::Ready { .. }));
    kill(Pid::from_raw(running.0.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(running.exit_code(), Some(0));
    assert!(!socket.exists() && !control.exists());
}

#[test]
fn inherited_sockets_and_the_end_of_the_vmm() {
    let dir = tempfile::tempdir().unwrap();
    let image = make_image(dir.path(), "disk", &Rng(2).bytes(SIZE));
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let (vmm, theirs) = Vmm::pair();
    let args = ["--socket", "fd=10", "--ft-ctl", "fd=11", "--path", path(&image)];
    let mut running = start(&args, vec![listener.into(), theirs]);
    let mut guest = Guest::connect(&socket, 1, 0);
    assert_eq!(guest.read(0, 0, 512).0, 0);
    assert_eq!(vmm.seal(1).queues[0].next_avail, 1);
    // The VMM dies: its control link goes, even though somebody still holds the frontend's socket.
    drop(vmm);
    assert_eq!(running.exit_code(), Some(0));
}

#[test]
fn ends_when_the_vmm_is_gone_before_it_connected() {
    let dir = tempfile::tempdir().unwrap();
    let image = make_image(dir.path(), "disk", &[0; SIZE]);
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let (vmm, theirs) = Vmm::pair();
    let mut running =
        start(&["--socket", "fd=10", "--ft-ctl", "fd=11", "--path", path(&image)], vec![listener.into(), theirs]);
    drop(vmm);
    assert_eq!(running.exit_code(), Some(0));
}
