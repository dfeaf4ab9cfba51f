//! A disk of a host, whatever process uses it: its image with its record, and what goes wrong with it.

use ft_proto::Time;

use crate::devices::DiskImage;
use crate::guest::Blocks;
use crate::record::Record;

/// The disk.
#[derive(Debug, Default)]
pub(crate) struct Drive {
    pub(crate) image: DiskImage,
    pub(crate) slow_until: Time,
    /// Its device process hangs until then.
    pub(crate) hung_until: Time,
    /// Its record cannot be written until then.
    pub(crate) full_until: Time,
    /// The image, while another one is in its place.
    pub(crate) mislaid: Option<DiskImage>,
    /// What was saved of it, and of the record.
    pub(crate) backup: Option<(Blocks, Record)>,
}

impl Drive {
    /// The image that belongs there.
    pub(crate) fn own(&self) -> &DiskImage {
        self.mislaid.as_ref().unwrap_or(&self.image)
    }
}
