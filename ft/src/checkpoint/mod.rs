//! One checkpoint per VM and epoch: how it is captured, into what, and on which processor; and the copy that comes before the first.

pub(crate) mod capture;
pub(crate) mod epoch_image;
pub(crate) mod first_copy;
pub(crate) mod place;
