//! A seed, and seeds being collected.

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
pub(crate) struct Seeds(pub(crate) Vec<Seed>);

impl Seeds {
    pub(crate) fn add(&mut self, target: &'static str, name: impl Into<String>, input: impl Into<Vec<u8>>) {
        self.0.push(Seed { target, name: name.into(), input: input.into() });
    }
}
