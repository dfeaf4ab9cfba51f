//! Properties of the disk that the guest sees: its size, its units, and the limits of a request.

/// Most data bytes of one request of a driver that heeds the limits: what [`SEG_MAX`] segments of
/// [`SIZE_MAX`] bytes can carry. Longer ones are served in pieces of this size.
pub const MAX_DATA: u64 = SIZE_MAX as u64 * SEG_MAX as u64;
const _: () = assert!(MAX_DATA as usize == ft_wire::mirror::MAX_BODY, "a piece fits into a frame");
/// Most data segments the guest is told to use.
pub const SEG_MAX: u32 = 126;
/// Most bytes of a segment the guest is told to use.
pub const SIZE_MAX: u32 = 64 * 1024;
/// Most ranges of a discard or write-zeroes request.
pub const MAX_ZERO_RANGES: u32 = 32;
/// Most sectors of one such range.
pub const MAX_ZERO_SECTORS: u32 = 1 << 21;

/// What the disk is, as far as requests are concerned.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Bytes.
    pub size: u64,
    /// Smallest unit of I/O in bytes.
    pub block: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The driver has taken notice of [`SEG_MAX`] and [`SIZE_MAX`].
    pub limited: bool,
}
