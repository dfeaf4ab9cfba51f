//! `pollux ft …`: ask for protection, show how it stands.

pub mod events;
pub mod moves;
pub mod protect;
pub mod status;
