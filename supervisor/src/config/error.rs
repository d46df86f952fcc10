//! What is wrong with a configuration, and where it was written.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// The status with which a program exits that was configured wrongly.
pub(crate) const USAGE: i32 = 2;

/// Everything that is wrong with a configuration. Displays one problem after the other, each with
/// its place and its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Never empty.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it was written.
    pub place: Place,
    /// What is wrong with it, and the remedy.
    pub message: String,
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On the command line, as this option or operand.
    Flag(String),
    /// In the environment, as this variable.
    Variable(String),
    /// In the file.
    File {
        /// The file.
        file: Arc<File>,
        /// The key, when the place belongs to one.
        key: Option<String>,
        /// The bytes in question, when they are known.
        span: Option<Range<usize>>,
    },
    /// Nowhere: it is the default of this setting.
    Preset(String),
}

/// A configuration file, as it was read.
#[derive(Debug, PartialEq, Eq)]
pub struct File {
    /// Its path.
    pub path: PathBuf,
    /// Its text; empty when it could not be read.
    pub text: String,
}

impl File {
    /// The line and the column (both from 1) of a byte, and the line's text.
    fn position(&self, offset: usize) -> (usize, usize, &str) {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let (before, after) = self.text.split_at(offset);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let end = offset + after.find('\n').unwrap_or(after.len());
        let line = before.matches('\n').count() + 1;
        let column = self.text[start..offset].chars().count() + 1;
        (line, column, self.text[start..end].trim_end_matches('\r'))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) | Self::Variable(name) | Self::Preset(name) => f.write_str(name),
            Self::File { file, key, span } => {
                write!(f, "{}", file.path.display())?;
                if let Some(span) = span {
                    let (line, column, _) = file.position(span.start);
                    write!(f, ":{line}:{column}")?;
                }
                key.as_ref()
                    .map_or(Ok(()), |key| write!(f, ": {}", printable(key)))
            }
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, printable(&self.message))?;
        let Place::File {
            file,
            span: Some(span),
            ..
        } = &self.place
        else {
            return Ok(());
        };
        let (line, column, text) = file.position(span.start);
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        // A tab is shown as one blank, or the caret would stand elsewhere.
        let text = text.replace(|c: char| c.is_control(), " ");
        let marked = file
            .text
            .get(span.clone())
            .and_then(|marked| marked.lines().next());
        let carets = marked.map_or(1, |marked| marked.chars().count().max(1));
        write!(
            f,
            "\n{margin} |\n{number} | {text}\n{margin} | {}{}",
            " ".repeat(column - 1),
            "^".repeat(carets)
        )
    }
}

/// The text with control characters escaped: what a user wrote into a file must not steer a
/// terminal or make a second line in the log.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

impl ConfigError {
    /// All problems in one line, without the lines of the file: for the log and for a reload's
    /// verdict.
    pub fn brief(&self) -> String {
        let brief =
            |problem: &Problem| format!("{}: {}", problem.place, printable(&problem.message));
        self.problems
            .iter()
            .map(brief)
            .collect::<Vec<_>>()
            .join("; ")
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
