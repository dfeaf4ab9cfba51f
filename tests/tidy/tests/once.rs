//! What exists once and must not be written a second time.

use tidy::{report, sources_ending};

/// Code, the crate where it may stand, and what to use elsewhere.
const ONCE: [(&str, &str, &str); 4] = [
    ("thread::Builder", "host-kit/", "host_kit::thread::spawn"),
    ("std::thread::spawn", "host-kit/", "host_kit::thread::spawn"),
    ("getrandom::", "host-kit/", "host_kit::random"),
    ("File::open(\"/dev/urandom\")", "host-kit/", "host_kit::random"),
];

#[test]
fn shared_code_is_used_and_not_repeated() {
    let mut complaints = vec![];
    for source in sources_ending(".rs") {
        let is_test = source.path.contains("tests/") || source.path.ends_with("/tests.rs");
        let code = source.text.split("#[cfg(test)]").next().unwrap_or_default();
        if is_test {
            continue;
        }
        for (number, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap_or_default();
            for (_, _, instead) in
                ONCE.iter().filter(|(code, at, _)| line.contains(code) && !source.path.starts_with(at))
            {
                complaints.push(format!("{}:{}: use {instead}", source.path, number + 1));
            }
        }
    }
    report("what exists once is used", &complaints);
}
