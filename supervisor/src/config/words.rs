//! How a value is written: one reader for each kind of value, shared by the command line, the environment and
//! the file.
//!
//! A reader says what is wrong and how to write it right. It does not know which setting it reads for; whoever
//! asked puts the setting's name in front.

use super::reader::{Typed, Word};
use super::{AccessTarget, Control, LogFormat, Surge};
use log::LevelFilter;
use nix::sys::signal::Signal;
use prefork_core::Share;
use prefork_protocol::access_log::{Format, FormatError};
use prefork_protocol::settings::{Accept, ClassName, SettingError};
use prefork_protocol::{Slot, environment};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Any text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plain(pub(crate) String);

impl Word for Plain {
    const LIKE: &'static str = "\"text\"";

    fn read(text: &str) -> Result<Self, String> {
        if text.contains('\0') {
            return Err("holds a NUL byte, which no program can be given".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

/// The name of a server: a part of a file's name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ServerName(pub(crate) String);

impl Word for ServerName {
    const LIKE: &'static str = "\"shop\"";

    fn read(text: &str) -> Result<Self, String> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if text.is_empty()
            || text.len() > 40
            || !text.chars().all(fits)
            || text.starts_with(['.', '-'])
        {
            return Err(format!(
                "`{text}` cannot name a server (write up to 40 letters, digits, dashes, dots and underscores, a letter first)"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Whole<const MIN: u32, const MAX: u32>(pub(crate) u32);

impl<const MIN: u32, const MAX: u32> Word for Whole<MIN, MAX> {
    const LIKE: &'static str = "8";
    const NUMBER: bool = true;

    fn read(text: &str) -> Result<Self, String> {
        let number: i128 = text
            .parse()
            .map_err(|_| format!("`{text}` is no whole number (write one from {MIN} to {MAX})"))?;
        u32::try_from(number)
            .ok()
            .filter(|number| (MIN..=MAX).contains(number))
            .map(Self)
            .ok_or_else(|| format!("{number} is out of range ({MIN} to {MAX})"))
    }
}

/// A duration from `MIN` to `MAX` milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Span<const MIN: u64, const MAX: u64>(pub(crate) Duration);

/// A day, in milliseconds: no timeout is longer.
pub(crate) const DAY: u64 = 24 * 60 * 60 * 1000;

/// A year, in milliseconds: no worker gets older.
pub(crate) const YEAR: u64 = 365 * DAY;

impl<const MIN: u64, const MAX: u64> Word for Span<MIN, MAX> {
    const LIKE: &'static str = "\"30s\"";

    fn read(text: &str) -> Result<Self, String> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!(
                "`{text}` has no unit (write it like {text}s or {text}ms)"
            ));
        }
        let span = humantime::parse_duration(text)
            .map_err(|_| format!("`{text}` is no duration (write it like 30s, 500ms or 1m 30s)"))?;
        let (min, max) = (Duration::from_millis(MIN), Duration::from_millis(MAX));
        if span < min || span > max {
            let [min, max] = [min, max].map(humantime::format_duration);
            return Err(format!("{text} is out of range ({min} to {max})"));
        }
        Ok(Self(span))
    }
}

/// A number of bytes from `MIN` to `MAX`. `KB`, `MB`, `GB` are decimal; `KiB`, `MiB`, `GiB` are binary.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Size<const MIN: u64, const MAX: u64>(pub(crate) u64);

impl<const MIN: u64, const MAX: u64> Word for Size<MIN, MAX> {
    const LIKE: &'static str = "\"64KiB\"";

    fn read(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no size (write it like 64KiB, 10MB or 65536)");
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let unit = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" => 1_000,
            "kib" => 1 << 10,
            "m" | "mb" => 1_000_000,
            "mib" => 1 << 20,
            "g" | "gb" => 1_000_000_000,
            "gib" => 1 << 30,
            _ => return Err(wrong()),
        };
        number
            .checked_mul(unit)
            .filter(|bytes| (MIN..=MAX).contains(bytes))
            .map(Self)
            .ok_or_else(|| {
                format!(
                    "{text} is out of range ({} to {})",
                    binary(MIN),
                    binary(MAX)
                )
            })
    }
}

/// A size in the largest binary unit that divides it.
pub(crate) fn binary(bytes: u64) -> String {
    [(30, "GiB"), (20, "MiB"), (10, "KiB")]
        .into_iter()
        .find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift)
        .map_or_else(
            || format!("{bytes}"),
            |(shift, unit)| format!("{}{unit}", bytes >> shift),
        )
}

impl Word for Share {
    const LIKE: &'static str = "\"10%\"";

    fn read(text: &str) -> Result<Self, String> {
        let share = match text.strip_suffix('%') {
            Some(percent) => percent
                .parse()
                .ok()
                .filter(|it| (1..=100).contains(it))
                .map(Self::Percent),
            None => text
                .parse()
                .ok()
                .filter(|it| (1..=Slot::MAX).contains(it))
                .map(Self::Count),
        };
        share.ok_or_else(|| {
            format!(
                "`{text}` is no number of slots (write one from 1 to {}, or a share from 1% to 100%)",
                Slot::MAX
            )
        })
    }
}

/// A value that can be switched off.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct OrOff<T>(pub(crate) Option<T>);

impl<T: Word> Word for OrOff<T> {
    const LIKE: &'static str = T::LIKE;

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "off" | "0" | "0s" | "0ms" => Ok(Self(None)),
            _ => T::read(text)
                .map(|value| Self(Some(value)))
                .map_err(|problem| format!("{problem}; `off` switches it off")),
        }
    }
}

impl Word for ClassName {
    const LIKE: &'static str = "\"async\"";

    fn read(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|error: SettingError| error.to_string())
    }
}

impl Word for Accept {
    const LIKE: &'static str = "\"steal\"";

    fn read(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|error: SettingError| error.to_string())
    }
}

impl Word for Surge {
    const LIKE: &'static str = "\"all\" or 1";

    fn read(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        text.parse::<u16>()
            .ok()
            .filter(|count| *count <= prefork_protocol::Slot::MAX)
            .and_then(NonZeroU16::new)
            .map(Self::Count)
            .ok_or_else(|| {
                format!(
                    "`{text}` is neither `all` nor a number from 1 to {}",
                    prefork_protocol::Slot::MAX
                )
            })
    }
}

/// The signal that asks a foreign worker to drain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct StopSignal(pub(crate) Signal);

impl Word for StopSignal {
    const LIKE: &'static str = "\"TERM\"";

    fn read(text: &str) -> Result<Self, String> {
        let name = text.to_ascii_uppercase();
        let name = name.strip_prefix("SIG").unwrap_or(&name);
        match Signal::from_str(&format!("SIG{name}")) {
            Ok(signal @ (Signal::SIGKILL | Signal::SIGSTOP)) => Err(format!(
                "{signal} cannot be caught, so no worker could drain (choose TERM, QUIT or INT; KILL follows at graceful-timeout by itself)"
            )),
            Ok(signal) => Ok(Self(signal)),
            Err(_) => Err(format!(
                "`{text}` is no signal (write a name, like TERM, QUIT or INT)"
            )),
        }
    }
}

impl Word for LevelFilter {
    const LIKE: &'static str = "\"info\"";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| {
            format!("`{text}` is no log level (choose off, error, warn, info, debug or trace)")
        })
    }
}

impl Word for LogFormat {
    const LIKE: &'static str = "\"text\"";

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("`{text}` is no log format (choose text or json)")),
        }
    }
}

/// Where the log goes: a file, or stderr for `-`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LogFile(pub(crate) Option<PathBuf>);

impl Word for LogFile {
    const LIKE: &'static str = "\"/var/log/prefork.log\"";

    fn read(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self(None));
        }
        path(text).map(|path| Self(Some(path)))
    }
}

impl Word for AccessTarget {
    const LIKE: &'static str = "\"/var/log/access.log\"";

    fn read(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Stdout);
        }
        path(text).map(Self::File)
    }
}

impl Word for Format {
    const LIKE: &'static str = "\"combined\"";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: FormatError| error.to_string())
    }
}

/// A path to something that is there.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Place(pub(crate) PathBuf);

impl Word for Place {
    const LIKE: &'static str = "\"/srv/app\"";

    fn read(text: &str) -> Result<Self, String> {
        path(text).map(Self)
    }
}

impl Word for Control {
    const LIKE: &'static str = "\"/run/prefork/prefork.sock\"";

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "default" => Ok(Self::Default),
            _ => socket_path(text).map(Self::Path),
        }
    }
}

/// One variable of the workers' environment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Variable {
    pub(crate) key: String,
    pub(crate) value: String,
}

impl Word for Variable {
    const LIKE: &'static str = "KEY=VALUE";

    fn read(text: &str) -> Result<Self, String> {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| format!("`{text}` sets no variable (write it like KEY=VALUE)"))?;
        Self::entry(key, value)
    }

    fn entry(key: &str, value: &str) -> Result<Self, String> {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(format!(
                "`{}` is no name for a variable",
                key.escape_debug()
            ));
        }
        if environment::ALL.contains(&key) {
            return Err(format!(
                "{key} is set for each worker by the supervisor itself (choose another name)"
            ));
        }
        Ok(Self {
            key: key.to_owned(),
            value: value.to_owned(),
        })
    }

    fn over(upper: Vec<Typed<Self>>, mut lower: Vec<Typed<Self>>) -> Vec<Typed<Self>> {
        lower.extend(upper);
        lower
    }
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err(format!("`{}` is no path", text.escape_debug()));
    }
    Ok(PathBuf::from(text))
}

/// The longest path that fits into a Unix socket's address, beside its closing NUL.
const LONGEST_SOCKET_PATH: usize = 107;

/// A path that a Unix socket can have.
pub(crate) fn socket_path(text: &str) -> Result<PathBuf, String> {
    if text.len() > LONGEST_SOCKET_PATH {
        return Err(format!(
            "{text} is too long for a Unix socket ({} bytes; at most {LONGEST_SOCKET_PATH})",
            text.len()
        ));
    }
    if text.ends_with('/') {
        return Err(format!("{text} is a directory (name the socket in it)"));
    }
    path(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal_or_binary_by_their_unit() {
        let read = |text| Size::<0, { u64::MAX }>::read(text).map(|size| size.0);
        for (text, bytes) in [
            ("0", 0),
            ("65536", 65_536),
            ("10B", 10),
            ("10k", 10_000),
            ("10KB", 10_000),
            ("10 kB", 10_000),
            ("10KiB", 10_240),
            ("10MB", 10_000_000),
            ("10MiB", 10_485_760),
            ("2GB", 2_000_000_000),
            ("2gib", 2_147_483_648),
        ] {
            assert_eq!(read(text), Ok(bytes), "{text}");
        }
        for text in ["", "MB", "-1", "1.5MB", "1XB", "0x10", "10MBs"] {
            assert_eq!(
                read(text),
                Err(format!(
                    "`{text}` is no size (write it like 64KiB, 10MB or 65536)"
                ))
            );
        }
        let message = "18446744073709551615KB is out of range (0 to 18446744073709551615)";
        assert_eq!(read("18446744073709551615KB"), Err(message.to_owned()));
    }

    #[test]
    fn durations_need_a_unit() {
        let read = |text| Span::<0, DAY>::read(text).map(|span| span.0.as_millis());
        for (text, millis) in [
            ("0s", 0),
            ("500ms", 500),
            ("30s", 30_000),
            ("1m 30s", 90_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(read(text), Ok(millis), "{text}");
        }
        for text in ["", "s", "30x", "-1s", "nan", "99999999999999999999s"] {
            let message = format!("`{text}` is no duration (write it like 30s, 500ms or 1m 30s)");
            assert_eq!(read(text), Err(message));
        }
        assert_eq!(
            read("30"),
            Err("`30` has no unit (write it like 30s or 30ms)".to_owned())
        );
        assert_eq!(
            read("25h"),
            Err("25h is out of range (0s to 1day)".to_owned())
        );
    }

    #[test]
    fn what_can_be_off_is_off_in_each_spelling() {
        for text in ["off", "0", "0s"] {
            assert_eq!(OrOff::<Span<1, DAY>>::read(text), Ok(OrOff(None)));
        }
    }

    #[test]
    fn a_signal_is_read_with_and_without_sig_in_any_case() {
        for text in ["TERM", "SIGTERM", "term", "sigterm"] {
            assert_eq!(StopSignal::read(text), Ok(StopSignal(Signal::SIGTERM)));
        }
    }
}
