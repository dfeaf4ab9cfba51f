//! The `key=value,key=value` strings of Cloud Hypervisor's command line.
//!
//! In: the text after a flag. Out: [`Options`], from which each key is taken as the type it should have.
//! Never: meaning; which keys a flag has, and what they do, is the caller's.
//!
//! Grammar: parts are separated by commas that stand outside brackets and quotes; a part is `key=value`; an
//! empty value means not set; a value in double quotes is taken without them; toggles are `on`, `off`, `true`
//! or `false`; sizes are bytes with an optional `K`, `M` or `G`; lists are `[0,2-4]`.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why an option string cannot be used. Each names the flag, and the key where there is one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// A bracket or quote is not closed.
    #[error("{flag}: a bracket or quote is not closed in {text:?}")]
    Unbalanced {
        /// Flag, with its dashes.
        flag: String,
        /// What was given.
        text: String,
    },
    /// A part is not `key=value`.
    #[error("{flag}: expected key=value, got {part:?}")]
    NotAPair {
        /// Flag, with its dashes.
        flag: String,
        /// The part.
        part: String,
    },
    /// The flag has no such key.
    #[error("{flag}: unknown key {key:?}, the keys are {known}")]
    UnknownKey {
        /// Flag, with its dashes.
        flag: String,
        /// The key.
        key: String,
        /// Those that exist.
        known: String,
    },
    /// Cloud Hypervisor has the key, Pollux does not.
    #[error("{flag}: key {key:?} is not supported by pollux-vmm")]
    UnsupportedKey {
        /// Flag, with its dashes.
        flag: String,
        /// The key.
        key: String,
    },
    /// A key that is given twice.
    #[error("{flag}: {key} is given twice")]
    Twice {
        /// Flag, with its dashes.
        flag: String,
        /// The key.
        key: String,
    },
    /// A value that cannot be read.
    #[error("{flag}: {key}={value} is not {expected}")]
    BadValue {
        /// Flag, with its dashes.
        flag: String,
        /// The key.
        key: String,
        /// What was given.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// Keys that do not go together, or whose values do not.
    #[error("{flag}: {what}")]
    Conflict {
        /// Flag, with its dashes.
        flag: String,
        /// What is wrong with them.
        what: String,
    },
    /// A key that must be given.
    #[error("{flag}: {key}= is missing")]
    Missing {
        /// Flag, with its dashes.
        flag: String,
        /// The key.
        key: String,
    },
}

/// The parsed parts of one option string.
#[derive(Clone, Debug)]
pub struct Options {
    flag: &'static str,
    pairs: Vec<(String, String)>,
}

impl Options {
    /// Splits `text` into pairs whose keys must be among `keys`. Those among `unsupported` get an error of
    /// their own.
    ///
    /// # Errors
    /// When the text does not follow the grammar or has another key.
    pub fn parse(flag: &'static str, text: &str, keys: &[&str], unsupported: &[&str]) -> Result<Self, OptionError> {
        let own = || flag.to_owned();
        let parts = split(text).ok_or_else(|| OptionError::Unbalanced { flag: own(), text: text.to_owned() })?;
        let mut pairs: Vec<(String, String)> = Vec::new();
        for part in parts {
            let Some((key, value)) = part.split_once('=') else {
                return Err(OptionError::NotAPair { flag: own(), part: part.to_owned() });
            };
            let key = key.trim().to_owned();
            if unsupported.contains(&key.as_str()) {
                return Err(OptionError::UnsupportedKey { flag: own(), key });
            }
            if !keys.contains(&key.as_str()) {
                return Err(OptionError::UnknownKey { flag: own(), key, known: keys.join(", ") });
            }
            if pairs.iter().any(|(other, _)| *other == key) {
                return Err(OptionError::Twice { flag: own(), key });
            }
            let bare = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
            pairs.push((key, bare.to_owned()));
        }
        Ok(Self { flag, pairs })
    }

    /// Values that came as flags of their own.
    #[must_use]
    pub fn of_flags(pairs: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Self { flag: "--", pairs: pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect() }
    }

    /// The text of a key; `None` when it is absent or empty.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        let pair = self.pairs.iter().find(|(own, _)| own == key)?;
        Some(pair.1.as_str()).filter(|value| !value.is_empty())
    }

    /// The value of a key as a `T`; `None` when it is absent or empty.
    ///
    /// # Errors
    /// When the text is not a `T`.
    pub fn value<T: OptionValue>(&self, key: &str) -> Result<Option<T>, OptionError> {
        let Some(text) = self.text(key) else { return Ok(None) };
        T::from_text(text).map(Some).ok_or_else(|| self.bad_value(key, T::EXPECTED))
    }

    /// The value of a key as a `T`, or `default` when it is absent or empty.
    ///
    /// # Errors
    /// When the text is not a `T`.
    pub fn value_or<T: OptionValue>(&self, key: &str, default: T) -> Result<T, OptionError> {
        Ok(self.value(key)?.unwrap_or(default))
    }

    /// The value of a key that must be given.
    ///
    /// # Errors
    /// When it is absent, empty or not a `T`.
    pub fn required<T: OptionValue>(&self, key: &str) -> Result<T, OptionError> {
        self.value(key)?.ok_or_else(|| OptionError::Missing { flag: self.flag.to_owned(), key: key.to_owned() })
    }

    /// The value of a key as a `T` that reads itself; `None` when it is absent or empty.
    ///
    /// # Errors
    /// When the text is not a `T`, which is what `expected` says.
    pub fn parsed<T: FromStr>(&self, key: &str, expected: &str) -> Result<Option<T>, OptionError> {
        self.text(key).map(|text| text.parse().map_err(|_| self.bad_value(key, expected))).transpose()
    }

    /// All pairs in the order they were given, empty values included.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The error for a value that is not what it should be.
    #[must_use]
    pub fn bad_value(&self, key: &str, expected: &str) -> OptionError {
        OptionError::BadValue {
            flag: self.flag.to_owned(),
            key: key.to_owned(),
            value: self.text(key).unwrap_or_default().to_owned(),
            expected: expected.to_owned(),
        }
    }
}

/// The parts between commas that stand outside brackets and quotes; `None` when one of those is not closed.
fn split(text: &str) -> Option<Vec<&str>> {
    let (mut parts, mut start, mut depth, mut quoted) = (Vec::new(), 0, 0_usize, false);
    for (at, character) in text.char_indices() {
        match character {
            '"' => quoted = !quoted,
            '[' if !quoted => depth += 1,
            ']' if !quoted => depth = depth.checked_sub(1)?,
            ',' if !quoted && depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.retain(|part| !part.is_empty());
    (depth == 0 && !quoted).then_some(parts)
}

/// A type whose values have a text in options; empty: nothing is written for this one.
pub trait OptionText {
    /// What to write for it.
    fn option_text(&self) -> String;
}

/// A type that the value of a key can have.
pub trait OptionValue: Sized {
    /// What to call it in an error.
    const EXPECTED: &'static str;
    /// Reads it; `None` when the text is something else.
    fn from_text(text: &str) -> Option<Self>;
}

macro_rules! option_value {
    ($($type:ty => $expected:literal),+ $(,)?) => {$(
        impl OptionValue for $type {
            const EXPECTED: &'static str = $expected;

            fn from_text(text: &str) -> Option<Self> {
                text.parse().ok()
            }
        }
    )+};
}

option_value! {
    u8 => "a number up to 255",
    u16 => "a number up to 65535",
    u32 => "a number",
    u64 => "a number",
    usize => "a number",
    String => "text",
    PathBuf => "a path",
    IpAddr => "an IP address",
}

macro_rules! shown_option {
    ($($type:ty),+) => {$(
        impl OptionText for $type {
            fn option_text(&self) -> String {
                self.to_string()
            }
        }
    )+};
}

shown_option!(u8, u16, u32, u64, usize, String, ByteSize);

/// `on` or `true`, `off` or `false`.
impl OptionValue for bool {
    const EXPECTED: &'static str = "on or off";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "on" | "true" => Some(true),
            "off" | "false" | "" => Some(false),
            _ => None,
        }
    }
}

impl OptionText for bool {
    fn option_text(&self) -> String {
        if *self { "on" } else { "off" }.to_owned()
    }
}

impl OptionText for PathBuf {
    fn option_text(&self) -> String {
        self.display().to_string()
    }
}

/// Implements [`OptionValue`] and [`OptionText`] for a type that is one of some words, in any case.
macro_rules! option_words {
    ($type:ty { $first:literal => $first_value:expr $(, $word:literal => $value:expr)* $(,)? }) => {
        impl $type {
            const WORDS: &'static [(&'static str, Self)] = &[($first, $first_value) $(, ($word, $value))*];
        }

        impl $crate::options::OptionValue for $type {
            const EXPECTED: &'static str = concat!($first $(, " or ", $word)*);

            fn from_text(text: &str) -> Option<Self> {
                Self::WORDS.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).map(|(_, value)| *value)
            }
        }

        impl $crate::options::OptionText for $type {
            fn option_text(&self) -> String {
                let word = Self::WORDS.iter().find(|(_, value)| value == self);
                word.map_or_else(String::new, |(word, _)| (*word).to_owned())
            }
        }
    };
}

pub(crate) use option_words;

/// A number of bytes; in JSON, a number.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

/// As options take it: `64M`.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "G"), (20, "M"), (10, "K")];
        match units.into_iter().find(|(shift, _)| self.0 != 0 && self.0.trailing_zeros() >= *shift) {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => self.0.fmt(f),
        }
    }
}

impl From<u64> for ByteSize {
    fn from(bytes: u64) -> Self {
        Self(bytes)
    }
}

impl From<ByteSize> for u64 {
    fn from(ByteSize(bytes): ByteSize) -> Self {
        bytes
    }
}

impl OptionValue for ByteSize {
    const EXPECTED: &'static str = "a size in bytes, or with K, M or G";

    fn from_text(text: &str) -> Option<Self> {
        let (digits, unit) = match text.as_bytes().last()? {
            b'K' | b'k' => (&text[..text.len() - 1], 1 << 10),
            b'M' | b'm' => (&text[..text.len() - 1], 1 << 20),
            b'G' | b'g' => (&text[..text.len() - 1], 1_u64 << 30),
            _ => (text, 1),
        };
        digits.parse::<u64>().ok()?.checked_mul(unit).map(Self)
    }
}

/// A list of numbers and ranges in brackets; one alone needs none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumberList(pub Vec<u64>);

/// Longest list of numbers, so that a mistyped range does not take all memory.
const LIST_MAX: u64 = 4096;

impl OptionValue for NumberList {
    const EXPECTED: &'static str = "a list of numbers such as [0,2-4]";

    fn from_text(text: &str) -> Option<Self> {
        let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        let mut numbers = Vec::new();
        for part in inner.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.trim().parse::<u64>().ok()?, last.trim().parse::<u64>().ok()?);
            if first > last || last - first >= LIST_MAX {
                return None;
            }
            numbers.extend(first..=last);
        }
        Some(Self(numbers))
    }
}

impl OptionValue for Vec<u16> {
    const EXPECTED: &'static str = "a list of numbers up to 65535 such as [0,2-4]";

    fn from_text(text: &str) -> Option<Self> {
        NumberList::from_text(text)?.0.into_iter().map(|number| number.try_into().ok()).collect()
    }
}

/// Texts in brackets, separated by commas; one alone needs no brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextList(pub Vec<String>);

impl OptionValue for TextList {
    const EXPECTED: &'static str = "a list such as [a,b]";

    fn from_text(text: &str) -> Option<Self> {
        let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        Some(Self(split(inner)?.into_iter().map(|part| part.trim_matches('"').to_owned()).collect()))
    }
}

impl From<TextList> for Vec<String> {
    fn from(TextList(texts): TextList) -> Self {
        texts
    }
}

/// Tuples such as `[0@[0,2],1@[1-3]]`: a number and the list that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuples(pub Vec<(u64, Vec<u64>)>);

impl OptionValue for Tuples {
    const EXPECTED: &'static str = "a list of tuples such as [0@[0,2],1@[1]]";

    fn from_text(text: &str) -> Option<Self> {
        let inner = text.strip_prefix('[')?.strip_suffix(']')?;
        let tuple = |part: &str| {
            let (number, list) = part.split_once('@')?;
            Some((number.parse().ok()?, NumberList::from_text(list)?.0))
        };
        split(inner)?.into_iter().map(tuple).collect::<Option<Vec<_>>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, OptionError> {
        Options::parse("--x", text, &["a", "b", "list"], &["later"])
    }

    #[test]
    fn grammar() {
        let pairs = |text: &str| {
            parse(text).unwrap().iter().map(|(key, value)| format!("{key}:{value}")).collect::<Vec<_>>().join(" ")
        };
        for (text, expected) in [
            ("", ""),
            ("a=1", "a:1"),
            ("a=1,b=2", "a:1 b:2"),
            ("a=1,", "a:1"),
            ("a=", "a:"),
            ("a=x=y", "a:x=y"),
            ("list=[0,2],a=1", "list:[0,2] a:1"),
            ("list=[0@[0,2],1@[1]],b=3", "list:[0@[0,2],1@[1]] b:3"),
            ("a=\"x,y\",b=2", "a:x,y b:2"),
            ("a=\"[\",b=2", "a:[ b:2"),
        ] {
            assert_eq!(pairs(text), expected, "{text}");
        }
        for (text, expected) in [
            ("a", "--x: expected key=value, got \"a\""),
            ("c=1", "--x: unknown key \"c\", the keys are a, b, list"),
            ("later=1", "--x: key \"later\" is not supported by pollux-vmm"),
            ("a=1,a=2", "--x: a is given twice"),
            ("list=[0,2", "--x: a bracket or quote is not closed in \"list=[0,2\""),
            ("list=0]", "--x: a bracket or quote is not closed in \"list=0]\""),
            ("a=\"x", "--x: a bracket or quote is not closed in \"a=\\\"x\""),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn values() {
        for (text, expected) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("4K", Some(4096)),
            ("512M", Some(512 << 20)),
            ("3G", Some(3 << 30)),
            ("1g", Some(1 << 30)),
            ("", None),
            ("M", None),
            ("-1", None),
            ("1T", None),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551615K", None),
        ] {
            assert_eq!(ByteSize::from_text(text).map(|size| size.0), expected, "{text}");
        }
        for text in ["0", "7", "4K", "64M", "3G", "1025K"] {
            assert_eq!(ByteSize::from_text(text).unwrap().to_string(), text);
        }
        assert_eq!(NumberList::from_text("[0,2-4]").unwrap().0, [0, 2, 3, 4]);
        assert_eq!(NumberList::from_text("7").unwrap().0, [7]);
        assert!(NumberList::from_text("[4-2]").is_none());
        assert!(NumberList::from_text("[0-9999999999]").is_none());
        assert_eq!(TextList::from_text("[a,b]").unwrap().0, ["a", "b"]);
        assert_eq!(Tuples::from_text("[0@[0,2],1@[1]]").unwrap().0, [(0, vec![0, 2]), (1, vec![1])]);
        assert!(Tuples::from_text("0@1").is_none());
        for (text, expected) in [("on", Some(true)), ("true", Some(true)), ("off", Some(false)), ("yes", None)] {
            assert_eq!(bool::from_text(text), expected);
        }
    }

    #[test]
    fn typed_access() {
        let options = parse("a=17,b=").unwrap();
        assert_eq!(options.value::<u16>("a").unwrap(), Some(17));
        assert_eq!(options.value::<u16>("b").unwrap(), None);
        assert_eq!(options.value_or("list", 3_u8).unwrap(), 3);
        assert_eq!(options.value::<bool>("a").unwrap_err().to_string(), "--x: a=17 is not on or off");
        assert_eq!(options.required::<u64>("b").unwrap_err().to_string(), "--x: b= is missing");
    }
}
