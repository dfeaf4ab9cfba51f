//! Saved state of the VM's parts: one section a part, each with its id and version, in one flat buffer.
//!
//! In: parts that implement [`Saved`]. Out: bytes for a checkpoint, or parts set back to what the bytes say.
//! Never: a part that is skipped in silence; a section that nobody takes is an error, and so is one that is
//! missing.
//!
//! Names: the VM's own parts have plain ones, and devices have theirs, which clients choose, within a scope:
//! `dev/` and then the id. So no id of a device can be the name of something else.
//!
//! Layout of a section: name length (u8), name, version (u16), body length (u32), body (postcard), all
//! little-endian. Writing appends to a buffer that is kept between checkpoints, so it does not allocate in
//! steady state.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// The most that one section may hold, in bytes: far above any device we have, far below what a hostile peer
/// could use to exhaust memory.
const SECTION_MAX: usize = 16 << 20;
/// What the names of the devices' sections begin with.
pub const DEVICES: &str = "dev/";

/// A part of the VM whose state is in every checkpoint.
///
/// There is no default body on purpose: a device that does not say what it saves does not compile.
pub trait Saved {
    /// Name of its section, unique in the VM.
    fn state_id(&self) -> &str;
    /// Appends its state. Called with the vCPUs parked and the device processes sealed.
    ///
    /// # Errors
    /// When the kernel refuses to tell the state.
    fn save(&self, out: &mut StateWriter<'_>) -> Result<(), StateError>;
    /// Becomes what the section says.
    ///
    /// # Errors
    /// When the section is missing, of another version, malformed, or cannot be applied here.
    fn load(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError>;
}

/// Why state could not be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The bytes end inside a section or are not what their header says.
    #[error("saved state is malformed at byte {0}")]
    Malformed(usize),
    /// Two sections have one name.
    #[error("saved state has two sections for {0}")]
    Twice(String),
    /// A part found no section of its name.
    #[error("saved state has no section for {0}")]
    Missing(String),
    /// The section was written by another version of Pollux.
    #[error("saved state of {id} has version {found}, this build reads {expected}")]
    Version {
        /// Section.
        id: String,
        /// Version in the bytes.
        found: u16,
        /// Version of this build.
        expected: u16,
    },
    /// Sections that no part of this VM has taken: the two VMs are not built alike.
    #[error("saved state has sections that this VM has no part for: {0}")]
    Leftover(String),
    /// A section's body does not decode.
    #[error("saved state of {id} does not decode")]
    Decode {
        /// Section.
        id: String,
        /// Reason.
        #[source]
        source: postcard::Error,
    },
    /// The part cannot be saved or set to this state.
    #[error("cannot save or restore {id}: {what}")]
    Part {
        /// Section.
        id: String,
        /// What failed.
        what: String,
        /// The kernel's answer, if it was asked.
        #[source]
        source: Option<std::io::Error>,
    },
}

/// Bytes that are encoded as one run and not as a list of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Bytes<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&'de [u8]>::deserialize(deserializer).map(Bytes)
    }
}

/// Appends sections to a reused buffer.
pub struct StateWriter<'a> {
    out: &'a mut Vec<u8>,
    scope: &'static str,
}

impl<'a> StateWriter<'a> {
    /// Appends to `out`.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, scope: "" }
    }

    /// Appends to the same buffer, sections whose names begin with `scope`.
    pub fn within(&mut self, scope: &'static str) -> StateWriter<'_> {
        StateWriter { out: &mut *self.out, scope }
    }

    /// Appends one section.
    ///
    /// # Errors
    /// When `body` cannot be encoded or is larger than a section may be.
    pub fn section<T: Serialize + ?Sized>(&mut self, id: &str, version: u16, body: &T) -> Result<(), StateError> {
        let id_len = u8::try_from(self.scope.len() + id.len()).map_err(|_| StateError::Malformed(self.out.len()))?;
        self.out.push(id_len);
        self.out.extend_from_slice(self.scope.as_bytes());
        self.out.extend_from_slice(id.as_bytes());
        self.out.extend_from_slice(&version.to_le_bytes());
        let length_at = self.out.len();
        self.out.extend_from_slice(&[0; 4]);
        // postcard extends a Vec by value; taking and putting back keeps its capacity.
        let buffer = std::mem::take(self.out);
        *self.out =
            postcard::to_extend(body, buffer).map_err(|source| StateError::Decode { id: id.to_owned(), source })?;
        let len = self.out.len() - length_at - 4;
        if len > SECTION_MAX {
            return Err(StateError::Malformed(length_at));
        }
        let len = u32::try_from(len).map_err(|_| StateError::Malformed(length_at))?;
        self.out[length_at..length_at + 4].copy_from_slice(&len.to_le_bytes());
        Ok(())
    }
}

/// Hands out the sections of a checkpoint's state, each once.
pub struct StateReader<'a> {
    sections: HashMap<&'a str, (u16, &'a [u8])>,
    scope: &'static str,
}

impl<'a> StateReader<'a> {
    /// Splits `bytes` into sections.
    ///
    /// # Errors
    /// When a header is cut off, a name is not text or is there twice, or a length points past the end.
    pub fn new(bytes: &'a [u8]) -> Result<Self, StateError> {
        let mut sections = HashMap::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = bytes.len() - rest.len();
            let (id, version, body, tail) = split_section(rest).ok_or(StateError::Malformed(at))?;
            if sections.insert(id, (version, body)).is_some() {
                return Err(StateError::Twice(id.to_owned()));
            }
            rest = tail;
        }
        Ok(Self { sections, scope: "" })
    }

    /// Has `load` take sections whose names begin with `scope`.
    pub fn within<T>(&mut self, scope: &'static str, load: impl FnOnce(&mut Self) -> T) -> T {
        let outer = std::mem::replace(&mut self.scope, scope);
        let result = load(self);
        self.scope = outer;
        result
    }

    /// Takes the section `id` of exactly `version`.
    ///
    /// # Errors
    /// When it is missing, of another version, or does not decode.
    pub fn take<T: Deserialize<'a>>(&mut self, id: &str, version: u16) -> Result<T, StateError> {
        let name = format!("{}{id}", self.scope);
        let (found, body) = self.sections.remove(name.as_str()).ok_or(StateError::Missing(name))?;
        if found != version {
            return Err(StateError::Version { id: id.to_owned(), found, expected: version });
        }
        postcard::from_bytes(body).map_err(|source| StateError::Decode { id: id.to_owned(), source })
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// When a section was not taken by anybody.
    pub fn finish(self) -> Result<(), StateError> {
        if self.sections.is_empty() {
            return Ok(());
        }
        let mut ids: Vec<_> = self.sections.into_keys().collect();
        ids.sort_unstable();
        Err(StateError::Leftover(ids.join(", ")))
    }
}

/// One section off the front: id, version, body, what follows.
fn split_section(bytes: &[u8]) -> Option<(&str, u16, &[u8], &[u8])> {
    let (&id_len, rest) = bytes.split_first()?;
    let (id, rest) = rest.split_at_checked(id_len.into())?;
    let (version, rest) = rest.split_first_chunk::<2>()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_le_bytes(*len)).ok().filter(|len| *len <= SECTION_MAX)?;
    let (body, rest) = rest.split_at_checked(len)?;
    Some((std::str::from_utf8(id).ok()?, u16::from_le_bytes(*version), body, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_sections() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut out = StateWriter::new(&mut bytes);
        out.section("a", 1, &7_u32).unwrap();
        out.section("b", 2, &vec![1_u8, 2, 3]).unwrap();
        bytes
    }

    #[test]
    fn sections_come_back_in_any_order() {
        let bytes = two_sections();
        let mut state = StateReader::new(&bytes).unwrap();
        assert_eq!(state.take::<Vec<u8>>("b", 2).unwrap(), [1, 2, 3]);
        assert_eq!(state.take::<u32>("a", 1).unwrap(), 7);
        state.finish().unwrap();
    }

    #[test]
    fn leftovers_missing_and_other_versions_are_errors() {
        let bytes = two_sections();
        let mut state = StateReader::new(&bytes).unwrap();
        assert!(matches!(state.take::<u32>("c", 1), Err(StateError::Missing(_))));
        assert!(matches!(state.take::<u32>("a", 9), Err(StateError::Version { found: 1, .. })));
        assert!(matches!(state.finish(), Err(StateError::Leftover(ids)) if ids == "b"));
    }

    #[test]
    fn a_device_may_have_the_name_of_another_part() {
        let mut bytes = Vec::new();
        let mut out = StateWriter::new(&mut bytes);
        out.section("clock", 1, &1_u32).unwrap();
        out.within(DEVICES).section("clock", 1, &2_u32).unwrap();
        out.section("ged", 1, &3_u32).unwrap();
        let mut state = StateReader::new(&bytes).unwrap();
        assert_eq!(state.within(DEVICES, |state| state.take::<u32>("clock", 1)).unwrap(), 2);
        let missing = state.within(DEVICES, |state| state.take::<u32>("ged", 1)).unwrap_err();
        assert_eq!(missing.to_string(), "saved state has no section for dev/ged");
        assert_eq!((state.take::<u32>("clock", 1).unwrap(), state.take::<u32>("ged", 1).unwrap()), (1, 3));
        state.finish().unwrap();
    }

    #[test]
    fn two_sections_of_one_name_are_refused_by_name() {
        let mut bytes = two_sections();
        bytes.extend(two_sections());
        assert!(matches!(StateReader::new(&bytes), Err(StateError::Twice(id)) if id == "a"));
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = two_sections();
        let whole = 1 + 1 + 2 + 4 + 1;
        for len in (0..bytes.len()).filter(|len| *len != 0 && *len != whole) {
            assert!(StateReader::new(&bytes[..len]).is_err(), "accepted {len} bytes");
        }
    }
}
