//! Help texts, made of the definitions of options.

use std::fmt::{Display, Write as _};
use std::ops::RangeInclusive;

/// Longest line, in columns: what the argument parser does not wrap again where there is no terminal.
const WIDTH: usize = 98;
/// Where the texts begin, in columns.
const INDENT: usize = 23;

/// An option as a help text shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OptionHelp {
    /// Its key.
    pub key: &'static str,
    /// What to write for its value.
    pub value: &'static str,
    /// What it means.
    pub text: String,
    /// What it is when it is not given; in words if it must be.
    pub default: Option<String>,
}

impl OptionHelp {
    /// An option with the text of its doc comment.
    #[must_use]
    pub fn new(key: &'static str, value: &'static str, doc: &str, default: Option<String>) -> Self {
        let text = doc.replace('`', "");
        let default = default.filter(|default| !default.is_empty());
        Self { key, value, text: text.trim().trim_end_matches('.').to_owned(), default }
    }

    /// It is a number within these limits.
    #[must_use]
    pub fn within<T: Display>(self, limits: &RangeInclusive<T>) -> Self {
        Self { text: format!("{}, {} to {}", self.text, limits.start(), limits.end()), ..self }
    }

    /// `key=VALUE`, or the key alone if nothing follows it.
    #[must_use]
    pub fn pair(&self) -> String {
        if self.value.is_empty() { self.key.to_owned() } else { format!("{}={}", self.key, self.value) }
    }
}

/// Options one below the other, with what they are if they are left out.
#[must_use]
pub fn table(options: &[OptionHelp]) -> String {
    let mut table = String::new();
    for option in options {
        let default = option.default.as_ref().map_or_else(String::new, |default| format!(" ({default})"));
        let mut line = format!("  {}", option.pair());
        if line.len() >= INDENT - 1 {
            // Its text would begin too far to the right.
            line = flush(&mut table, &line);
        }
        for word in format!("{}{default}", option.text).split_whitespace() {
            if line.chars().count() + 1 + word.chars().count() > WIDTH {
                line = flush(&mut table, &line);
            }
            let gap = INDENT.saturating_sub(line.chars().count()).max(1);
            let _ = write!(line, "{:gap$}{word}", "");
        }
        flush(&mut table, &line);
    }
    table
}

/// Ends a line, and begins another one.
fn flush(table: &mut String, line: &str) -> String {
    table.push_str(line);
    table.push('\n');
    " ".repeat(INDENT - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stand_in_a_column_and_are_wrapped() {
        let long = "word ".repeat(40);
        let options = [
            OptionHelp::new("a", "N", "One.", Some("1".to_owned())),
            OptionHelp::new("a-key-that-is-long", "VALUE", &long, None),
        ];
        let table = table(&options);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "  a=N                  One (1)");
        assert_eq!(lines[1], "  a-key-that-is-long=VALUE");
        assert!(lines[2..].iter().all(|line| line.starts_with(&" ".repeat(INDENT)) && line.len() <= WIDTH), "{table}");
        assert_eq!(lines[2].find("word"), Some(INDENT));
    }
}
