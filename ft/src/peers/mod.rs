//! Finding and admitting the other host: search, connect, ask, admit.

pub(crate) mod admission;
pub(crate) mod alike;
pub(crate) mod ask;
pub(crate) mod bounds;
pub(crate) mod connect;
pub(crate) mod search;
