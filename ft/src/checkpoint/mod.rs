//! One checkpoint per VM and epoch: where it is captured, into what, and on which processor.

pub(crate) mod capture;
pub(crate) mod place;
pub mod staging;
