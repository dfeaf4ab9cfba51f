//! What the model witness keeps: the record, and whether it can be reached.

use ft_proto::Time;
use ft_proto::witness::Record;

/// The record, and until when nobody reaches it.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    pub(crate) record: Option<Record>,
    /// The last one that there was: whoever had a right by it still does, and nobody else.
    pub(crate) last: Option<Record>,
    pub(crate) down_until: Time,
}

impl Witness {
    pub(crate) fn write(&mut self, record: Record) {
        (self.record, self.last) = (Some(record), Some(record));
    }
}
