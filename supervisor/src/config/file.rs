//! The configuration file: TOML, in which every problem is found at once and shown with its line.

use super::error::{File, Place, Problem};
use super::options::{Options, SETTINGS, setting};
use super::source::{Layer, Origin};
use super::words::Plain;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use toml::de::{DeTable, ValueDeserializer};

/// A configuration file that is longer was not meant to be one.
const LONGEST: u64 = 1024 * 1024;

/// Reads a file's text.
pub(super) fn read(path: &Path) -> Result<Arc<File>, Problem> {
    let file = |text| Arc::new(File { path: path.to_owned(), text });
    let problem = |message, span| Problem {
        place: Place::File { file: file(String::new()), key: None, span },
        message,
    };
    let text = contents(path).map_err(|message| problem(message, None))?;
    String::from_utf8(text).map(file).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|byte| *byte == b'\n').count();
        problem(format!("line {line} is not UTF-8 (save the file as UTF-8)"), None)
    })
}

fn contents(path: &Path) -> Result<Vec<u8>, String> {
    // A pipe without a writer would otherwise hold up a reload for ever.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path);
    let file = opened.map_err(|error| format!("cannot be opened: {}", lower(&error)))?;
    let metadata = file.metadata().map_err(|error| format!("cannot be read: {}", lower(&error)))?;
    if !metadata.is_file() {
        return Err("is no regular file, and could not be read again at a reload (name a file)".to_owned());
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
pub(super) fn lower(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_ascii_lowercase()
}

/// Reads the settings in a file. What is wrong goes to `problems`; the rest is in the layer.
pub(super) fn parse(file: &Arc<File>, problems: &mut Vec<Problem>) -> Layer {
    let place =
        |key: Option<&str>, span| Place::File { file: Arc::clone(file), key: key.map(str::to_owned), span };
    let mut options = Options::default();
    let mut program = Vec::new();
    let mut spans = BTreeMap::new();
    let mut found: Vec<(Range<usize>, Problem)> = Vec::new();
    match DeTable::parse(&file.text) {
        Err(error) => {
            let span = error.span();
            let message = error.message().to_owned();
            found.push((span.clone().unwrap_or_default(), Problem { place: place(None, span), message }));
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
                    let message = unknown(&key);
                    found.push((key_span.clone(), Problem { place: place(None, Some(key_span)), message }));
                    continue;
                };
                if let Err(error) = result {
                    let span = error.span().unwrap_or_else(|| value_span.clone());
                    let message = error.message().to_owned();
                    found.push((span.clone(), Problem { place: place(Some(&key), Some(span)), message }));
                }
                spans.insert(key.into_owned(), value_span);
            }
        }
    }
    found.sort_by_key(|(span, _)| span.start);
    problems.extend(found.into_iter().map(|(_, problem)| problem));
    Layer { origin: Origin::File { file: Arc::clone(file), spans }, options, program }
}

/// Reads `command`.
fn words(value: ValueDeserializer<'_>) -> Result<Vec<OsString>, toml::de::Error> {
    let wrong = || serde::de::Error::custom("is no list of words; write it like [\"python3\", \"app.py\"]");
    let words = Vec::<String>::deserialize(value).map_err(|_| -> toml::de::Error { wrong() })?;
    if words.first().is_none_or(String::is_empty) {
        return Err(wrong());
    }
    words
        .into_iter()
        .map(|word| <Plain as super::words::Word>::read(&word).map(|Plain(word)| word.into()))
        .collect::<Result<_, String>>()
        .map_err(serde::de::Error::custom)
}

fn unknown(key: &str) -> String {
    let names: Vec<_> = SETTINGS.iter().map(|setting| setting.name()).chain(["command".to_owned()]).collect();
    let shown = key.escape_debug();
    if key == "config" {
        return "the file cannot name another one (leave the line out)".to_owned();
    }
    match nearest(key, names.iter().map(String::as_str)) {
        Some(near) => format!("unknown setting `{shown}` (did you mean `{near}`?)"),
        None => {
            format!("unknown setting `{shown}` (the settings are the options of --help, without the dashes)")
        }
    }
}

/// The candidate that a slip of the hand may have turned into `word`.
pub(super) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase().replace('_', "-");
    candidates
        .map(|candidate| (distance(&word, &candidate.to_ascii_lowercase().replace('_', "-")), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).clamp(1, 3))
        .map(|(_, candidate)| candidate)
}

fn distance(one: &str, other: &str) -> usize {
    strsim::osa_distance(one, other)
}
