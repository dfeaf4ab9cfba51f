//! Seeds: what the real encoders write, in the form that the targets take.

mod files;
mod guest;
mod network;
mod texts;

use crate::seed::{Seed, Seeds};

/// All of them.
#[must_use]
pub fn all() -> Vec<Seed> {
    let mut seeds = Seeds::default();
    texts::add(&mut seeds);
    network::add(&mut seeds);
    files::add(&mut seeds);
    guest::add(&mut seeds);
    seeds.0
}
