//! The configuration file: TOML, in which every problem is found at once and shown with its line.

use super::error::{File, Place, Problem};
use super::layer::{Layer, Origin};
use super::options::{Options, SETTINGS, Setting, setting};
use super::reader::{ConfigValue, InvalidValue, Parsed, Text};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use toml::de::{DeTable, ValueDeserializer};

/// A configuration file that is longer was not meant to be one.
const LONGEST: u64 = 1024 * 1024;

/// Reads a file's text.
pub(crate) fn read(path: &Path) -> Result<Arc<File>, Problem> {
    let file = |text| {
        Arc::new(File {
            path: path.to_owned(),
            text,
        })
    };
    contents(path).map(file).map_err(|error| Problem {
        place: Place::File {
            file: file(String::new()),
            key: None,
            span: None,
        },
        message: error.to_string(),
    })
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
enum FileError {
    /// It cannot be opened.
    #[error("cannot be opened: {}{}", lower(.0), remedy(.0))]
    Open(std::io::Error),
    /// It has been opened, but does not yield its text.
    #[error("cannot be read: {}", lower(.0))]
    Read(std::io::Error),
    /// It is a directory, a pipe or a device.
    #[error("is no regular file, and could not be read again at a reload (name a file)")]
    NotRegular,
    /// It is longer than [`LONGEST`].
    #[error("is longer than 1 MiB, so it is no configuration (check the path)")]
    TooLong,
    /// It holds other bytes than text.
    #[error("line {line} is not UTF-8 (save the file as UTF-8)")]
    NotUtf8 {
        /// The first line with such bytes.
        line: usize,
    },
}

fn remedy(error: &std::io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => " (check the path)",
        ErrorKind::PermissionDenied => " (let this user read it)",
        _ => "",
    }
}

fn contents(path: &Path) -> Result<String, FileError> {
    // A pipe without a writer would otherwise hold up a reload for ever.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(FileError::Open)?;
    if !file.metadata().map_err(FileError::Read)?.is_file() {
        return Err(FileError::NotRegular);
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(FileError::Read)?;
    if bytes.len() as u64 > LONGEST {
        return Err(FileError::TooLong);
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .split(|byte| *byte == b'\n')
            .count();
        FileError::NotUtf8 { line }
    })
}

/// Returns an error of the operating system in its own words, without the number.
fn lower(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error")
        .next()
        .unwrap_or(&text)
        .to_ascii_lowercase()
}

/// Reads the settings in a file. What is wrong goes to `problems`; the rest is in the layer.
pub(crate) fn parse(
    file: &Arc<File>,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) -> Layer {
    let place = |key: Option<&str>, span| Place::File {
        file: Arc::clone(file),
        key: key.map(str::to_owned),
        span,
    };
    let mut options = Options::default();
    let mut program = Vec::new();
    let mut spans = BTreeMap::new();
    let mut found: Vec<(Range<usize>, Problem)> = Vec::new();
    match DeTable::parse(&file.text) {
        Err(error) => {
            let span = error.span();
            let message = syntax(&error, &file.text);
            found.push((
                span.clone().unwrap_or_default(),
                Problem {
                    place: place(None, span),
                    message,
                },
            ));
        }
        Ok(table) => {
            for (key, value) in table.into_inner() {
                let (key_span, value_span) = (key.span(), value.span());
                let key = key.into_inner();
                let result = if key == "command" {
                    words(ValueDeserializer::from(value)).map(|words| program = words)
                } else if let Some(setting) = setting(&key) {
                    options.set_toml(setting, ValueDeserializer::from(value))
                } else {
                    let message = unknown(&key, value.get_ref().is_table());
                    let problem = Problem {
                        place: place(Some(&key), Some(key_span.clone())),
                        message,
                    };
                    found.push((key_span, problem));
                    continue;
                };
                if let Err(error) = result {
                    let span = error.span().unwrap_or_else(|| value_span.clone());
                    let message = error.message().to_owned();
                    found.push((
                        span.clone(),
                        Problem {
                            place: place(Some(&key), Some(span)),
                            message,
                        },
                    ));
                }
                spans.insert(key.into_owned(), value_span);
            }
        }
    }
    for Parsed((name, _)) in options.env.iter().flatten() {
        if setting(name).is_some() {
            let path = file.path.display();
            warnings.push(format!(
                "{path}: env.{name} is a variable for the workers (to set `{name}`, move its \
                 line above `[env]`)"
            ));
        }
    }
    found.sort_by_key(|(span, _)| span.start);
    problems.extend(found.into_iter().map(|(_, problem)| problem));
    Layer {
        origin: Origin::File {
            file: Arc::clone(file),
            spans,
        },
        options,
        program,
    }
}

/// Reads `command`.
fn words(value: ValueDeserializer<'_>) -> Result<Vec<OsString>, toml::de::Error> {
    let wrong =
        || serde::de::Error::custom("is no list of words; write it like [\"python3\", \"app.py\"]");
    let words = Vec::<String>::deserialize(value).map_err(|_| -> toml::de::Error { wrong() })?;
    if words.first().is_none_or(String::is_empty) {
        return Err(wrong());
    }
    words
        .into_iter()
        .map(|word| Text::read(&word).map(OsString::from))
        .collect::<Result<_, InvalidValue>>()
        .map_err(serde::de::Error::custom)
}

/// What to say of text that is no TOML; in plainer words than the parser's where people slip often.
fn syntax(error: &toml::de::Error, text: &str) -> String {
    if error.message() == "duplicate key" {
        return "is set twice in this file (leave one out)".to_owned();
    }
    let place = error.span().map_or(0, |span| span.start.min(text.len()));
    let start = text[..place].rfind('\n').map_or(0, |end| end + 1);
    let line = text[start..].lines().next().unwrap_or_default();
    let value = line
        .split_once('=')
        // What is wrong is the value, not the key.
        .filter(|(key, _)| start + key.len() < place)
        .map(|(_, value)| value.split(" #").next().unwrap_or_default().trim());
    match value.map(|value| (value, rewritten(value))) {
        Some(("", _)) => {
            "the value is missing (write it after the `=`, or leave the line out)".to_owned()
        }
        Some((_, Some(Rewritten::Quoted(right)))) => {
            format!("text needs quotes (write it like {right})")
        }
        Some((_, Some(Rewritten::Closed(right)))) => {
            format!("the closing quote is missing (write it like {right})")
        }
        Some(_) | None => {
            let message = error.message();
            format!("{message} (the file is TOML; write lines like workers = 8)")
        }
    }
}

/// A value that is no TOML, written right.
enum Rewritten {
    /// It, or something in it, has quotes now.
    Quoted(String),
    /// Its quotes are closed now.
    Closed(String),
}

/// Returns how a value may have been meant; `None` when its quotes are not what is wrong with it.
fn rewritten(value: &str) -> Option<Rewritten> {
    let needs_quotes = |text: &str| {
        let is_plain = text.parse::<f64>().is_ok() || matches!(text, "true" | "false");
        !text.is_empty() && !text.starts_with(['"', '\'', '[', '{']) && !is_plain
    };
    let with_quotes = |text: &str| match text.trim() {
        text if needs_quotes(text) => format!("\"{text}\""),
        text => text.to_owned(),
    };
    let inside = |open, close| {
        let rest = value.strip_prefix(open)?;
        Some(rest.strip_suffix(close).unwrap_or(rest))
    };
    let quoted = if let Some(list) = inside('[', ']') {
        let list: Vec<_> = list.split(',').map(with_quotes).collect();
        format!("[{}]", list.join(", "))
    } else if let Some(table) = inside('{', '}') {
        let entry = |entry: &str| match entry.split_once('=') {
            Some((key, value)) => format!("{} = {}", key.trim(), with_quotes(value)),
            None => entry.trim().to_owned(),
        };
        let table: Vec<_> = table.split(',').map(entry).collect();
        format!("{{ {} }}", table.join(", "))
    } else if let Some(text) = value.strip_prefix(['"', '\'']) {
        let quote = &value[..1];
        return (!text.contains(quote)).then(|| Rewritten::Closed(format!("{value}{quote}")));
    } else {
        let mut words = value.split_whitespace();
        // Two numbers are not one text.
        let is_text = words.next().is_some_and(needs_quotes);
        return is_text.then(|| Rewritten::Quoted(format!("\"{value}\"")));
    };
    // Where it was right, something else is wrong.
    let same = |one: &str, other: &str| {
        let bare = |text: &str| text.replace(char::is_whitespace, "");
        bare(one) == bare(other)
    };
    (!same(&quoted, value)).then_some(Rewritten::Quoted(quoted))
}

/// What to say of a key that is no setting's.
fn unknown(key: &str, table: bool) -> String {
    if key == "config" {
        return "a file cannot name another one (leave the line out)".to_owned();
    }
    let names: Vec<_> = SETTINGS
        .iter()
        .map(Setting::name)
        .chain(["command".to_owned()])
        .collect();
    match nearest(key, names.iter().map(String::as_str)) {
        Some(near) => format!("unknown setting (did you mean `{near}`?)"),
        None if table => {
            "unknown section (the only one is [env]; every other setting stands above it)"
                .to_owned()
        }
        None => "unknown setting (the settings are the options of --help, without their dashes)"
            .to_owned(),
    }
}

/// The candidate that a slip of the hand may have turned into `word`.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let word = word.to_ascii_lowercase().replace('_', "-");
    candidates
        .map(|candidate| {
            (
                strsim::osa_distance(&word, &candidate.to_ascii_lowercase().replace('_', "-")),
                candidate,
            )
        })
        .min()
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).clamp(1, 3))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_without_quotes_is_shown_with_them() {
        let message = |line: &str| {
            let error = DeTable::parse(line).err().map(|error| syntax(&error, line));
            error.unwrap_or_else(|| panic!("{line} is TOML"))
        };
        for (line, right) in [
            ("class = sync", "\"sync\""),
            ("bind = 0.0.0.0:80", "\"0.0.0.0:80\""),
            (
                "bind = [0.0.0.0:80, \"[::]:80\"]",
                "[\"0.0.0.0:80\", \"[::]:80\"]",
            ),
            ("keep-alive = 9s", "\"9s\""),
            ("graceful-timeout = 1m 30s # a minute", "\"1m 30s\""),
            ("workers = 2..4", "\"2..4\""),
            ("name = infra", "\"infra\""),
            ("name = truely", "\"truely\""),
            ("command = python3 app.py", "\"python3 app.py\""),
            ("command = [python3, app.py]", "[\"python3\", \"app.py\"]"),
            ("env = { A = b, N = 1 }", "{ A = \"b\", N = 1 }"),
        ] {
            let wanted = format!("text needs quotes (write it like {right})");
            assert_eq!(message(line), wanted, "{line}");
        }
        assert_eq!(
            message("bind = \"a\nworkers = 2"),
            "the closing quote is missing (write it like \"a\")"
        );
        assert!(message("workers =").starts_with("the value is missing"));
        for line in [
            "workers = 8 9",
            "workers 8",
            "a..b = 1",
            "bind = [\"a\" \"b\"]",
        ] {
            let message = message(line);
            assert!(
                message.ends_with("(the file is TOML; write lines like workers = 8)"),
                "{message}"
            );
        }
    }
}
