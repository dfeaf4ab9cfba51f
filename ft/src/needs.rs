//! What the engine's threads need of the kernel, where that is more than a group or two.

use host_kit::sandbox::Needs;

/// A witness: a folder, which may be on a file server, or etcd.
pub const KEEPER: Needs = Needs::FILES
    .union(Needs::STORAGE)
    .union(Needs::NETWORK)
    .union(Needs::NAMES)
    .union(Needs::MESSAGES)
    .union(Needs::THREADS);

/// Calls hosts, and a witness of its own.
pub const CALLER: Needs = KEEPER;

/// Listens, calls and starts whatever a session has; stops the VM, and captures or loads it.
pub const ENGINE: Needs =
    CALLER.union(Needs::ACCEPT).union(Needs::SCHEDULE).union(Needs::SHARED_MEMORY).union(Needs::KVM);
