//! Finding the other host: search, ask, compare, connect.

pub(crate) mod alike;
pub(crate) mod application;
pub(crate) mod ask;
pub(crate) mod bounds;
pub(crate) mod connect;
pub(crate) mod search;
