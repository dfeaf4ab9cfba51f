//! Text that comes from outside (a peer, a witness, a device process) and that people will read: made
//! harmless where it enters.

use serde::{Deserialize, Deserializer};

/// The longest text, in characters.
pub const CHARS_MAX: usize = 1000;
/// The longest list of texts; one more says how many were left out.
pub const LINES_MAX: usize = 32;

/// `text` without terminal control and invisible characters, cut to [`CHARS_MAX`].
#[must_use]
pub fn clean(text: &str) -> String {
    let mut clean: String = text
        .chars()
        .take(CHARS_MAX)
        .map(|char| if is_plain(char) { char } else { char::REPLACEMENT_CHARACTER })
        .collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        clean.push('…');
    }
    clean
}

/// [`clean`] for each of `texts`, and at most [`LINES_MAX`] of them.
#[must_use]
pub fn clean_all(texts: &[String]) -> Vec<String> {
    let mut all: Vec<_> = texts.iter().take(LINES_MAX).map(|text| clean(text)).collect();
    if texts.len() > LINES_MAX {
        all.push(format!("and {} more", texts.len() - LINES_MAX));
    }
    all
}

/// Whether it is shown as it is: not a control character, nor one that reorders text or separates lines.
#[must_use]
pub fn is_plain(char: char) -> bool {
    let invisible =
        matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !char.is_control() && !invisible
}

/// For `deserialize_with`: cleaned.
///
/// # Errors
/// When it is not a text.
pub(crate) fn from_outside<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    String::deserialize(from).map(|text| clean(&text))
}

/// For `deserialize_with`: each one cleaned.
///
/// # Errors
/// When it is not a list of texts.
pub(crate) fn all_from_outside<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Vec::deserialize(from).map(|texts| clean_all(&texts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_replaced_and_the_rest_stays() {
        for (text, expected) in [
            ("a disk of 1 GiB, größer", "a disk of 1 GiB, größer"),
            ("\x1b]0;title\x07\r", "\u{fffd}]0;title\u{fffd}\u{fffd}"),
            ("\u{9b}2J\x7f", "\u{fffd}2J\u{fffd}"),
            ("\u{202e}gnp.exe", "\u{fffd}gnp.exe"),
            ("two\nlines", "two\u{fffd}lines"),
        ] {
            assert_eq!(clean(text), expected);
        }
    }

    #[test]
    fn neither_long_texts_nor_long_lists_come_through() {
        let long = clean(&"é".repeat(CHARS_MAX + 1));
        assert_eq!((long.chars().count(), long.ends_with("é…")), (CHARS_MAX + 1, true));
        let exact = "x".repeat(CHARS_MAX);
        assert_eq!(clean(&exact), exact);
        let many = clean_all(&vec!["no".to_owned(); LINES_MAX + 3]);
        assert_eq!((many.len(), many.last().map(String::as_str)), (LINES_MAX + 1, Some("and 3 more")));
    }
}
