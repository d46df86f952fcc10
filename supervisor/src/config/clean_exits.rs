//! Which ends of a worker count as clean: exit statuses and signals.

use super::reader::{ConfigValue, InvalidValue, invalid};
use super::toml_text::quoted;
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::fmt;

/// The most entries; a list that names all statuses and signals is shorter.
const MOST: usize = 512;

/// Ends that are no failure of a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CleanExits {
    statuses: BTreeSet<u8>,
    signals: BTreeSet<Signal>,
}

impl CleanExits {
    /// Whether to exit with this status is clean.
    pub fn has_status(&self, status: i32) -> bool {
        u8::try_from(status).is_ok_and(|status| self.statuses.contains(&status))
    }

    /// Whether to be killed by the signal of this number is clean.
    pub fn has_signal(&self, signal: i32) -> bool {
        Signal::try_from(signal).is_ok_and(|signal| self.signals.contains(&signal))
    }
}

impl ConfigValue for CleanExits {
    type Resolved = Self;
    const EXAMPLE: &'static str = "\"0 TERM 30\"";

    fn read(text: &str) -> Result<Self, InvalidValue> {
        let mut clean = Self::default();
        for word in text
            .split([' ', ',', '\t'])
            .filter(|word| !word.is_empty())
            .take(MOST)
        {
            if word.bytes().all(|byte| byte.is_ascii_digit()) {
                let status = word
                    .parse()
                    .map_err(|_| invalid!("{word} is no exit status (0 to 255)"))?;
                clean.statuses.insert(status);
                continue;
            }
            let name = word.to_ascii_uppercase();
            let name = if name.starts_with("SIG") {
                name
            } else {
                format!("SIG{name}")
            };
            let signal = name.parse().map_err(|_| {
                invalid!(
                    "`{word}` is neither an exit status nor a signal (write it like 0 TERM 30)"
                )
            })?;
            if signal == Signal::SIGKILL {
                return Err(invalid!(
                    "KILL is never clean: it is what ends a worker that had to be killed"
                ));
            }
            clean.signals.insert(signal);
        }
        if clean == Self::default() {
            return Err(invalid!("names nothing (write it like 0 TERM 30)"));
        }
        Ok(clean)
    }

    fn write(value: &Self) -> String {
        quoted(value)
    }
}

impl fmt::Display for CleanExits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let statuses = self.statuses.iter().map(ToString::to_string);
        let signals = self
            .signals
            .iter()
            .map(|signal| signal.as_str().trim_start_matches("SIG").to_owned());
        f.write_str(&statuses.chain(signals).collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_and_signals_are_told_apart() {
        let clean = CleanExits::read("0 30, TERM sigint").expect("a list");
        assert!(
            clean.has_status(0)
                && clean.has_status(30)
                && !clean.has_status(15)
                && !clean.has_status(-1)
        );
        assert!(
            clean.has_signal(15)
                && clean.has_signal(2)
                && !clean.has_signal(9)
                && !clean.has_signal(40)
        );
        assert_eq!(clean.to_string(), "0 30 INT TERM");
        assert_eq!(CleanExits::read(&clean.to_string()), Ok(clean));
    }

    #[test]
    fn what_is_neither_is_refused() {
        for text in ["", " ", "256", "-1", "HELLO", "0 KILL", "1.5"] {
            assert!(CleanExits::read(text).is_err(), "{text}");
        }
    }
}
