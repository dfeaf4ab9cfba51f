//! Identities and counters: VM, host, node, term, epoch; and the proof that an epoch is committed.
//!
//! A VM, a host and a node have lasting identities. They are text where people read them (JSON, options,
//! messages) and compact on the wire.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// One interval of guest execution. Epoch *n* ends with checkpoint *n*; numbering starts at 1 in every term's
/// protection session and never goes back within it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The highest epoch that is accepted from outside.
    pub const MAX: Self = Self(1 << 48);

    /// Whether an epoch from outside is acceptable.
    #[must_use]
    pub fn is_plausible(self) -> bool {
        self <= Self::MAX
    }

    /// The epoch that follows this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Counts changes of who runs the VM: each has a new, higher term.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Term(pub u64);

impl Term {
    /// The highest term that is accepted from outside. One new term a millisecond would reach it in 8,900
    /// years.
    pub const MAX: Self = Self(1 << 48);

    /// The term that a takeover from this one creates.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Whether a term from outside is acceptable.
    #[must_use]
    pub fn is_plausible(self) -> bool {
        self <= Self::MAX
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A text that is not a name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NameError {
    /// Of a VM.
    #[error("a VM's identity is 32 hexadecimal digits")]
    Vm,
    /// Of a host.
    #[error("a host's name is 1 to {} letters, digits, dots, dashes or underscores", HostId::LEN)]
    Host,
    /// Of a node.
    #[error("a node is HOST/INCARNATION, the latter in 16 hexadecimal digits")]
    Node,
}

/// A VM, whichever host runs it. Drawn at random when the VM is first protected, and stored in the records of
/// its disks and of its witness.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct VmId(pub u128);

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for VmId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u128::from_str_radix(text, 16).ok().filter(|_| digits).map(Self).ok_or(NameError::Vm)
    }
}

impl Serialize for VmId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() { to.collect_str(self) } else { self.0.serialize(to) }
    }
}

impl<'de> Deserialize<'de> for VmId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        if from.is_human_readable() {
            return from.deserialize_str(Text::<Self>::new("a VM's identity"));
        }
        u128::deserialize(from).map(Self)
    }
}

/// A host: the same across restarts of its processes and of the machine.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct HostId([u8; HostId::LEN]);

impl HostId {
    /// The longest name, in bytes.
    pub const LEN: usize = 32;

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|byte| *byte == 0).unwrap_or(Self::LEN);
        // Only ASCII gets in.
        std::str::from_utf8(&self.0[..len]).unwrap_or_default()
    }

    /// The host whose name is a number.
    #[must_use]
    pub const fn numbered(mut number: u64) -> Self {
        let mut digits = [0; 20];
        let mut count = 0;
        while count == 0 || number > 0 {
            digits[count] = b'0' + (number % 10) as u8;
            number /= 10;
            count += 1;
        }
        let mut name = [0; Self::LEN];
        let mut at = 0;
        while at < count {
            name[at] = digits[count - 1 - at];
            at += 1;
        }
        Self(name)
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for HostId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if text.is_empty() || text.len() > Self::LEN || !text.bytes().all(fits) {
            return Err(NameError::Host);
        }
        let mut name = [0; Self::LEN];
        name[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self(name))
    }
}

impl Serialize for HostId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for HostId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text::<Self>::new("a host's name"))
    }
}

/// One incarnation of a host: a process that may run the VM, until it ends or builds its VM anew. No two
/// nodes are equal, so what an earlier incarnation was granted, promised or sent is never attributed to a
/// later one.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId {
    /// The host.
    pub host: HostId,
    /// Drawn at random.
    pub incarnation: u64,
}

impl NodeId {
    /// An incarnation of the host whose name is a number.
    #[must_use]
    pub const fn numbered(host: u64, incarnation: u64) -> Self {
        Self { host: HostId::numbered(host), incarnation }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:016x}", self.host, self.incarnation)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NodeId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (host, incarnation) = text.rsplit_once('/').ok_or(NameError::Node)?;
        let digits = incarnation.len() == 16 && incarnation.bytes().all(|byte| byte.is_ascii_hexdigit());
        let incarnation = u64::from_str_radix(incarnation, 16).ok().filter(|_| digits).ok_or(NameError::Node)?;
        Ok(Self { host: host.parse()?, incarnation })
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() { to.collect_str(self) } else { (self.host, self.incarnation).serialize(to) }
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        if from.is_human_readable() {
            // A number is what versions before 0.2 called a node.
            return from.deserialize_any(Text::<Self>::new("a node"));
        }
        <(HostId, u64)>::deserialize(from).map(|(host, incarnation)| Self { host, incarnation })
    }
}

/// Reads a name from text.
struct Text<T>(&'static str, std::marker::PhantomData<T>);

impl<T> Text<T> {
    fn new(what: &'static str) -> Self {
        Self(what, std::marker::PhantomData)
    }
}

/// What a plain number means as a name.
trait FromNumber: Sized {
    fn from_number(_: u64) -> Option<Self> {
        None
    }
}

impl FromNumber for VmId {}
impl FromNumber for HostId {}

impl FromNumber for NodeId {
    fn from_number(number: u64) -> Option<Self> {
        Some(Self::numbered(0, number))
    }
}

impl<T: FromStr<Err = NameError> + FromNumber> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        T::from_number(number).ok_or_else(|| E::invalid_type(de::Unexpected::Unsigned(number), &self))
    }
}

/// Proof that the standby holds everything of an epoch.
///
/// The field is private, and only the core can make one: on the primary where the replica's acknowledgement
/// is handled, on the standby where the last part of an epoch has been verified. Every call that releases
/// output, or writes an epoch's data to a standby's disk, requires it.
#[cfg_attr(feature = "model", derive(Clone, Hash))]
#[derive(Debug, Eq, PartialEq)]
pub struct Committed(Epoch);

impl Committed {
    /// Called by `pipeline` (acknowledgement) and `standby` (completion) only.
    pub(crate) fn new(epoch: Epoch) -> Self {
        assert!(epoch > Epoch(0), "epochs are counted from 1");
        Self(epoch)
    }

    /// The committed epoch; everything of earlier epochs is committed too.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_from_text() {
        let node = NodeId { host: "alpha.rack-2".parse().unwrap(), incarnation: 0xbeef };
        assert_eq!(node.to_string(), "alpha.rack-2/000000000000beef");
        assert_eq!(node.to_string().parse(), Ok(node));
        let vm = VmId(0xdead << 96);
        assert_eq!(vm.to_string().parse(), Ok(vm));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "x".repeat(HostId::LEN + 1);
        for bad in ["", "a b", "a/b", "\u{1b}[31m", "größe", &long] {
            assert_eq!(bad.parse::<HostId>(), Err(NameError::Host), "{bad}");
        }
        assert_eq!("x".repeat(HostId::LEN).parse::<HostId>().unwrap().as_str().len(), HostId::LEN);
        assert_eq!("+0000000000000000000000000000001".parse::<VmId>(), Err(NameError::Vm));
        assert_eq!("a/+00000000000beef".parse::<NodeId>(), Err(NameError::Node));
    }

    #[test]
    fn numbered_hosts_are_called_by_their_number() {
        for number in [0, 7, 10, 1234, u64::MAX] {
            assert_eq!(HostId::numbered(number).as_str(), number.to_string());
        }
    }
}
