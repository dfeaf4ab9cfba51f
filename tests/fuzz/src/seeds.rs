//! Seeds: what the real encoders write, in the form that the targets take.

mod files;
mod guest;
mod network;
mod texts;

/// An input to begin with.
pub struct Seed {
    /// Whose.
    pub target: &'static str,
    /// What it is.
    pub name: String,
    /// The bytes.
    pub input: Vec<u8>,
}

/// Seeds being collected.
#[derive(Default)]
struct Seeds(Vec<Seed>);

impl Seeds {
    fn add(&mut self, target: &'static str, name: impl Into<String>, input: impl Into<Vec<u8>>) {
        self.0.push(Seed { target, name: name.into(), input: input.into() });
    }
}

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
