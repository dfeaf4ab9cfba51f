//! One checkpoint per VM and epoch: capture, the immutable image, CPU placement, and the copy before the
//! first checkpoint.

pub(crate) mod capture;
pub(crate) mod cpu_placement;
pub(crate) mod epoch_image;
pub(crate) mod first_copy;
