//! What a thread may need of the kernel, in groups that can be combined.

use bitflags::bitflags;

bitflags! {
    /// What a thread needs beyond its own memory, its clock, its log, and reading, writing and waiting for
    /// descriptors that it has: that is allowed to all. [`super::calls`] has the system calls of each.
    #[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
    pub struct Needs: u32 {
        /// Messages over sockets that are connected, descriptors among them, and their options.
        const MESSAGES = 1;
        /// Connections that come in at a socket that is there, and the end of its file.
        const ACCEPT = 1 << 13;
        /// New sockets: to call and to listen, within this host and by IP.
        const NETWORK = 1 << 1;
        /// The addresses of host names, for which the C library loads code and asks others.
        const NAMES = 1 << 2;
        /// Files that are opened, made, renamed and removed by name.
        const FILES = 1 << 3;
        /// Reading and writing at offsets, and syncing, in files that are open.
        const STORAGE = 1 << 4;
        /// Memory that processes share, and mappings of what is open.
        const SHARED_MEMORY = 1 << 5;
        /// Running a vCPU, its registers, and the interrupts and doorbells of its VM.
        const VCPU = 1 << 6;
        /// Everything that KVM has.
        const KVM = 1 << 7;
        /// A tap and its interface.
        const TAP = 1 << 8;
        /// A terminal's mode.
        const TERMINAL = 1 << 9;
        /// A CPU and a priority of its own.
        const SCHEDULE = 1 << 10;
        /// Threads, which may have no more than this one.
        const THREADS = 1 << 11;
        /// Signals to, and news of, the processes that this one has started.
        const CHILDREN = 1 << 12;
        /// Namespaces of its own, and what is mounted in them.
        const NAMESPACES = 1 << 14;
    }
}

impl Needs {
    /// Nothing but what is allowed to all.
    pub const NOTHING: Self = Self::empty();
}
