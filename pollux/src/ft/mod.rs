//! `pollux ft …`: ask for protection, show how it stands.

pub mod events;
pub mod pairs;
pub mod protect;
pub mod status;
