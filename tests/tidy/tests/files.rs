//! Shape of single files: what they open with, how long they and their functions are, and words that must not
//! be in them.

use std::os::unix::fs::PermissionsExt;

use tidy::{Source, report, root, sources, sources_ending};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 60;
const COMMENT_COLUMNS_MAX: usize = 110;
const SCRIPT_LINES_MAX: usize = 100;

#[test]
fn each_rust_file_says_its_job_first() {
    let silent = |source: &Source| !source.text.starts_with("//! ");
    let complaints: Vec<String> = sources_ending(".rs").into_iter().filter(silent).map(|source| source.path).collect();
    report("files that do not open with `//! ` and their job", &complaints);
}

#[test]
fn files_stay_short() {
    let mut complaints = vec![];
    for source in sources_ending(".rs") {
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX {
            complaints.push(format!("{}: {lines} lines, at most {FILE_LINES_MAX}", source.path));
        }
    }
    report("long files", &complaints);
}

#[test]
fn functions_stay_short() {
    let mut complaints = vec![];
    for source in sources_ending(".rs") {
        for (line, name, length) in functions(&source.text) {
            if length > FUNCTION_LINES_MAX {
                complaints.push(format!(
                    "{}:{line}: fn {name} has {length} lines, at most {FUNCTION_LINES_MAX}",
                    source.path
                ));
            }
        }
    }
    report("long functions", &complaints);
}

#[test]
fn comments_are_narrow() {
    let mut complaints = vec![];
    for source in sources_ending(".rs") {
        for (number, line) in source.text.lines().enumerate() {
            // The rows of a table cannot be wrapped.
            let comment = line.trim_start().starts_with("//") && !line.ends_with('|');
            let columns = line.chars().count();
            if comment && columns > COMMENT_COLUMNS_MAX {
                complaints.push(format!("{}:{}: {columns} columns", source.path, number + 1));
            }
        }
    }
    report(&format!("comments wider than {COMMENT_COLUMNS_MAX} columns"), &complaints);
}

/// (line, name, length) of each function. The source is formatted: a body ends with a brace at the
/// indentation of its `fn`.
fn functions(text: &str) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = vec![];
    for (at, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let words = [
            "pub ",
            "pub(crate) ",
            "pub(super) ",
            "const ",
            "async ",
            "unsafe ",
            "extern \"C\" ",
            "extern \"sysv64\" ",
        ];
        let mut rest = code;
        while let Some(shorter) = words.iter().find_map(|word| rest.strip_prefix(word)) {
            rest = shorter;
        }
        let Some(signature) = rest.strip_prefix("fn ") else { continue };
        let indent = line.len() - code.len();
        if line.ends_with('}') || line.ends_with(';') {
            continue;
        }
        let level = |l: &str| l.len() - l.trim_start().len() == indent;
        let ends = |l: &str| level(l) && (l.trim_start() == "}" || l.ends_with(';'));
        let Some(length) = lines[at + 1..].iter().position(|l| ends(l)) else { continue };
        let name: String = signature.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        found.push((at + 1, name, length + 2));
    }
    found
}

#[test]
fn function_lengths_are_counted_from_signature_to_brace() {
    let text =
        "impl X {\n    pub fn a(&self) -> u8 {\n        1\n    }\n}\nfn b() {}\nfn c(\n    x: u8,\n) {\n    x;\n}\n";
    assert_eq!(functions(text), [(2, "a".to_owned(), 3), (7, "c".to_owned(), 5)]);
}

#[test]
fn nothing_unfinished() {
    // Put together here so that this file does not find itself.
    let banned = [["to", "do!"], ["unimple", "mented!"], ["d", "bg!("], ["TO", "DO"], ["FIX", "ME"], ["X", "XX:"]]
        .map(|w| w.concat());
    let mut complaints = vec![];
    for source in sources().iter().filter(|source| is_code(source)) {
        for (number, line) in source.text.lines().enumerate() {
            if let Some(word) = banned.iter().find(|word| line.contains(word.as_str())) {
                complaints.push(format!("{}:{}: {word}", source.path, number + 1));
            }
        }
    }
    report("unfinished", &complaints);
}

#[test]
fn no_leftovers_of_a_merge() {
    let marks = ["<", ">", "|"].map(|mark| mark.repeat(7) + " ");
    let mut complaints = vec![];
    for source in sources() {
        for (number, line) in source.text.lines().enumerate() {
            if marks.iter().any(|mark| line.starts_with(mark.as_str())) {
                complaints.push(format!("{}:{}", source.path, number + 1));
            }
        }
    }
    report("leftovers of a merge", &complaints);
}

#[test]
fn no_path_of_somebodys_machine() {
    let banned = [["/wo", "rk/main"], ["/wo", "rk/shared"], ["/tmp/", "wt/"], ["/ho", "me/"], ["/Us", "ers/"]]
        .map(|w| w.concat());
    let mut complaints = vec![];
    for source in sources() {
        for (number, line) in source.text.lines().enumerate() {
            if let Some(path) = banned.iter().find(|path| line.contains(path.as_str())) {
                complaints.push(format!("{}:{}: {path}", source.path, number + 1));
            }
        }
    }
    report("paths of one machine", &complaints);
}

#[test]
fn scripts_are_short_and_say_how_to_use_them() {
    let mut complaints = vec![];
    for source in sources().iter().filter(|source| source.path.starts_with("scripts/")) {
        let lines = source.text.lines().count();
        if lines > SCRIPT_LINES_MAX {
            complaints.push(format!("{}: {lines} lines, at most {SCRIPT_LINES_MAX}: put logic into Rust", source.path));
        }
        let entry_point = !source.path.starts_with("scripts/lib/");
        let mut head = source.text.lines();
        let first = head.next().unwrap_or_default();
        let second = head.next().unwrap_or_default();
        if entry_point {
            let mode = std::fs::metadata(root().join(&source.path)).map_or(0, |meta| meta.permissions().mode());
            if !first.starts_with("#!") || !second.starts_with("# usage: ") || mode & 0o111 == 0 {
                complaints.push(format!("{}: must be executable, start with #! and then `# usage: `", source.path));
            }
        } else if !first.starts_with('#')
            || (first.starts_with("#!") || first.starts_with("# shellcheck")) && !second.starts_with("# ")
        {
            complaints.push(format!("{}: must open with a comment that says its job", source.path));
        }
    }
    report("scripts", &complaints);
}

fn is_code(source: &Source) -> bool {
    source.path.ends_with(".rs") || source.path.starts_with("scripts/") || source.path.ends_with(".toml")
}
