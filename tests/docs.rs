//! The documents against the repository and the binary: lengths, links, paths, the glossary, the
//! options.
//!
//! `UPDATE_DOCS=1 cargo test --test docs` rewrites what is generated in them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The width of prose.
const WIDTH: usize = 100;
/// Terms that a one-page glossary holds.
const TERMS: usize = 40;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The documents, relative to the repository's root.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["", "docs", "docs/internals"] {
        let entries = root().join(folder).read_dir().expect("a folder");
        for entry in entries.map(|entry| entry.expect("an entry")) {
            if entry.path().extension().is_some_and(|end| end == "md") {
                found.push(Path::new(folder).join(entry.file_name()));
            }
        }
    }
    found.sort();
    found
}

/// The lines of a document outside code blocks, with their numbers.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut code = false;
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            code = !code;
        } else if !code {
            lines.push((index + 1, line));
        }
    }
    lines
}

/// The targets of a document's links, with their lines.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        let ends = line.match_indices("](").map(|(at, _)| &line[at + 2..]);
        found.extend(ends.filter_map(|rest| Some((number, rest.split(')').next()?))));
        let sources = line.match_indices("src=\"").map(|(at, _)| &line[at + 5..]);
        found.extend(sources.filter_map(|rest| Some((number, rest.split('"').next()?))));
    }
    found
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text)
        .into_iter()
        .filter(|(_, line)| line.starts_with('#'));
    headings
        .map(|(_, line)| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// What the program prints on standard output.
fn supervisor(argument: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_supervisor"))
        .arg(argument)
        .output()
        .expect("the supervisor");
    assert!(output.status.success(), "supervisor {argument}");
    String::from_utf8(output.stdout).expect("text")
}

/// What a document has between two marks.
fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let (_, rest) = text.split_once(start).expect("the first mark");
    rest.split_once(end).expect("the second mark").0
}

#[test]
fn the_readme_and_the_map_are_short() {
    for (name, most) in [("README.md", 1000), ("ARCHITECTURE.md", 2500)] {
        let words = read(name).split_whitespace().count();
        assert!(words <= most, "{name} has {words} words of {most}");
    }
}

#[test]
fn every_relative_link_leads_somewhere() {
    let mut broken = Vec::new();
    for document in documents() {
        let text = read(&document.to_string_lossy());
        for (line, link) in links(&text) {
            if link.contains("://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => document.clone(),
                path => document.parent().expect("a folder").join(path),
            };
            let there = root().join(&target).exists();
            let anchored = anchor.is_empty()
                || (there && anchors(&read(&target.to_string_lossy())).contains(anchor));
            if !there || !anchored {
                broken.push(format!("{}:{line}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

/// Paths in code spans, as in the map of ARCHITECTURE.md. The changelog names what was.
#[test]
fn every_path_in_the_documents_exists() {
    let folders = [
        "docs",
        "examples",
        "fuzz",
        "os",
        "protocol",
        "scripts",
        "src",
        "supervisor",
        "tests",
        "worker",
    ];
    let mut missing = Vec::new();
    for document in documents() {
        if document == Path::new("CHANGELOG.md") {
            continue;
        }
        let text = read(&document.to_string_lossy());
        for (number, line) in prose(&text) {
            for word in line.split('`').skip(1).step_by(2) {
                let path = word.split([' ', ':']).next().unwrap_or_default();
                let known = path
                    .split_once('/')
                    .is_some_and(|(folder, _)| folders.contains(&folder));
                let pattern = path.contains(['*', '…', '{', '<']);
                if known && !pattern && !root().join(path).exists() {
                    missing.push(format!("{}:{number}: {path}", document.display()));
                }
            }
        }
    }
    assert!(missing.is_empty(), "no such paths:\n{}", missing.join("\n"));
}

#[test]
fn every_page_is_in_the_index() {
    let index = read("docs/README.md");
    let indexed: BTreeSet<&str> = links(&index).into_iter().map(|(_, link)| link).collect();
    for document in documents() {
        let Ok(page) = document.strip_prefix("docs") else {
            continue;
        };
        let page = page.to_string_lossy();
        assert!(
            page == "README.md" || indexed.contains(page.as_ref()),
            "docs/README.md does not link {page}"
        );
    }
}

#[test]
fn prose_is_wrapped() {
    let mut long = Vec::new();
    for document in documents() {
        let text = read(&document.to_string_lossy());
        for (number, line) in prose(&text) {
            let free = line.starts_with('|') || line.starts_with('<') || line.contains("://");
            if !free && line.chars().count() > WIDTH {
                long.push(format!("{}:{number}", document.display()));
            }
        }
    }
    assert!(
        long.is_empty(),
        "longer than {WIDTH} columns:\n{}",
        long.join("\n")
    );
}

#[test]
fn the_glossary_is_one_sorted_page() {
    let text = read("docs/glossary.md");
    let terms: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("- **")?.split("**").next())
        .map(str::to_lowercase)
        .collect();
    let sorted: BTreeSet<&String> = terms.iter().collect();
    assert!(
        terms.iter().eq(sorted),
        "not sorted, or a term twice: {terms:?}"
    );
    assert!((1..=TERMS).contains(&terms.len()), "{} terms", terms.len());
}

#[test]
fn examples_in_the_documents_are_those_that_compile() {
    const SHOWN: &[(&str, &str)] = &[
        ("README.md", "examples/hello.rs"),
        ("docs/rust-services.md", "examples/hello.rs"),
        ("docs/rust-services.md", "examples/axum.rs"),
    ];
    for (document, example) in SHOWN {
        let code = read(example);
        let code = code.lines().filter(|line| !line.starts_with("//!"));
        let code = code.collect::<Vec<_>>().join("\n");
        assert!(
            read(document).contains(code.trim()),
            "{document} does not show {example}"
        );
    }
}

#[test]
fn the_signals_of_the_manual_are_documented() {
    let manual = supervisor("man");
    let page = read("docs/operating.md");
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with('|')).collect();
    for signal in between(&manual, ".SH \"SIGNALS\"\n.nf", ".fi")
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .flat_map(|line| {
            let names = line.trim_start().split("  ").next().unwrap_or_default();
            names.split(", ")
        })
    {
        let named = |row: &&str| {
            row.split('|')
                .nth(1)
                .is_some_and(|cell| cell.contains(signal))
        };
        assert!(rows.iter().any(named), "docs/operating.md lacks {signal}");
    }
}

/// An option as the manual page has it.
struct Entry {
    flag: String,
    text: String,
}

/// Text without the marks of roff. Paragraphs become sentences.
fn plain(roff: &str) -> String {
    let mut text = String::new();
    for line in roff.lines() {
        if line.is_empty() || line.starts_with('.') {
            end_sentence(&mut text);
        } else {
            text.push_str(line);
            text.push(' ');
        }
    }
    let marks = [
        ("\\fB", ""),
        ("\\fI", ""),
        ("\\fR", ""),
        ("\\-", "-"),
        ("\\&", ""),
    ];
    let quotes = [("\\*(Aq", "'"), ("\\(aq", "'")];
    let text = marks
        .iter()
        .chain(&quotes)
        .fold(text, |text, (mark, plain)| text.replace(mark, plain));
    text.trim().to_owned()
}

fn end_sentence(text: &mut String) {
    let end = text.trim_end().len();
    text.truncate(end);
    if !text.is_empty() && !text.ends_with('.') {
        text.push('.');
    }
    text.push(' ');
}

/// The manual's headings with their options.
fn options() -> Vec<(String, Vec<Entry>)> {
    let manual = supervisor("man");
    let mut found: Vec<(String, Vec<Entry>)> = Vec::new();
    for section in manual.split("\n.SH ").skip(1) {
        let (heading, body) = section.split_once('\n').expect("a heading and its text");
        let entries: Vec<Entry> = body
            .split(".TP\n")
            .filter_map(|entry| {
                let (flag, text) = entry.split_once('\n')?;
                let flag = plain(flag);
                (flag.starts_with('-') && flag.contains('<')).then(|| Entry {
                    flag,
                    text: plain(text),
                })
            })
            .collect();
        if !entries.is_empty() {
            found.push((heading.trim_matches('"').to_owned(), entries));
        }
    }
    found
}

/// Markdown of an option: what it does, its default, the workers to which it applies.
fn rendered(entry: &Entry) -> String {
    let text = entry.text.split(" [env: ").next().unwrap_or_default();
    let (text, notes) = text.split_once("[default: ").unwrap_or((text, ""));
    let mut text = text.to_owned();
    end_sentence(&mut text);
    if let Some((default, scope)) = notes.split_once(']') {
        text.push_str("Default: ");
        text.push_str(default);
        end_sentence(&mut text);
        if let Some(scope) = scope.trim().strip_prefix("[for ") {
            text.push_str("Only for ");
            text.push_str(scope.trim_end_matches(['.', ']']));
            end_sentence(&mut text);
        }
    }
    format!("`{}` — {}", entry.flag, text.trim().replace('*', "\\*"))
}

/// Markdown of all options, wrapped.
fn rendered_options() -> String {
    let mut page = String::new();
    for (heading, entries) in options() {
        let mut heading = heading.to_lowercase();
        heading[..1].make_ascii_uppercase();
        let heading = if heading == "Http" { "HTTP" } else { &heading };
        let _ = write!(page, "\n### {heading}\n\n");
        for entry in entries {
            let mut line = "-".to_owned();
            // A flag and its value stay on one line.
            for word in rendered(&entry).replace(" <", "\u{a0}<").split(' ') {
                if line.chars().count() + 1 + word.chars().count() > WIDTH {
                    page.push_str(&line);
                    page.push('\n');
                    " ".clone_into(&mut line);
                }
                line.push(' ');
                line.push_str(&word.replace('\u{a0}', " "));
            }
            page.push_str(&line);
            page.push('\n');
        }
    }
    page.push('\n');
    page
}

#[test]
fn the_list_of_options_is_that_of_the_manual() {
    const FILE: &str = "docs/configuration.md";
    let (start, end) = ("<!-- options -->\n", "<!-- end of options -->");
    let page = read(FILE);
    let written = between(&page, start, end);
    let right = rendered_options();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let page = page.replace(
            &format!("{start}{written}{end}"),
            &format!("{start}{right}{end}"),
        );
        std::fs::write(root().join(FILE), page).expect("the page is written");
        return;
    }
    assert!(
        written == right,
        "{FILE} is out of date: UPDATE_DOCS=1 cargo test --test docs"
    );
}
