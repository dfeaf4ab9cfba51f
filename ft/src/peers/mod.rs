//! Other hosts: finding one as a standby, connecting to it, asking what it does, and comparing its VM with
//! ours.

pub(crate) mod alike;
pub(crate) mod ask;
pub(crate) mod bounds;
pub(crate) mod connect;
pub(crate) mod search;
