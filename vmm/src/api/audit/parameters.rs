//! What the audit log has of the parameters of a call: no secrets, and only so much.

use serde_json::Value;

/// Longest parameters, in bytes; of longer ones only the beginning is kept.
const PARAMETERS_MAX: usize = 4096;
/// What stands in place of a secret.
const HIDDEN: &str = "***";
/// Names of secrets have one of these words in them.
const SECRETS: [&str; 6] = ["password", "passwd", "secret", "token", "credential", "private"];
/// What hosts pass to guests in these may be anything.
const OPAQUE: &str = "oem_strings";

/// The body of a request for the log.
pub fn parameters(body: &[u8]) -> Value {
    if body.is_empty() {
        return Value::Null;
    }
    let Ok(parameters) = serde_json::from_slice(body) else {
        return Value::String(format!("{} bytes that are not JSON", body.len()));
    };
    let shown = without_secrets(parameters);
    let text = shown.to_string();
    if text.len() <= PARAMETERS_MAX {
        return shown;
    }
    let begin = &text[..text.floor_char_boundary(PARAMETERS_MAX)];
    Value::String(format!("{begin}… ({} bytes)", text.len()))
}

fn without_secrets(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(words_without_secrets(&text)),
        Value::Array(all) => all.into_iter().map(without_secrets).collect(),
        Value::Object(all) => all
            .into_iter()
            .map(|(name, value)| {
                let hidden = is_secret(&name) || name == OPAQUE;
                let shown = if hidden && !value.is_null() { HIDDEN.into() } else { without_secrets(value) };
                (name, shown)
            })
            .collect(),
        other => other,
    }
}

/// A name of a file that has a secret is none itself.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRETS.iter().any(|word| name.contains(word)) && !name.ends_with("file")
}

/// A command line or an address: what follows `NAME=` of a secret is hidden, and the user of an URL.
fn words_without_secrets(text: &str) -> String {
    let is_end = |char: char| char.is_whitespace() || matches!(char, '&' | '?' | ',' | ';');
    text.split_inclusive(is_end)
        .map(|word| {
            let end = word.find(is_end).unwrap_or(word.len());
            let (word, end) = word.split_at(end);
            [&hidden_in(word), end].concat()
        })
        .collect()
}

fn hidden_in(word: &str) -> String {
    if let Some((name, _)) = word.split_once('=').filter(|(name, _)| is_secret(name)) {
        return format!("{name}={HIDDEN}");
    }
    let Some((scheme, rest)) = word.split_once("://") else { return word.to_owned() };
    let place = &rest[..rest.find('/').unwrap_or(rest.len())];
    match place.rfind('@') {
        Some(at) => format!("{scheme}://{HIDDEN}{}", &rest[at..]),
        None => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_do_not_get_into_the_log() {
        let body = json!({
            "payload": {"kernel": "/k", "cmdline": "quiet root_password=x console=ttyS0\tapi.Token=y  z"},
            "platform": {"oem_strings": ["io.systemd.credential:a=b"], "serial_number": null},
            "witness": "etcd://u:p@h:2379+i:2379/pollux/vm1?user=u&password_file=/p&password=q",
            "Private-Key": 7,
            "disks": [{"path": "/a@b://c", "id": "d"}],
        });
        let expected = json!({
            "payload": {"kernel": "/k", "cmdline": "quiet root_password=*** console=ttyS0\tapi.Token=***  z"},
            "platform": {"oem_strings": "***", "serial_number": null},
            "witness": "etcd://***@h:2379+i:2379/pollux/vm1?user=u&password_file=/p&password=***",
            "Private-Key": "***",
            "disks": [{"path": "/a@b://c", "id": "d"}],
        });
        assert_eq!(parameters(body.to_string().as_bytes()), expected);
    }

    #[test]
    fn only_so_much_of_a_body_gets_into_the_log() {
        assert_eq!(parameters(b""), Value::Null);
        assert_eq!(parameters(b"\xff{"), "2 bytes that are not JSON");
        let long = parameters(json!({"a": "ü".repeat(30_000)}).to_string().as_bytes());
        let text = long.as_str().unwrap();
        assert!(text.starts_with("{\"a\":\"üü") && text.ends_with("… (60008 bytes)"), "{text}");
        assert!(text.len() < PARAMETERS_MAX + 30);
    }
}
