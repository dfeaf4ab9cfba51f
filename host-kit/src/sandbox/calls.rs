//! The system calls of each group, and what of their arguments is looked at.

use super::needs::Needs;

/// A system call, and with which arguments it is allowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) number: i64,
    name: &'static str,
    pub(super) only: Only,
}

/// Arguments are counted from 0; their low 32 bits are compared.
#[derive(Clone, Copy, Debug)]
pub(super) enum Only {
    /// With any.
    Any,
    /// With one of these values.
    Values(u8, &'static [u32]),
    /// With one that has one of these values under this mask.
    Masked(u8, u32, &'static [u32]),
    /// With any other than this value.
    Not(u8, u32),
    /// With the process that asks.
    ThisProcess(u8),
}

/// Calls by their names in libc: as they are, or with a condition.
macro_rules! calls {
    ($($call:ident $(: $only:expr)?),* $(,)?) => {
        &[$(Call { number: libc::$call, name: stringify!($call), only: calls!(@ $($only)?) }),*]
    };
    (@) => { Only::Any };
    (@ $only:expr) => { $only };
}

/// Memory that cannot be executed.
const DATA: Only = Only::Masked(2, libc::PROT_EXEC.cast_unsigned(), &[0]);

/// Every thread: its memory, locks and clocks, its log, its end, and what can be done with a descriptor that
/// is there without knowing what it is.
const ALL: &[Call] = calls![
    SYS_brk,
    SYS_clock_getres,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_close,
    SYS_dup,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_wait,
    SYS_eventfd2,
    SYS_exit,
    SYS_exit_group,
    SYS_fcntl: Only::Values(1, &FCNTL),
    SYS_fstat,
    SYS_futex,
    SYS_getpid,
    SYS_getrandom,
    SYS_gettid,
    SYS_gettimeofday,
    SYS_lseek,
    SYS_madvise,
    SYS_mmap: DATA,
    SYS_mprotect: DATA,
    SYS_mremap,
    SYS_munmap,
    SYS_nanosleep,
    SYS_newfstatat: Only::Masked(3, AT_DESCRIPTOR, &[AT_DESCRIPTOR]),
    SYS_poll,
    SYS_ppoll,
    SYS_prctl: Only::Values(0, &PRCTL),
    SYS_read,
    SYS_readv,
    SYS_restart_syscall,
    SYS_rseq,
    SYS_rt_sigaction: Only::Not(0, libc::SIGSYS.cast_unsigned()),
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_rt_sigtimedwait,
    SYS_sched_getaffinity,
    SYS_sched_yield,
    SYS_set_robust_list,
    SYS_sigaltstack,
    SYS_statx: Only::Masked(2, AT_DESCRIPTOR, &[AT_DESCRIPTOR]),
    SYS_tgkill: Only::ThisProcess(0),
    SYS_timerfd_create,
    SYS_timerfd_settime,
    SYS_write,
    SYS_writev,
];

/// What is asked is asked of a descriptor.
const AT_DESCRIPTOR: u32 = libc::AT_EMPTY_PATH.cast_unsigned();

const FCNTL: [u32; 6] =
    bits([libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_GET_SEALS]);

/// Names of threads, and of memory, which the C library gives.
const PRCTL: [u32; 3] = bits([libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA]);

const MESSAGES: &[Call] = calls![
    SYS_getpeername,
    SYS_getsockname,
    SYS_getsockopt,
    SYS_ioctl: Only::Values(1, &[libc::FIONBIO as u32, libc::FIONREAD as u32]),
    SYS_recvfrom,
    SYS_recvmmsg,
    SYS_recvmsg,
    SYS_sendmmsg,
    SYS_sendmsg,
    SYS_sendto,
    SYS_setsockopt,
    SYS_shutdown,
];

const ACCEPT: &[Call] = calls![SYS_accept, SYS_accept4, SYS_unlink];

const NETWORK: &[Call] = calls![
    SYS_bind,
    SYS_connect,
    SYS_getsockopt,
    SYS_ioctl: Only::Values(1, &requests([libc::SIOCGIFINDEX])),
    SYS_listen,
    SYS_setsockopt,
    SYS_socket: Only::Values(0, &bits([libc::AF_UNIX, libc::AF_INET, libc::AF_INET6])),
    SYS_socketpair: Only::Values(0, &bits([libc::AF_UNIX])),
];

const NAMES: &[Call] = calls![
    SYS_access,
    SYS_epoll_pwait2,
    SYS_faccessat2,
    SYS_getdents64,
    SYS_getegid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getuid,
    SYS_mmap,
    SYS_mprotect,
    SYS_newfstatat,
    SYS_openat,
    SYS_pread64,
    SYS_readlink,
    SYS_socket: Only::Values(0, &bits([libc::AF_NETLINK])),
    SYS_statx,
    SYS_sysinfo,
    SYS_uname,
];

const FILES: &[Call] = calls![
    SYS_access,
    SYS_chmod,
    SYS_faccessat2,
    SYS_fchmod,
    SYS_fchmodat,
    SYS_fchmodat2,
    SYS_fchownat,
    SYS_fcntl: Only::Values(1, &LOCKS),
    SYS_fdatasync,
    SYS_flock,
    SYS_fstatfs,
    SYS_fsync,
    SYS_ftruncate,
    SYS_getcwd,
    SYS_getdents64,
    SYS_linkat,
    SYS_mkdir,
    SYS_newfstatat,
    SYS_openat,
    SYS_readlink,
    SYS_readlinkat,
    SYS_rename,
    SYS_renameat,
    SYS_rmdir,
    SYS_statfs,
    SYS_statx,
    SYS_unlink,
    SYS_unlinkat,
];

const LOCKS: [u32; 6] =
    bits([libc::F_GETLK, libc::F_SETLK, libc::F_SETLKW, libc::F_OFD_GETLK, libc::F_OFD_SETLK, libc::F_OFD_SETLKW]);

const STORAGE: &[Call] = calls![
    SYS_fallocate,
    SYS_fdatasync,
    SYS_fsync,
    SYS_ftruncate,
    SYS_ioctl: Only::Values(1, &FILE_REQUESTS),
    SYS_pread64,
    SYS_preadv,
    SYS_preadv2,
    SYS_pwrite64,
    SYS_pwritev,
    SYS_pwritev2,
    SYS_sync_file_range,
];

/// The file system's name, and which file of this inode it is: FS_IOC_GETFSUUID, FS_IOC_GETVERSION.
const FILE_REQUESTS: [u32; 2] = [0x8011_1500, 0x8008_7601];

const SHARED_MEMORY: &[Call] = calls![
    SYS_fallocate,
    SYS_fcntl: Only::Values(1, &bits([libc::F_ADD_SEALS])),
    SYS_ftruncate,
    SYS_memfd_create,
    SYS_mincore,
];

const VCPU: &[Call] = calls![SYS_getcpu, SYS_ioctl: Only::Masked(1, 0xffff, &VCPU_REQUESTS)];

/// Kind and number of the requests, without size and direction. The first is by far the most frequent.
const VCPU_REQUESTS: [u32; 41] = [
    0xae80, // RUN
    0xae81, 0xae82, // GET_REGS, SET_REGS
    0xae83, 0xae84, // GET_SREGS, SET_SREGS
    0xae88, 0xae89, // GET_MSRS, SET_MSRS
    0xae8c, 0xae8d, // GET_FPU, SET_FPU
    0xae8e, 0xae8f, // GET_LAPIC, SET_LAPIC
    0xae90, // SET_CPUID2
    0xae98, 0xae99, // GET_MP_STATE, SET_MP_STATE
    0xae9a, // NMI
    0xae9f, 0xaea0, // GET_VCPU_EVENTS, SET_VCPU_EVENTS
    0xaea1, // GET_DEBUGREGS
    0xaea2, // SET_DEBUGREGS, SET_TSC_KHZ
    0xaea3, // GET_TSC_KHZ
    0xaea4, // GET_XSAVE
    0xaea5, // SET_XSAVE, SIGNAL_MSI
    0xaea6, 0xaea7, // GET_XCRS, SET_XCRS
    0xaead, // KVMCLOCK_CTRL
    0xaebe, 0xaebf, // GET_NESTED_STATE, SET_NESTED_STATE
    0xaecc, 0xaecd, // GET_SREGS2, SET_SREGS2
    0xaecf, // GET_XSAVE2
    0xaee1, 0xaee2, // SET_DEVICE_ATTR, GET_DEVICE_ATTR
    0xae03, // CHECK_EXTENSION
    0xae42, 0xaec0, // GET_DIRTY_LOG, CLEAR_DIRTY_LOG
    0xae61, // IRQ_LINE
    0xae6a, // SET_GSI_ROUTING
    0xae76, 0xae79, // IRQFD, IOEVENTFD
    0xae7b, 0xae7c, // SET_CLOCK, GET_CLOCK
];

const KVM: &[Call] = calls![SYS_ioctl: Only::Masked(1, 0xff00, &[0xae00])];

const TAP: &[Call] = calls![SYS_ioctl: Only::Values(1, &TAP_REQUESTS)];

const TAP_REQUESTS: [u32; 12] = requests([
    libc::TUNSETIFF,
    libc::TUNGETIFF,
    libc::TUNGETFEATURES,
    libc::TUNSETOFFLOAD,
    libc::TUNSETVNETHDRSZ,
    libc::SIOCGIFMTU,
    libc::SIOCSIFMTU,
    libc::SIOCGIFFLAGS,
    libc::SIOCSIFFLAGS,
    libc::SIOCSIFADDR,
    libc::SIOCSIFNETMASK,
    libc::SIOCSIFHWADDR,
]);

const TERMINAL: &[Call] = calls![SYS_ioctl: Only::Values(1, &TERMINAL_REQUESTS)];

/// Its mode, and a new one of which this process has the other side.
const TERMINAL_REQUESTS: [u32; 10] = requests([
    libc::TCGETS,
    libc::TCGETS2,
    libc::TCSETS,
    libc::TCSETS2,
    libc::TCSETSF,
    libc::TCSETSF2,
    libc::TCSETSW,
    libc::TCSETSW2,
    libc::TIOCGPTN,
    libc::TIOCSPTLCK,
]);

const SCHEDULE: &[Call] = calls![
    SYS_getcpu,
    SYS_sched_setaffinity: Only::Values(0, &[0]),
    SYS_sched_setscheduler: Only::Values(0, &[0]),
];

/// And what limits a thread, which threads that it starts inherit.
const THREADS: &[Call] = calls![
    SYS_capget,
    SYS_capset,
    SYS_clone: Only::Masked(0, CLONE_NEW, &[libc::CLONE_THREAD.cast_unsigned()]),
    SYS_landlock_add_rule,
    SYS_landlock_create_ruleset,
    SYS_landlock_restrict_self,
    SYS_prctl: Only::Values(0, &bits([libc::PR_SET_NO_NEW_PRIVS, libc::PR_SET_SECCOMP])),
    SYS_seccomp,
];

/// A thread of this process, and no namespace.
const CLONE_NEW: u32 = (libc::CLONE_THREAD
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS)
    .cast_unsigned();

const NAMESPACES: &[Call] = calls![
    SYS_chdir,
    SYS_getegid,
    SYS_geteuid,
    SYS_mount,
    SYS_pivot_root,
    SYS_prlimit64: Only::Values(0, &[0]),
    SYS_umount2,
    SYS_unshare,
];

const CHILDREN: &[Call] = calls![SYS_pidfd_send_signal, SYS_pipe2, SYS_wait4, SYS_waitid];

/// What libraries try and can do without, such as the C library when it gives memory back, or the standard
/// library when it reports a panic. It fails (EACCES) instead of ending the process, in threads that have not
/// one of the groups with it.
const OPTIONAL: &[Call] = calls![
    SYS_getcwd,
    SYS_newfstatat: Only::Masked(3, AT_DESCRIPTOR, &[0]),
    SYS_openat,
    SYS_readlink,
    SYS_readlinkat,
    SYS_statx: Only::Masked(2, AT_DESCRIPTOR, &[0]),
];

/// Calls that this kernel does not have, as far as a thread can tell (ENOSYS): their arguments are in memory,
/// where a filter cannot look. The C library has another way.
const ABSENT: &[Call] = calls![SYS_clone3];

/// In no group, but with a name that a report should have.
const OTHERS: &[Call] = calls![
    SYS_bpf,
    SYS_execve,
    SYS_execveat,
    SYS_fork,
    SYS_init_module,
    SYS_io_uring_setup,
    SYS_kill,
    SYS_open,
    SYS_perf_event_open,
    SYS_pidfd_open,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_ptrace,
    SYS_setns,
    SYS_setuid,
    SYS_userfaultfd,
    SYS_vfork,
];

const GROUPS: [(Needs, &[Call]); 15] = [
    (Needs::MESSAGES, MESSAGES),
    (Needs::ACCEPT, ACCEPT),
    (Needs::NETWORK, NETWORK),
    (Needs::NAMES, NAMES),
    (Needs::FILES, FILES),
    (Needs::STORAGE, STORAGE),
    (Needs::SHARED_MEMORY, SHARED_MEMORY),
    (Needs::VCPU, VCPU),
    (Needs::KVM, KVM),
    (Needs::TAP, TAP),
    (Needs::TERMINAL, TERMINAL),
    (Needs::SCHEDULE, SCHEDULE),
    (Needs::THREADS, THREADS),
    (Needs::CHILDREN, CHILDREN),
    (Needs::NAMESPACES, NAMESPACES),
];

/// What a thread with these needs may call.
pub(super) fn of(needs: Needs) -> impl Iterator<Item = Call> {
    let groups = GROUPS.iter().filter(move |(group, _)| needs.contains(*group));
    ALL.iter().chain(groups.flat_map(|(_, calls)| *calls)).copied()
}

/// What is only refused to a thread with these needs, and with which error.
pub(super) fn refused(needs: Needs) -> [(libc::c_int, Vec<Call>); 2] {
    let allowed = |call: &Call| of(needs).any(|other| other.number == call.number && matches!(other.only, Only::Any));
    let optional = OPTIONAL.iter().filter(|call| !allowed(call)).copied();
    [(libc::EACCES, optional.collect()), (libc::ENOSYS, ABSENT.to_vec())]
}

/// What people call it, if any thread may make it or it is known otherwise.
pub(super) fn name_of(number: i64) -> &'static str {
    let groups = GROUPS.iter().flat_map(|(_, calls)| *calls);
    let found = ALL.iter().chain(groups).chain(ABSENT).chain(OTHERS).find(|call| call.number == number);
    found.map_or("unknown", |call| call.name.trim_start_matches("SYS_"))
}

const fn bits<const N: usize>(values: [libc::c_int; N]) -> [u32; N] {
    let mut all = [0; N];
    let mut i = 0;
    while i < N {
        all[i] = values[i].cast_unsigned();
        i += 1;
    }
    all
}

/// The kernel takes the number of a request as 32 bits.
const fn requests<const N: usize>(values: [libc::Ioctl; N]) -> [u32; N] {
    let mut all = [0; N];
    let mut i = 0;
    while i < N {
        all[i] = values[i] as u32;
        i += 1;
    }
    all
}
