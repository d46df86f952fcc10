//! The lines of a worker's standard error that say why it has exited.
//!
//! Runtimes end their report in different ways: Python with the exception, Node.js with its own
//! version, Ruby and Java with the place where it began, Rust with advice. So the last lines alone
//! may say nothing. What is chosen is only shown to people.

/// The most lines, and characters of all of them.
const MAX_LINES: usize = 2;
const MAX_CHARACTERS: usize = 300;

/// Words that the line with the error has in one runtime or another.
const ERROR_WORDS: [&str; 9] = [
    "Error",
    "Exception",
    "error:",
    "ERROR",
    "panic:",
    "panicked at",
    "fatal",
    "FATAL",
    "Fatal",
];

/// Returns the lines that matter of the end of a worker's standard error, as one line without
/// control characters; empty if there are none.
pub(crate) fn excerpt(tail: &[u8]) -> String {
    let text = without_escapes(&String::from_utf8_lossy(tail));
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty() && !is_noise(line))
        .collect();
    let is_error = |line: &&str| ERROR_WORDS.iter().any(|word| line.contains(word));
    let first = lines
        .iter()
        .rposition(is_error)
        .unwrap_or(lines.len().saturating_sub(MAX_LINES));
    let chosen: Vec<&str> = lines
        .iter()
        .skip(first)
        .take(MAX_LINES)
        .map(|line| line.trim())
        .collect();
    let mut chosen = chosen.join("; ");
    if let Some((end, _)) = chosen.char_indices().nth(MAX_CHARACTERS) {
        chosen.truncate(end);
        chosen.push_str("...");
    }
    chosen
}

/// Whether a line belongs to a stack trace, or says nothing of the error.
fn is_noise(line: &str) -> bool {
    let text = line.trim_start();
    let indented = text.len() < line.len();
    let frame = indented
        && ["at ", "from ", "File \"", "... "]
            .iter()
            .any(|it| text.starts_with(it));
    let marker = !text.is_empty() && text.chars().all(|it| matches!(it, '^' | '~' | '{' | '}'));
    frame || marker || is_remark(text)
}

/// Whether a line is what a runtime adds to every report.
pub(crate) fn is_remark(line: &str) -> bool {
    let remarks = [
        "Node.js v",
        "Bun v",
        "note: run with `RUST_BACKTRACE",
        "Traceback (most recent call last)",
        "goroutine ",
        "exit status ",
    ];
    remarks.iter().any(|it| line.starts_with(it))
}

/// Returns text without terminals' escape sequences and other control characters.
pub(crate) fn without_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\x1b' => match characters.next() {
                // CSI: parameters, then a final byte.
                Some('[') => {
                    while characters
                        .next()
                        .is_some_and(|it| !('@'..='~').contains(&it))
                    {}
                }
                // OSC: up to BEL or ST.
                Some(']') => {
                    while let Some(it) = characters.next_if(|it| *it != '\n') {
                        if it == '\x07' {
                            break;
                        }
                        if it == '\x1b' {
                            characters.next_if_eq(&'\\');
                            break;
                        }
                    }
                }
                Some(_) | None => {}
            },
            '\n' => plain.push('\n'),
            '\t' => plain.push(' '),
            _ if character.is_control() => {}
            _ => plain.push(character),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_with_the_error_is_found_in_the_reports_of_many_runtimes() {
        for (report, expected) in [
            ("", ""),
            ("one\ntwo\n\nthree\n", "two; three"),
            (
                "Traceback (most recent call last):\n  File \"app.py\", line 3, in <module>\n    \
                 import nosuch\nModuleNotFoundError: No module named 'nosuch'\n",
                "ModuleNotFoundError: No module named 'nosuch'",
            ),
            (
                "  File \"app.py\", line 3\n    def broken(\n              ^\nSyntaxError: '(' was \
                 never closed\n",
                "SyntaxError: '(' was never closed",
            ),
            (
                "/srv/app.js:3\nlet x = ;\n        ^\n\nSyntaxError: Unexpected token ';'\n    at \
                 wrapSafe (node:internal/modules/cjs/loader:1378:20)\n    at node:internal/main\n\n\
                 Node.js v18.20.4\n",
                "SyntaxError: Unexpected token ';'",
            ),
            (
                "app.rb:3:in `require': cannot load such file -- x (LoadError)\n\tfrom app.rb:3:in \
                 `<main>'\n",
                "app.rb:3:in `require': cannot load such file -- x (LoadError)",
            ),
            (
                "Exception in thread \"main\" java.lang.IllegalStateException: no database\n\tat \
                 Main.main(Main.java:3)\n",
                "Exception in thread \"main\" java.lang.IllegalStateException: no database",
            ),
            (
                "\nthread 'main' panicked at src/main.rs:3:5:\nno database\nnote: run with \
                 `RUST_BACKTRACE=1` environment variable to display a backtrace\n",
                "thread 'main' panicked at src/main.rs:3:5:; no database",
            ),
            (
                "panic: no database\n\ngoroutine 1 [running]:\nmain.main()\n\t/app/main.go:4 \
                 +0x1d\nexit status 2\n",
                "panic: no database; main.main()",
            ),
            (
                "\x1b[1;31mfatal\x1b[0m: no\x07 such \x1b]0;title\x07thing\n",
                "fatal: no such thing",
            ),
        ] {
            assert_eq!(excerpt(report.as_bytes()), expected);
        }
    }

    #[test]
    fn it_is_bounded_and_survives_any_bytes() {
        assert_eq!(excerpt("ä".repeat(2048).as_bytes()).chars().count(), 303);
        for bytes in [&b"\xff\xfe"[..], b"\x1b", b"\x1b[", b"\x1b]x", b"\x1b[1;2"] {
            assert!(!excerpt(bytes).contains('\x1b'));
        }
    }
}
