//! What the documents refer to is there: files, and the tests and names that are said to be in them.

use tidy::{Source, report, root, sources};

/// (text, target) of each link to a file of the repository.
fn links(text: &str) -> Vec<(&str, &str)> {
    let ends = text.match_indices("](");
    let link = |(at, _): (usize, &str)| {
        let shown = text[..at].rsplit_once('[')?.1;
        let target = text[at + 2..].split_once(')')?.0;
        (!target.contains("://") && !target.starts_with('#')).then_some((shown, target))
    };
    ends.filter_map(|(at, found)| link((at, found))).collect()
}

/// Whether `name` is a function of the source, the file's own name, or a variant that the command line spells
/// like this.
fn names(source: &Source, name: &str) -> bool {
    let stem = source.path.rsplit('/').next().and_then(|file| file.strip_suffix(".rs"));
    let variant: String = name
        .split('-')
        .map(|word| {
            word.chars().take(1).map(|c| c.to_ascii_uppercase()).chain(word.chars().skip(1)).collect::<String>()
        })
        .collect();
    source.text.contains(&format!("fn {name}("))
        || stem == Some(name)
        || source.text.contains(&format!("    {variant},\n"))
}

#[test]
fn links_lead_somewhere() {
    let mut complaints = vec![];
    for source in sources().iter().filter(|source| source.path.ends_with(".md")) {
        let folder = source.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (_, target) in links(&source.text) {
            let file = target.split('#').next().unwrap_or_default();
            if !root().join(folder).join(file).exists() {
                complaints.push(format!("{}: {target}", source.path));
            }
        }
    }
    report("links to files that are not there", &complaints);
}

#[test]
fn failures_names_tests_that_exist() {
    let all = sources();
    let page = all.iter().find(|source| source.path == "docs/failures.md");
    let mut complaints = vec![];
    let mut seen = 0;
    for (shown, target) in page.map(|page| links(&page.text)).unwrap_or_default() {
        let path = target.trim_start_matches("../");
        let Some(source) = all.iter().find(|source| source.path == path && path.ends_with(".rs")) else { continue };
        let word =
            |name: &&str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
        for name in shown.split(", ").filter(word) {
            seen += 1;
            if !names(source, name) {
                complaints.push(format!("{name} is not in {path}"));
            }
        }
    }
    assert!(seen > 50, "only {seen} names found: is docs/failures.md written differently now?");
    report("docs/failures.md names what is not there", &complaints);
}

#[test]
fn links_are_found() {
    let text = "see [a](../x.rs), [b, c](y.md#z) and [web](https://example.org) or [here](#there)";
    assert_eq!(links(text), [("a", "../x.rs"), ("b, c", "y.md#z")]);
}
