//! Starts processes for this one, which may not: no thread of a VMM can execute a program.
//!
//! The launcher is a process that is made before any other thread and before any filter, so that what it
//! starts inherits none. It has nothing of the VM. What it starts are children of the VMM, not of the
//! launcher (`CLONE_PARENT`). It ends with the VMM: when the socket between them closes.
//!
//! In: the name of a program, its arguments and descriptors. Out: a [`Child`]. Never: another program than
//! those of devices, whatever it is asked; nor, once it is limited, a file that the VM's configuration does
//! not name, whatever the arguments say.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use host_kit::capabilities::{Capability, holds, keep, limit_programs};
use host_kit::core_dump;
use host_kit::landlock::{self, Access, Others, Place};
use host_kit::sync::lock;
use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

use super::child::Child;
use super::program::{DISK_PROGRAM, NET_PROGRAM, find};

/// The first word of a request to limit files.
const LIMIT: &[u8] = b"limit";
/// That of a request to start a program: whether its standard output is among the descriptors.
const START: [&[u8]; 2] = [b"start", b"start-with-output"];
/// How a request writes what may be done at a place.
const LETTERS: [(u8, Access); 3] = [(b'r', Access::Read), (b'w', Access::Write), (b'x', Access::Execute)];
/// The longest request: program and arguments.
const REQUEST_MAX: usize = 64 << 10;
/// Standard output and error, and what else a process inherits.
const FDS_MAX: usize = 8;
/// The number of the first descriptor that a process inherits beyond the standard ones.
pub(super) const FIRST_FD: RawFd = 3;
/// Descriptors are kept above all numbers that a process gets them at.
const ASIDE: RawFd = 64;
/// The exit code of a process that never became its program, as of a shell.
const NOT_EXECUTED: i32 = 127;

/// Of root's capabilities: taps, files whoever owns them, real-time priority, and namespaces of their own.
const OF_DEVICES: [Capability; 5] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_SYS_NICE,
    Capability::CAP_SYS_ADMIN,
];

/// Whether a program of this name may be started.
type May = fn(&str) -> bool;

/// The one of this process, from its start to its end.
static LAUNCHER: Mutex<Option<Launcher>> = Mutex::new(None);

/// A launcher, as the VMM sees it.
struct Launcher {
    socket: OwnedFd,
    pid: Pid,
}

/// Starts the launcher. To be called before there are threads, and before the caller is
/// confined.
///
/// # Errors
/// When there can be no more processes or sockets.
pub fn start() -> io::Result<()> {
    begin(of_devices)
}

fn of_devices(program: &str) -> bool {
    [DISK_PROGRAM, NET_PROGRAM].contains(&program)
}

/// The launcher starts programs that `may` be started.
fn begin(may: May) -> io::Result<()> {
    let mut launcher = lock(&LAUNCHER);
    if launcher.is_none() {
        *launcher = Some(Launcher::start(may)?);
    }
    Ok(())
}

/// Ends the launcher, if there is one. What it has started goes on.
pub fn end() {
    if let Some(Launcher { socket, pid }) = lock(&LAUNCHER).take() {
        drop(socket);
        // It has nothing to do but to end, and is nobody else's child.
        let _ = waitpid(pid, None);
    }
}

/// Starts `program` with `stdout` and `stderr`, and with `inherited` as descriptors from [`FIRST_FD`] on.
pub(crate) fn launch(
    program: &str,
    arguments: &[OsString],
    (stdout, stderr): (Option<BorrowedFd<'_>>, BorrowedFd<'_>),
    inherited: &[BorrowedFd<'_>],
) -> io::Result<Child> {
    begin(if cfg!(test) { |_| true } else { of_devices })?;
    let mut words = vec![START[usize::from(stdout.is_some())], program.as_bytes()];
    words.extend(arguments.iter().map(|argument| argument.as_bytes()));
    let fds: Vec<_> = stdout.iter().chain([&stderr]).chain(inherited).map(AsRawFd::as_raw_fd).collect();
    match ask(&words, &fds)? {
        (pid, Some(end)) => Ok(Child::new(pid, end)),
        // There is no descriptor left to watch it by. It ends by itself: its sockets are closed.
        (_, None) => Err(Errno::EMFILE.into()),
    }
}

/// Leaves what is started from now on, and the launcher itself, these places.
///
/// # Errors
/// When the kernel refuses, or the launcher has ended.
pub(crate) fn limit_to(places: &[Place]) -> io::Result<()> {
    begin(of_devices)?;
    let place = |(path, access): &Place| {
        let letter = LETTERS.iter().find(|(_, named)| named == access).map(|(letter, _)| *letter);
        letter.into_iter().chain(path.as_os_str().as_bytes().iter().copied()).collect::<Vec<_>>()
    };
    let words: Vec<_> = std::iter::once(LIMIT.to_vec()).chain(places.iter().map(place)).collect();
    ask(&words.iter().map(Vec::as_slice).collect::<Vec<_>>(), &[]).map(drop)
}

/// What the launcher answers to a request: a number, and a descriptor.
fn ask(words: &[&[u8]], fds: &[RawFd]) -> io::Result<(u32, Option<OwnedFd>)> {
    // No path, and no argument of a program, can have this byte.
    if words.iter().any(|word| word.contains(&0)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // One request at a time.
    let launcher = lock(&LAUNCHER);
    let socket = &launcher.as_ref().ok_or(io::ErrorKind::NotConnected)?.socket;
    let gone = |error| io::Error::other(format!("the launcher of device processes has ended: {error}"));
    send(socket, &words.join(&0), fds).map_err(gone)?;
    let mut answer = [0; 4];
    let (len, fds, _) = receive(socket, &mut answer).map_err(gone)?;
    match i32::from_ne_bytes(answer) {
        _ if len < answer.len() => Err(gone(io::ErrorKind::UnexpectedEof.into())),
        errno @ ..0 => Err(io::Error::from_raw_os_error(-errno)),
        number => Ok((number.cast_unsigned(), fds.into_iter().next())),
    }
}

impl Launcher {
    fn start(may: May) -> io::Result<Self> {
        let kind = SockType::SeqPacket;
        let (near, far) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: the child goes on as the only thread of its process, with what the C library allows it:
        // locks of the allocator are free there.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self { socket: near, pid: child }),
            ForkResult::Child => {
                serve(&far, may);
                // SAFETY: the process ends, and nothing that belongs to its parent is cleaned up.
                unsafe { libc::_exit(0) }
            }
        }
    }
}

/// The life of the launcher.
fn serve(socket: &OwnedFd, may: May) {
    let _ = nix::sys::prctl::set_name(c"pollux-launcher");
    core_dump::leave_out_shared_memory();
    // An interrupt from the terminal is for the VMM.
    for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: no handler is installed.
        let _ = unsafe { signal(ignored, SigHandler::SigIgn) };
    }
    // What it starts gains no privileges either, and of root's only what devices need to open what they have.
    let limited = nix::sys::prctl::set_no_new_privs().map_err(io::Error::from);
    if limited.and_then(|()| limit_programs(&OF_DEVICES)).and_then(|()| keep(&OF_DEVICES)).is_err() {
        return;
    }
    let Ok(kept) = keep_only(socket) else { return };
    let mut request = vec![0; REQUEST_MAX];
    loop {
        let answer = match receive(&kept, &mut request) {
            Ok((0, ..)) | Err(_) => return,
            Ok((len, fds, true)) => carry_out(&request[..len], &fds, may),
            Ok((_, _, false)) => Err(Errno::EMSGSIZE),
        };
        let (answer, end) = answer.unwrap_or_else(|errno| (-(errno as i32), None));
        let fds: Vec<_> = end.iter().map(AsRawFd::as_raw_fd).collect();
        if send(&kept, &answer.to_ne_bytes(), &fds).is_err() {
            return;
        }
    }
}

/// Closes whatever the VMM has open, so that nobody waits for its end here.
fn keep_only(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for standard in 0..FIRST_FD {
        // SAFETY: no memory is passed; nothing of this process owns the standard descriptors.
        Errno::result(unsafe { libc::dup2(null.as_raw_fd(), standard) })?;
    }
    // SAFETY: no memory is passed; a descriptor of our own comes back.
    let kept = Errno::result(unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD_CLOEXEC, ASIDE) })?;
    // SAFETY: no memory is passed; nothing here uses the others any more.
    unsafe {
        libc::close_range(FIRST_FD.cast_unsigned(), kept.cast_unsigned() - 1, 0);
        libc::close_range(kept.cast_unsigned() + 1, u32::MAX, 0);
    }
    std::mem::forget(null);
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(kept) })
}

/// Does what the request asks for: a number and a descriptor, see [`start_one`].
fn carry_out(request: &[u8], fds: &[OwnedFd], may: May) -> Result<(i32, Option<OwnedFd>), Errno> {
    let mut words = request.split(|byte| *byte == 0);
    match words.next() {
        Some(LIMIT) => limit_itself(words).map(|()| (0, None)),
        Some(word) => {
            let with_stdout = START.iter().position(|start| *start == word).ok_or(Errno::EINVAL)? == 1;
            start_one(words, fds, with_stdout, may).map(|(pid, end)| (pid, Some(end)))
        }
        None => Err(Errno::EINVAL),
    }
}

/// Leaves itself, and what it starts, the places of the request. Limits add up: none is ever taken back.
fn limit_itself<'a>(words: impl Iterator<Item = &'a [u8]>) -> Result<(), Errno> {
    let place = |word: &[u8]| {
        let (letter, path) = word.split_first()?;
        let (_, access) = LETTERS.iter().find(|(named, _)| named == letter)?;
        Some((PathBuf::from(OsStr::from_bytes(path)), *access))
    };
    let places = words.map(place).collect::<Option<Vec<_>>>().ok_or(Errno::EINVAL)?;
    // Devices listen on sockets, and send signals to nobody but themselves: they limit that on their own.
    landlock::limit(&places, Others::Reachable).map_err(|_| Errno::EPERM)
}

/// Its process id, and a descriptor that is readable when it has ended.
fn start_one<'a>(
    mut words: impl Iterator<Item = &'a [u8]>,
    fds: &[OwnedFd],
    with_stdout: bool,
    may: May,
) -> Result<(i32, OwnedFd), Errno> {
    let program = words.next().and_then(|name| str::from_utf8(name).ok()).ok_or(Errno::EINVAL)?;
    if !may(program) {
        return Err(Errno::EPERM);
    }
    let mut command = Command::new(find(program).ok_or(Errno::ENOENT)?);
    command.args(words.map(OsStr::from_bytes));
    let mut end: libc::c_int = -1;
    // The first of its own namespace of processes, where that is allowed: it can name no other one.
    let alone = if holds(Capability::CAP_SYS_ADMIN) { libc::CLONE_NEWPID } else { 0 };
    let flags = libc::CLONE_PARENT | libc::CLONE_PIDFD | libc::SIGCHLD | alone;
    // SAFETY: without a stack of its own the child goes on with a copy of this one; the kernel writes one
    // descriptor to `end` here.
    let pid = Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, &raw mut end, 0_usize, 0_usize) })?;
    if pid == 0 {
        become_program(command, fds, with_stdout);
        // SAFETY: the process ends, and nothing that belongs to its parent is cleaned up.
        unsafe { libc::_exit(NOT_EXECUTED) }
    }
    // SAFETY: just made for us, owned by nobody else.
    let end = unsafe { OwnedFd::from_raw_fd(end) };
    Ok((i32::try_from(pid).map_err(|_| Errno::EOVERFLOW)?, end))
}

/// Returns only if it fails, which is said on standard error.
fn become_program(mut command: Command, fds: &[OwnedFd], with_stdout: bool) {
    if let Err(error) = take_over(fds, with_stdout) {
        eprintln!("its descriptors are not there: {error}");
        return;
    }
    command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    // What it logs is passed on as text.
    command.env("NO_COLOR", "1");
    for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: no handler is installed.
        let _ = unsafe { signal(ignored, SigHandler::SigDfl) };
    }
    // Its own process group: an interrupt from the terminal is for the VMM, which ends its devices in order.
    let error = command.process_group(0).exec();
    eprintln!("it cannot be executed: {error}");
}

/// Puts the descriptors where the program expects them, and closes all others.
fn take_over(fds: &[OwnedFd], with_stdout: bool) -> Result<(), Errno> {
    let first = if with_stdout { libc::STDOUT_FILENO } else { libc::STDERR_FILENO };
    let mut aside = Vec::new();
    for fd in fds {
        // SAFETY: no memory is passed.
        aside.push(Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, ASIDE) })?);
    }
    let mut last = first;
    for (number, fd) in (first..).zip(aside) {
        // SAFETY: no memory is passed; whatever had this number is not used any more.
        Errno::result(unsafe { libc::dup2(fd, number) })?;
        last = number;
    }
    // SAFETY: no memory is passed. On exec only: until then they have owners.
    let flags = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
    // SAFETY: no memory is passed. On exec only: until then they have owners.
    Errno::result(unsafe { libc::close_range(last.max(2).cast_unsigned() + 1, u32::MAX, flags) })?;
    Ok(())
}

fn send(socket: &OwnedFd, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Length of the message, its descriptors, and whether that is all of them and of it.
fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>, bool)> {
    let mut space = nix::cmsg_space!([RawFd; FDS_MAX]);
    loop {
        let mut into = [IoSliceMut::new(bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut into, Some(&mut space), flags) {
            Ok(message) => message,
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let mut fds = Vec::new();
        // An error: some have not come, as there are no more numbers for them.
        for control in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(received) = control {
                // SAFETY: the kernel has just made these descriptors for us; nobody else knows them.
                fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let whole = !message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
        return Ok((message.bytes, fds, whole));
    }
}
