//! The audit log of the API: whoever goes on with a whole one leaves a whole one, and any other is refused.
//!
//! Input: the file.

use pollux_api::audit::{Chain, Event, LINE_MAX, verify};

/// Checks the file, and goes on with it.
pub fn run(input: &[u8]) {
    let before = verify([input], |_| {});
    let Some(chain) = Chain::after(input) else {
        // A whole one has an end to go on from, unless that is too long to be one.
        assert!(before.is_err() || input.len() > LINE_MAX, "a whole log has no end");
        return;
    };
    let line = chain.entry("t", Event::Closed);
    let end: &[u8] = if input.last().is_none_or(|last| *last == b'\n') { b"" } else { b"\n" };
    let after = verify([&[input, end, &line, b"\n"].concat()[..]], |_| {});
    if let (Ok(before), Ok(after)) = (&before, &after) {
        assert_eq!((after.last, after.entries), (before.last.saturating_add(1), before.entries + 1));
    }
    assert!(before.is_err() || after.is_ok(), "{before:?} {after:?}");
}
