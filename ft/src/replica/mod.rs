//! Sessions with the other host: one end of the replication stream each.

pub(crate) mod primary;
pub(crate) mod standby;
