//! The configuration file: TOML, in which every problem is found at once and shown with its line.

use super::error::{File, Place, Problem};
use super::options::{Options, SETTINGS, setting};
use super::reader::{Typed, Word};
use super::source::{Layer, Origin};
use super::words::Plain;
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
    let problem = |message, span| Problem {
        place: Place::File {
            file: file(String::new()),
            key: None,
            span,
        },
        message,
    };
    let text = contents(path).map_err(|message| problem(message, None))?;
    String::from_utf8(text).map(file).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .split(|byte| *byte == b'\n')
            .count();
        problem(
            format!("line {line} is not UTF-8 (save the file as UTF-8)"),
            None,
        )
    })
}

fn contents(path: &Path) -> Result<Vec<u8>, String> {
    // A pipe without a writer would otherwise hold up a reload for ever.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path);
    let file = opened.map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::NotFound => " (check the path)",
            ErrorKind::PermissionDenied => " (let this user read it)",
            _ => "",
        };
        format!("cannot be opened: {}{remedy}", lower(&error))
    })?;
    let metadata = file
        .metadata()
        .map_err(|error| format!("cannot be read: {}", lower(&error)))?;
    if !metadata.is_file() {
        return Err(
            "is no regular file, and could not be read again at a reload (name a file)".to_owned(),
        );
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot be read: {}", lower(&error)))?;
    if bytes.len() as u64 > LONGEST {
        return Err("is longer than 1 MiB, so it is no configuration (check the path)".to_owned());
    }
    Ok(bytes)
}

/// An error of the operating system in its own words, without the number.
pub(crate) fn lower(error: &std::io::Error) -> String {
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
    for Typed(variable) in options.env.iter().flatten() {
        if setting(&variable.key).is_some() {
            let (path, name) = (file.path.display(), &variable.key);
            warnings.push(format!(
                "{path}: env.{name} is a variable for the workers (to set `{name}`, move its line above `[env]`)"
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
        .map(|word| Plain::read(&word).map(|Plain(word)| word.into()))
        .collect::<Result<_, String>>()
        .map_err(serde::de::Error::custom)
}

/// What to say of text that is no TOML; in plainer words than the parser's where people slip often.
fn syntax(error: &toml::de::Error, text: &str) -> String {
    let rest = error
        .span()
        .and_then(|span| text.get(span.start..)?.lines().next())
        .unwrap_or_default();
    match error.message() {
        "duplicate key" => "is set twice in this file (leave one out)".to_owned(),
        message if message.starts_with("string values must be quoted") => match rest.trim() {
            "" => "the value is missing (write it after the `=`, or leave the line out)".to_owned(),
            word => format!("text needs quotes (write it like \"{word}\")"),
        },
        message => format!("{message} (the file is TOML; write lines like workers = 8)"),
    }
}

/// What to say of a key that is no setting's.
fn unknown(key: &str, table: bool) -> String {
    if key == "config" {
        return "a file cannot name another one (leave the line out)".to_owned();
    }
    let names: Vec<_> = SETTINGS
        .iter()
        .map(|setting| setting.name())
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
