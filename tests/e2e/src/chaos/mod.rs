//! Chaos: real faults, one after the other, to a protected guest with real clients, and a reckoning at the
//! end.
//!
//! Reading order: [`run`] is what happens; [`plan`] draws the faults, [`injury`] does them, with
//! [`blackout`], [`comeback`] and [`stranger`]; [`clients`] record what they were told, [`history`] judges
//! it; [`verify`] looks at everything at the end; [`summary`] is what is said about it.

pub mod blackout;
pub mod client;
pub mod clients;
pub mod comeback;
pub mod history;
pub mod injury;
pub mod log;
pub mod pair;
pub mod plan;
pub mod postgres;
pub mod redis;
pub mod run;
pub mod small_disk;
pub mod stranger;
pub mod summary;
pub mod verify;
