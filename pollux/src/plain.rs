//! What a server says, made fit for a terminal: nothing in it that a terminal obeys, or that a reader does
//! not see.

use pollux_api::reason::BlockerReport;
use serde_json::Value;

/// `text` with a replacement character for whatever is not plain.
pub fn text(text: &str) -> String {
    text.chars().map(|char| if is_plain(char) { char } else { char::REPLACEMENT_CHARACTER }).collect()
}

/// A blocker with all of its texts made plain.
pub fn blocker(of: &BlockerReport) -> BlockerReport {
    let BlockerReport { code, blame, reason, hint } = of;
    BlockerReport { code: text(code), blame: *blame, reason: text(reason), hint: hint.as_deref().map(text) }
}

/// [`text`], but the lines of it stay lines.
pub fn lines(lines: &str) -> String {
    lines.split('\n').map(text).collect::<Vec<_>>().join("\n")
}

/// `value` with all of its names and texts made plain.
pub fn value(of: Value) -> Value {
    match of {
        Value::String(said) => Value::String(text(&said)),
        Value::Array(all) => all.into_iter().map(value).collect(),
        Value::Object(map) => map.into_iter().map(|(name, of)| (text(&name), value(of))).collect(),
        other => other,
    }
}

/// JSON that says the same, in characters that are plain.
pub fn json(of: &str) -> String {
    let mut plain = String::with_capacity(of.len());
    for char in of.chars() {
        if is_plain(char) || char == '\n' {
            plain.push(char);
        } else {
            // Only between quotes is there anything but ASCII and line ends.
            let mut units = [0; 2];
            char.encode_utf16(&mut units).iter().for_each(|unit| plain.push_str(&format!("\\u{unit:04x}")));
        }
    }
    plain
}

fn is_plain(char: char) -> bool {
    let invisible =
        matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !char.is_control() && !invisible
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn terminals_get_nothing_to_obey() {
        assert_eq!(text("\u{1b}[31mred\u{9b}\r\n größer"), "\u{fffd}[31mred\u{fffd}\u{fffd}\u{fffd} größer");
        assert_eq!(lines("a\n\tb\u{7}"), "a\n\u{fffd}b\u{fffd}");
        let said = json!({"a\u{7}": ["\u{202e}x", {"b": "c\u{7f}"}, 1, null]});
        assert_eq!(value(said), json!({"a\u{fffd}": ["\u{fffd}x", {"b": "c\u{fffd}"}, 1, null]}));
    }

    #[test]
    fn json_says_what_it_said() {
        let said = json!({"a": "\u{1b}[2J\u{9b}\u{7f}\u{202e}", "b": "größer"});
        let (shown, pretty) = (json(&said.to_string()), json(&format!("{said:#}")));
        assert!(shown.chars().all(is_plain), "{shown}");
        assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), said);
        assert_eq!(serde_json::from_str::<Value>(&pretty).unwrap(), said);
    }
}
