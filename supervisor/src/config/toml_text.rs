//! How text is quoted in TOML.

use std::fmt::{Display, Write};

/// Returns a TOML string.
pub(crate) fn quoted(text: impl Display) -> String {
    let mut quoted = String::from("\"");
    for c in text.to_string().chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                write!(quoted, "\\u{:04X}", u32::from(c)).expect("a string takes every character");
            }
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

/// Returns a TOML list of strings.
pub(crate) fn quoted_list<T: Display>(texts: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<_> = texts.into_iter().map(quoted).collect();
    format!("[{}]", texts.join(", "))
}
