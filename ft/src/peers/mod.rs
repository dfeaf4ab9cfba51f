//! Other hosts: finding one as a standby, connecting to it, asking what it does, and comparing its VM with
//! ours.

pub(crate) mod application;
pub(crate) mod ask;
pub(crate) mod compatibility;
pub(crate) mod connect;
pub(crate) mod expiry;
pub(crate) mod limits;
pub(crate) mod opening;
pub(crate) mod search;
pub(crate) mod tls;
