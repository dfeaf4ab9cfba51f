//! Fuzz targets: each hands one input to the code that reads such bytes in production, and checks what must
//! hold for any bytes.
//!
//! ```text
//!   scripts/fuzz ──► fuzz_targets/NAME ──┐
//!                                        ├──► fuzz::NAME::run(input) ──► the real reader
//!   scripts/test ──► tests/corpora ──────┘
//!                      corpus/NAME/*: seeds that the real encoders wrote (`seeds`), and what runs found
//! ```
//! A reader behind a checksum gets frames that the real encoder has put around the input, beside the raw
//! input: a fuzzer does not find hashes.
#![allow(clippy::unwrap_used, reason = "a panic is how targets fail")]

mod bytes;
mod guest_ring;
mod memory;
mod pci_machine;
pub mod seed;
pub mod seeds;

/// Declares the targets.
macro_rules! targets {
    ($( $(#[doc = $doc:literal])+ $name:ident; )+) => {
        $( $(#[doc = $doc])+ pub mod $name; )+

        /// A target: its name, and what it does with an input.
        pub type Target = (&'static str, fn(&[u8]));

        /// All of them.
        pub const TARGETS: &[Target] = &[$( (stringify!($name), $name::run), )+];
    };
}

targets! {
    /// JSON bodies of API requests, and the configuration in them.
    api;
    /// The audit log of the API.
    audit_log;
    /// Heartbeats.
    beats;
    /// Descriptor chains of the disk.
    block_chains;
    /// What changed in a page.
    delta;
    /// The file with a disk image's record.
    disk_record;
    /// Messages between the VMM and its device processes.
    ft_ctl;
    /// The API's socket.
    http;
    /// Kernel and firmware images.
    kernel;
    /// Bodies of the session's short frames.
    messages;
    /// The mirror stream of a disk.
    mirror;
    /// Descriptor chains of the network card.
    net_chains;
    /// Option texts of command lines.
    options;
    /// Packed bodies.
    packing;
    /// Checkpoints, from the primary's memory to the standby's.
    pages;
    /// A virtio device that a driver does what it likes to.
    virtio_pci;
    /// A checkpoint's state of the VM.
    vm_state;
    /// Frames of the session's stream.
    wire;
    /// The witness's record.
    witness_record;
}
