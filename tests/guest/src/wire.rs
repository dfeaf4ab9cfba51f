//! Datagrams of the guest's UDP service: a [`Request`] in, a [`Reply`] out, all fields little-endian u64 in
//! order.

/// Port of the service unless `port=` says otherwise.
pub const PORT: u16 = 7777;

/// TCP port that takes a stream, see [`crate::pattern::fill_stream`], and checks it.
pub const SINK_PORT: u16 = 7778;
/// TCP port that sends such a stream until the client has enough.
pub const SOURCE_PORT: u16 = 7779;

/// First field of a request.
pub const REQUEST_MAGIC: u64 = 0x5145_5258_554c_4c50;
/// First field of a reply.
pub const REPLY_MAGIC: u64 = 0x594c_5058_554c_4c50;

/// What a request asks for ([`Request::op`]).
pub mod op {
    /// Counters only. Changes nothing but [`super::Reply::echoes`].
    pub const ECHO: u64 = 1;
    /// Exactly-once work: see [`super::Request`].
    pub const WORK: u64 = 2;
    /// As `ECHO`, then forget the largest stall and the number of stalls.
    pub const CLEAR_STALLS: u64 = 3;
    /// Print `print WORD` on the serial line, then as `ECHO`.
    pub const PRINT: u64 = 4;
    /// Reply, then power off (ACPI S5).
    pub const POWER_OFF: u64 = 5;
    /// Reply, then reset: by ACPI (`word` 0), keyboard controller (1) or triple fault (2).
    pub const RESET: u64 = 6;
    /// Panic, with a message on the serial line.
    pub const PANIC: u64 = 7;
    /// Load from an unmapped address: an exception report on the serial line.
    pub const FAULT: u64 = 8;
    /// Reset the disk and set it up again, then as `ECHO`.
    pub const RESET_DISK: u64 = 9;
}

/// Bits of [`Reply::flags`].
pub mod flag {
    /// The request was handled before; this is the same reply again.
    pub const DUPLICATE: u64 = 1;
    /// Requests before this one are missing: something acknowledged was lost, or the client skipped numbers.
    /// Nothing was done.
    pub const GAP: u64 = 2;
    /// An older request than the last one of this client. Nothing was done.
    pub const STALE: u64 = 4;
    /// No room for one more client. Nothing was done.
    pub const REFUSED: u64 = 8;
    /// The disk part of the request failed.
    pub const DISK_FAILED: u64 = 16;
}

macro_rules! wire {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
        pub struct $name { $($(#[$field_doc])* pub $field: u64,)* }

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = 8 * [$(stringify!($field)),*].len();

            /// The datagram. Longer ones are padded by the sender.
            #[must_use]
            pub fn encode(&self) -> [u8; Self::LEN] {
                let mut bytes = [0; Self::LEN];
                for (chunk, value) in bytes.chunks_exact_mut(8).zip([$(self.$field),*]) {
                    chunk.copy_from_slice(&value.to_le_bytes());
                }
                bytes
            }

            /// Read a datagram; `None` if it is too short. Padding is ignored.
            #[must_use]
            pub fn decode(bytes: &[u8]) -> Option<Self> {
                let mut fields = bytes.get(..Self::LEN)?.chunks_exact(8);
                Some(Self {
                    $($field: u64::from_le_bytes(fields.next()?.try_into().ok()?),)*
                })
            }
        }
    };
}

wire! {
    /// A request.
    ///
    /// `WORK` is done exactly once per (`client`, `seq`): each client counts its requests from 1 and repeats
    /// one until it is answered; the guest answers a repeated request with the stored reply, and refuses to
    /// skip one.
    Request {
        /// [`REQUEST_MAGIC`].
        magic,
        /// One of [`op`].
        op,
        /// Who asks; any number but 0.
        client,
        /// Number of the request, from 1 for `WORK`; returned as it is otherwise.
        seq,
        /// Pages of the working set to rewrite before the reply (`WORK`).
        pages,
        /// Disk blocks to write and flush before the reply (`WORK`).
        blocks,
        /// Mixed into the client's chain (`WORK`), or the argument of other operations.
        word,
        /// Length of the reply in bytes, if longer than [`Reply::LEN`].
        reply_len,
    }
}

wire! {
    /// A reply.
    Reply {
        /// [`REPLY_MAGIC`].
        magic,
        /// As in the request.
        op,
        /// Bits of [`flag`].
        flags,
        /// As in the request.
        client,
        /// As in the request.
        seq,
        /// The client's chain: [`crate::pattern::chain_next`] over all its requests, 0 before the first.
        chain,
        /// `WORK` requests done since boot, of all clients.
        handled,
        /// Other requests answered since boot, this one included.
        echoes,
        /// Pages in the working set.
        pages,
        /// Pages rewritten on request since boot.
        rewrites,
        /// [`crate::pattern::set_digest`] as the guest keeps it, from the generations it wrote.
        digest,
        /// Random number of this boot.
        boot,
        /// Time stamp counter at the reply.
        tsc,
        /// Its frequency in kHz.
        tsc_khz,
        /// Nanoseconds since boot by kvmclock; 0 if there is none.
        nanoseconds,
        /// Turns of the main loop since boot.
        ticks,
        /// Longest time between two looks at the time stamp counter, in its ticks.
        stall_max,
        /// How often that took longer than 1 ms.
        stalls,
        /// How often the time stamp counter or kvmclock went backwards.
        backwards,
        /// Pages whose pattern was checked since boot.
        checked,
        /// Pages with a wrong pattern since boot, and wrong pieces of TCP streams.
        violations,
        /// Pages rewritten in the background since boot.
        background,
        /// Number of the latest disk write; all up to [`Self::disk_done`] are complete.
        disk_issued,
        /// All disk writes up to this number have completed.
        disk_done,
        /// Disk blocks read back and checked since boot.
        disk_checked,
        /// Disk blocks with wrong contents, and failed requests, since boot.
        disk_violations,
        /// Blocks in the disk writer's region: write `n` goes to block `n % disk_slots`. 0: no disk.
        disk_slots,
        /// vCPUs that run.
        vcpus,
    }
}
