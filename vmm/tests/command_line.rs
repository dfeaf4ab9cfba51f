//! The binary itself with arguments that it must refuse, and its life without a VM.

#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use ft_pair::authority::Authority;
use ft_pair::folder::Folder;

const BINARY: &str = env!("CARGO_BIN_EXE_pollux-vmm");

fn run(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// A folder with one pair.
fn pairs() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create("test").unwrap();
    let host = authority.issue("test-host").unwrap();
    Folder::of("test", Some(&dir.path().join("test"))).create(&authority, &host).unwrap();
    dir
}

#[test]
fn wrong_arguments_give_one_line_and_exit_1() {
    let pairs = pairs();
    let kernel = |rest: &[&'static str]| [&["--kernel", "/nowhere/vmlinuz"], rest].concat();
    for (arguments, expected) in [
        (vec![], "nothing to do: give --kernel to boot a VM, or --api-socket to wait for requests"),
        (vec!["--frobnicate"], "unexpected argument '--frobnicate' found"),
        (vec!["--kernel"], "a value is required for '--kernel <PATH>' but none was supplied"),
        (vec!["--disk", "path=/a"], "--disk needs --kernel or --firmware"),
        (vec!["--cmdline", "quiet"], "--cmdline needs --kernel or --firmware"),
        (kernel(&["--firmware", "/f"]), "--kernel cannot be used together with --firmware"),
        (kernel(&["--vsock", "cid=3,socket=/s"]), "--vsock is not supported by pollux-vmm: remove this option"),
        (kernel(&["--watchdog"]), "--watchdog is not supported by pollux-vmm: remove this option"),
        (kernel(&["--seccomp", "maybe"]), "--seccomp: \"maybe\" is not true, false, log or errno"),
        (kernel(&["--cpus", "boot=two"]), "--cpus: boot=two is not a number"),
        (kernel(&["--cpus", "boot=0"]), "cpus.boot_vcpus: must be 1 to 254, not 0"),
        (kernel(&["--cpus", "boot=2,max=1"]), "cpus.max_vcpus: must be 2 (boot_vcpus) to 254, not 1"),
        (kernel(&["--memory", "size=512X"]), "--memory: size=512X is not a size in bytes, or with K, M or G"),
        (kernel(&["--memory", "seize=1G"]), "--memory: unknown key \"seize\", the keys are size, "),
        (kernel(&["--disk", "path=/a,bw_size=9"]), "--disk: key \"bw_size\" is not supported by pollux-vmm"),
        (kernel(&["--disk", "readonly=on"]), "disks[0].path: is missing"),
        (kernel(&["--disk", "path=/a,image_type=qcow2"]), "disks[0].image_type Qcow2 is not supported by pollux-vmm"),
        (kernel(&["--net", "mac=12:34"]), "--net: mac=12:34 is not a MAC address"),
        (kernel(&["--serial", "loud"]), "--serial: unknown key \"loud\", the keys are off, null, pty, tty"),
        (kernel(&["--console", "tty"]), "console.mode Tty is not supported by pollux-vmm: there is no virtio console"),
        (kernel(&[]), "The VM could not boot: payload.kernel /nowhere/vmlinuz: cannot be read: No such file"),
        (kernel(&["--platform", "num_pci_segments=2"]), "platform.num_pci_segments is not supported by pollux-vmm"),
        (kernel(&["--event-monitor", "/e"]), "--event-monitor: expected key=value, got \"/e\""),
        (
            kernel(&["--event-monitor", "path=/nowhere/e"]),
            "the event monitor /nowhere/e cannot be opened: No such file",
        ),
        (
            vec!["--api-socket", "/nowhere/s"],
            "the lock file of the API socket, /nowhere/s.lock, cannot be used: No such",
        ),
        (vec!["--api-socket", "fd=99"], "file descriptor 99 is not a listening unix socket: Bad file descriptor"),
        (vec!["--ft", "role=boss"], "--ft: role=boss is not auto, primary or standby"),
        (vec!["--ft", "role=auto,witness=/w,standby-peers=[1.2.3.4:1/1.2.3.5:1]"], "--ft: listen= is missing"),
        (
            kernel(&["--ft", "role=primary,witness=/nowhere/w"]),
            "The VM could not boot: --ft: witness /nowhere/w does not say who may run this VM: cannot find the folder",
        ),
        (vec!["--ft", "role=standby,listen=1.2.3.4:1"], "--ft: heartbeat= is missing"),
        (
            vec!["--ft", "role=standby,listen=1.2.3.4:1,heartbeat=1.2.3.4:2,pair=nosuch"],
            "--ft: the certificates for TLS cannot be used: ",
        ),
    ] {
        let mut command = Command::new(BINARY);
        let output = command.args(&arguments).env("POLLUX_PAIRS", pairs.path()).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(text.starts_with(&format!("pollux-vmm: {expected}")), "{arguments:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn version_and_help() {
    let version = run(&["--version"]);
    assert!(version.status.success());
    assert!(version.stdout.starts_with(b"cloud-hypervisor v53.0.0 (pollux-vmm "));
    assert!(run(&["--help"]).status.success());
}

/// A VMM without a VM, listening.
fn listening(socket: &Path) -> (Child, UnixStream) {
    listens(Command::new(BINARY).arg("--api-socket").arg(socket).stdin(Stdio::null()), socket)
}

fn listens(command: &mut Command, socket: &Path) -> (Child, UnixStream) {
    let mut child = command.spawn().unwrap();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return (child, stream),
            Err(_) => assert!(child.try_wait().unwrap().is_none(), "it has ended"),
        }
        std::thread::yield_now();
    }
}

#[test]
fn api_socket_of_a_live_vmm_is_refused_and_sigterm_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api");
    let (mut child, mut stream) = listening(&socket);
    stream.write_all(b"GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n").unwrap();
    let mut start = [0; 15];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 200 \r\n");

    let second = run(&["--api-socket", socket.to_str().unwrap()]);
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8(second.stderr).unwrap();
    assert!(text.ends_with("is in use by another process\n"), "{text}");

    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn vmm_shutdown_answers_and_ends_cleanly() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api");
    let (mut child, mut stream) = listening(&socket);
    stream.write_all(b"PUT /api/v1/vmm.shutdown HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 \r\n"), "{answer}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_vmm_whose_log_reader_has_left_lives_on() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api");
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(BINARY);
    command.args(["-vvv", "--api-socket"]).arg(&socket).stdin(Stdio::null()).stderr(writer);
    let (mut child, mut stream) = listens(&mut command, &socket);
    stream.write_all(b"PUT /api/v1/vm.boot HTTP/1.1\r\n\r\nPUT /api/v1/vmm.shutdown HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("VM is not created"), "{answer}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
