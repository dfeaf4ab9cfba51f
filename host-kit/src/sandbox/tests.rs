//! What is not allowed, tried in processes of its own: each runs one of the functions below, which is marked
//! as ignored so that nobody runs it otherwise.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use super::*;

/// A system call that touches nothing, whether it is carried out or not.
fn call(number: libc::c_long) -> io::Error {
    // SAFETY: with arguments of zero none of the calls below reads or writes memory.
    let result = unsafe { libc::syscall(number, 0_usize, 0_usize, 0_usize, 0_usize, 0_usize, 0_usize) };
    assert_eq!(result, -1, "it is not meant to succeed");
    io::Error::last_os_error()
}

/// Runs the test called `name` in a process of its own.
fn run(name: &str) -> Output {
    let this = std::env::current_exe().unwrap();
    let name = format!("sandbox::tests::{name}");
    let mut command = Command::new(this);
    command.args([&name, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command.output().unwrap()
}

/// That it ends with SIGSYS, and what it says before.
fn killed(name: &str) -> String {
    let output = run(name);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{:?}: {said}", output.status);
    said
}

fn passes(name: &str) {
    let output = run(name);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn begin_with(mode: Mode) {
    start("tester", mode, libc::STDERR_FILENO).unwrap();
}

/// What a thread with these needs does.
fn within<T: Send + 'static>(needs: Needs, body: impl FnOnce() -> T + Send + 'static) -> T {
    crate::thread::spawn("confined", needs, body).unwrap().join().unwrap()
}

#[test]
fn a_thread_that_makes_a_socket_without_need_ends_the_process_and_says_so() {
    let said = killed("child_socket");
    assert!(said.contains("tester: thread confined made system call 41 (socket, 0x1, "), "{said}");
}

#[test]
#[ignore = "run in a process of its own"]
fn child_socket() {
    begin_with(Mode::True);
    within(Needs::FILES | Needs::MESSAGES, || std::os::unix::net::UnixDatagram::unbound().is_ok());
}

#[test]
fn no_needs_allow_another_program() {
    let said = killed("child_execve");
    assert!(said.contains("(execve, "), "{said}");
}

#[test]
#[ignore = "run in a process of its own"]
fn child_execve() {
    begin_with(Mode::True);
    within(Needs::all(), || call(libc::SYS_execve));
}

#[test]
fn a_confined_thread_makes_no_memory_executable() {
    let said = killed("child_mprotect");
    assert!(said.contains("(mprotect, "), "{said}");
}

#[test]
#[ignore = "run in a process of its own"]
fn child_mprotect() {
    begin_with(Mode::True);
    // SAFETY: no page is at that address.
    within(Needs::all() - Needs::NAMES, || unsafe { libc::mprotect(0x1000 as *mut _, 4096, libc::PROT_EXEC) });
}

#[test]
fn threads_can_be_started_and_processes_cannot() {
    let said = killed("child_fork");
    assert!(said.contains("(clone, "), "{said}");
}

#[test]
#[ignore = "run in a process of its own"]
fn child_fork() {
    begin_with(Mode::True);
    // SAFETY: a child, if there were one, would end at once.
    let fork = || unsafe {
        if libc::fork() == 0 {
            libc::_exit(0)
        }
    };
    within(Needs::all(), fork);
}

#[test]
fn nobody_takes_the_report_away() {
    let said = killed("child_handler");
    assert!(said.contains("(rt_sigaction, 0x1f, "), "{said}");
}

#[test]
#[ignore = "run in a process of its own"]
fn child_handler() {
    begin_with(Mode::True);
    // SAFETY: no handler is installed.
    within(Needs::all(), || unsafe { libc::signal(libc::SIGSYS, libc::SIG_IGN) });
}

#[test]
fn the_thread_that_starts_others_is_confined_as_well() {
    let said = killed("child_main");
    assert!(said.contains("(ptrace, "), "{said}");
}

#[test]
#[ignore = "run in a process of its own"]
fn child_main() {
    begin_with(Mode::True);
    confine(Needs::all()).unwrap();
    call(libc::SYS_ptrace);
}

#[test]
fn what_is_needed_is_allowed_and_nothing_is_inherited_by_other_programs() {
    passes("child_allowed");
}

#[test]
#[ignore = "run in a process of its own"]
fn child_allowed() {
    begin_with(Mode::True);
    assert!(std::fs::read_to_string("/proc/thread-self/status").unwrap().contains("NoNewPrivs:\t1"));
    let filters = || std::fs::read_to_string("/proc/thread-self/status").unwrap().contains("Seccomp:\t2");
    assert!(!filters());
    assert!(within(Needs::FILES, filters));
    assert!(within(Needs::NETWORK, || std::net::TcpListener::bind("127.0.0.1:0").is_ok()));
    let inner = || crate::thread::spawn("inner", Needs::NOTHING, || 7).unwrap().join().unwrap();
    assert_eq!(within(Needs::THREADS, inner), 7);
    // The C library opens files unasked, and can do without.
    let open = within(Needs::NOTHING, || std::fs::File::open("/dev/null").map(drop));
    assert_eq!(open.unwrap_err().raw_os_error(), Some(libc::EACCES));
    let look = within(Needs::NOTHING, || std::fs::metadata("/dev/null").map(drop));
    assert_eq!(look.unwrap_err().raw_os_error(), Some(libc::EACCES));
    assert!(!filters(), "the others have none because of that");
}

#[test]
fn a_thread_starts_none_that_needs_more() {
    passes("child_more");
}

#[test]
#[ignore = "run in a process of its own"]
fn child_more() {
    begin_with(Mode::True);
    let more = within(Needs::THREADS, || crate::thread::spawn("more", Needs::NETWORK, || ()).map(drop));
    let error = more.unwrap_err();
    assert!(error.to_string().contains("would need Needs(NETWORK)"), "{error}");
    let any = within(Needs::NETWORK, || crate::thread::spawn("any", Needs::NOTHING, || ()).map(drop));
    let error = any.unwrap_err();
    assert!(error.to_string().contains("would need Needs(THREADS)"), "{error}");
}

#[test]
fn a_call_can_be_refused_or_carried_out_instead() {
    passes("child_errno");
    passes("child_log");
    passes("child_false");
}

#[test]
#[ignore = "run in a process of its own"]
fn child_errno() {
    begin_with(Mode::Errno);
    assert_eq!(within(Needs::NOTHING, || call(libc::SYS_execve)).raw_os_error(), Some(libc::EPERM));
}

#[test]
#[ignore = "run in a process of its own"]
fn child_log() {
    begin_with(Mode::Log);
    assert_eq!(within(Needs::NOTHING, || call(libc::SYS_execve)).raw_os_error(), Some(libc::EFAULT));
}

#[test]
#[ignore = "run in a process of its own"]
fn child_false() {
    begin_with(Mode::False);
    assert_eq!(within(Needs::NOTHING, || call(libc::SYS_execve)).raw_os_error(), Some(libc::EFAULT));
}

#[test]
fn modes_are_cloud_hypervisors_words() {
    for word in ["true", "false", "log", "errno"] {
        assert_eq!(word.parse::<Mode>().unwrap().as_str(), word);
    }
    assert!("yes".parse::<Mode>().is_err());
}
