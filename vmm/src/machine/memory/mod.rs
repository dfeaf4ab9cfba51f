//! Guest memory: where things are, the memory itself, and which pages have changed.

pub mod dirty;
pub mod foresight;
pub mod guest;
pub mod layout;
pub mod view;
