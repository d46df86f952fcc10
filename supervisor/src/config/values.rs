//! Kinds of values: how each is read and written, on the command line, in the environment and in
//! the file alike.
//!
//! A reader says what is wrong and how to write it right. It does not know which option it reads
//! for; the caller puts the option's name in front.

use super::reader::{ConfigValue, InvalidValue, Parsed, Text, invalid, keywords};
use super::toml_text::quoted;
use super::types::{AccessTarget, Control, KillMode, LogFormat, Surge, WorkerStderr};
use crate::logging::output::StandardStream;
use log::LevelFilter;
use nix::sys::signal::Signal;
use prefork_core::Share;
use prefork_protocol::access_log::Format;
use prefork_protocol::settings::{Accept, ClassName};
use prefork_protocol::{Slot, environment};
use std::fmt::{Debug, Display};
use std::marker::PhantomData;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// The name of a server: a part of a file's name.
#[derive(Debug, Clone)]
pub(crate) struct ServerName;

impl ConfigValue for ServerName {
    type Resolved = String;
    const EXAMPLE: &'static str = "\"shop\"";

    fn read(text: &str) -> Result<String, InvalidValue> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if text.is_empty()
            || text.len() > 40
            || !text.chars().all(fits)
            || text.starts_with(['.', '-'])
        {
            return Err(invalid!(
                "`{text}` cannot name a server (write up to 40 letters, digits, dashes, dots and \
                 underscores, a letter first)"
            ));
        }
        Ok(text.to_owned())
    }

    fn write(value: &String) -> String {
        quoted(value)
    }
}

/// A whole number from `MIN` to `MAX`, held as `N`, in which both fit.
#[derive(Debug, Clone)]
pub(crate) struct Whole<const MIN: u32, const MAX: u32, N = u32>(PhantomData<N>);

impl<const MIN: u32, const MAX: u32, N> ConfigValue for Whole<MIN, MAX, N>
where
    N: TryFrom<u32> + Copy + Display + Debug + PartialEq + Send + Sync + 'static,
{
    type Resolved = N;
    const EXAMPLE: &'static str = "8";
    const NUMBER: bool = true;

    fn read(text: &str) -> Result<N, InvalidValue> {
        let number: i128 = text
            .parse()
            .map_err(|_| invalid!("`{text}` is no whole number (write one from {MIN} to {MAX})"))?;
        u32::try_from(number)
            .ok()
            .filter(|number| (MIN..=MAX).contains(number))
            .and_then(|number| N::try_from(number).ok())
            .ok_or_else(|| invalid!("{number} is out of range ({MIN} to {MAX})"))
    }

    fn write(value: &N) -> String {
        value.to_string()
    }
}

/// A duration from `MIN` to `MAX` milliseconds.
#[derive(Debug, Clone)]
pub(crate) struct Time<const MIN: u64, const MAX: u64>;

/// A day, in milliseconds: no timeout is longer.
pub(crate) const DAY: u64 = 24 * 60 * 60 * 1000;

/// A year, in milliseconds: no worker gets older.
pub(crate) const YEAR: u64 = 365 * DAY;

impl<const MIN: u64, const MAX: u64> ConfigValue for Time<MIN, MAX> {
    type Resolved = Duration;
    const EXAMPLE: &'static str = "\"30s\"";

    fn read(text: &str) -> Result<Duration, InvalidValue> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid!(
                "`{text}` has no unit (write it like {text}s or {text}ms)"
            ));
        }
        let time = humantime::parse_duration(text).map_err(|_| {
            invalid!("`{text}` is no duration (write it like 30s, 500ms or 1m 30s)")
        })?;
        let (min, max) = (Duration::from_millis(MIN), Duration::from_millis(MAX));
        if time < min || time > max {
            let [min, max] = [min, max].map(humantime::format_duration);
            return Err(invalid!("{text} is out of range ({min} to {max})"));
        }
        Ok(time)
    }

    fn write(value: &Duration) -> String {
        quoted(humantime::format_duration(*value))
    }
}

/// A number of bytes from `MIN` to `MAX`. `KB`, `MB`, `GB` are decimal; `KiB`, `MiB`, `GiB` are
/// binary.
#[derive(Debug, Clone)]
pub(crate) struct Size<const MIN: u64, const MAX: u64>;

impl<const MIN: u64, const MAX: u64> ConfigValue for Size<MIN, MAX> {
    type Resolved = u64;
    const EXAMPLE: &'static str = "\"64KiB\"";

    fn read(text: &str) -> Result<u64, InvalidValue> {
        let wrong = || invalid!("`{text}` is no size (write it like 64KiB, 10MB or 65536)");
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
            .ok_or_else(|| {
                let [min, max] = [MIN, MAX].map(binary);
                invalid!("{text} is out of range ({min} to {max})")
            })
    }

    fn write(value: &u64) -> String {
        quoted(binary(*value))
    }
}

/// Returns a size in the largest binary unit that divides it.
fn binary(bytes: u64) -> String {
    [(30, "GiB"), (20, "MiB"), (10, "KiB")]
        .into_iter()
        .find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift)
        .map_or_else(
            || format!("{bytes}"),
            |(shift, unit)| format!("{}{unit}", bytes >> shift),
        )
}

impl ConfigValue for Share {
    type Resolved = Self;
    const EXAMPLE: &'static str = "\"10%\"";

    fn read(text: &str) -> Result<Self, InvalidValue> {
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
            invalid!(
                "`{text}` is no number of slots (write one from 1 to {}, or a share from 1% to \
                 100%)",
                Slot::MAX
            )
        })
    }

    fn write(value: &Self) -> String {
        quoted(value)
    }
}

/// A value that can be switched off.
#[derive(Debug, Clone)]
pub(crate) struct OrOff<T>(PhantomData<T>);

impl<T: ConfigValue> ConfigValue for OrOff<T> {
    type Resolved = Option<T::Resolved>;
    const EXAMPLE: &'static str = T::EXAMPLE;

    fn read(text: &str) -> Result<Option<T::Resolved>, InvalidValue> {
        match text {
            "off" | "0" | "0s" | "0ms" => Ok(None),
            _ => T::read(text)
                .map(Some)
                .map_err(|problem| invalid!("{problem}; `off` switches it off")),
        }
    }

    fn write(value: &Option<T::Resolved>) -> String {
        value.as_ref().map_or_else(|| quoted("off"), T::write)
    }
}

/// Implements [`ConfigValue`] by `FromStr` and `Display`.
macro_rules! displayed {
    ($type:ty, $example:literal, $choices:expr) => {
        impl ConfigValue for $type {
            type Resolved = Self;
            const EXAMPLE: &'static str = $example;
            const CHOICES: &'static [&'static str] = &$choices;

            fn read(text: &str) -> Result<Self, InvalidValue> {
                text.parse::<Self>().map_err(|error| invalid!("{error}"))
            }

            fn write(value: &Self) -> String {
                quoted(value)
            }
        }
    };
}

displayed!(ClassName, "\"async\"", ["sync", "threads", "async"]);
displayed!(Accept, "\"steal\"", ["own", "steal", "shared"]);
displayed!(Format, "\"combined\"", ["combined", "json"]);
keywords!(LogFormat { Text = "text", Json = "json" }, "is no log format (choose text or json)");
keywords!(
    KillMode { Mixed = "mixed", ControlGroup = "control-group" },
    "is no way to stop processes (choose mixed or control-group)"
);
keywords!(
    WorkerStderr { Capture = "capture", Inherit = "inherit" },
    "is no way for standard error (choose capture or inherit)"
);

impl ConfigValue for Surge {
    type Resolved = Self;
    const EXAMPLE: &'static str = "\"all\" or 1";

    fn read(text: &str) -> Result<Self, InvalidValue> {
        if text == "all" {
            return Ok(Self::All);
        }
        text.parse::<u16>()
            .ok()
            .filter(|count| *count <= Slot::MAX)
            .and_then(NonZeroU16::new)
            .map(Self::Count)
            .ok_or_else(|| {
                invalid!(
                    "`{text}` is neither `all` nor a number from 1 to {}",
                    Slot::MAX
                )
            })
    }

    fn write(value: &Self) -> String {
        match value {
            Self::All => quoted("all"),
            Self::Count(count) => count.to_string(),
        }
    }
}

/// A duration, or as long as it takes.
#[derive(Debug, Clone)]
pub(crate) struct OrNever;

/// What `off` means: longer than any server runs.
pub(crate) const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

impl ConfigValue for OrNever {
    type Resolved = Duration;
    const EXAMPLE: &'static str = "\"30s\"";

    fn read(text: &str) -> Result<Duration, InvalidValue> {
        match text {
            "off" => Ok(NEVER),
            _ => Time::<0, DAY>::read(text)
                .map_err(|problem| invalid!("{problem}; `off` waits as long as it takes")),
        }
    }

    fn write(value: &Duration) -> String {
        if *value >= NEVER {
            quoted("off")
        } else {
            Time::<0, DAY>::write(value)
        }
    }
}

/// The signal that asks an external program to drain.
#[derive(Debug, Clone)]
pub(crate) struct StopSignal;

impl ConfigValue for StopSignal {
    type Resolved = Signal;
    const EXAMPLE: &'static str = "\"TERM\"";
    const CHOICES: &'static [&'static str] = &["TERM", "QUIT", "INT", "HUP", "USR1", "USR2"];

    fn read(text: &str) -> Result<Signal, InvalidValue> {
        let name = text.to_ascii_uppercase();
        let name = name.strip_prefix("SIG").unwrap_or(&name);
        match Signal::from_str(&format!("SIG{name}")) {
            Ok(signal @ (Signal::SIGKILL | Signal::SIGSTOP)) => Err(invalid!(
                "{signal} cannot be caught, so no worker could drain (choose TERM, QUIT or INT; \
                 KILL follows at graceful-timeout by itself)"
            )),
            Ok(signal) => Ok(signal),
            Err(_) => Err(invalid!(
                "`{text}` is no signal (write a name, like TERM, QUIT or INT)"
            )),
        }
    }

    fn write(value: &Signal) -> String {
        quoted(value.as_str().trim_start_matches("SIG"))
    }
}

impl ConfigValue for LevelFilter {
    type Resolved = Self;
    const EXAMPLE: &'static str = "\"info\"";
    const CHOICES: &'static [&'static str] = &["off", "error", "warn", "info", "debug", "trace"];

    fn read(text: &str) -> Result<Self, InvalidValue> {
        text.parse().map_err(|_| {
            invalid!("`{text}` is no log level (choose off, error, warn, info, debug or trace)")
        })
    }

    fn write(value: &Self) -> String {
        quoted(value.as_str().to_ascii_lowercase())
    }
}

/// Where the log goes: a file, or stderr for `-`.
#[derive(Debug, Clone)]
pub(crate) struct LogFile;

impl ConfigValue for LogFile {
    type Resolved = Option<PathBuf>;
    const EXAMPLE: &'static str = "\"/var/log/prefork.log\"";

    fn read(text: &str) -> Result<Option<PathBuf>, InvalidValue> {
        if text == "-" {
            return Ok(None);
        }
        let file = path(text)?;
        Ok((StandardStream::named_by(&file) != Some(StandardStream::Stderr)).then_some(file))
    }

    fn write(value: &Option<PathBuf>) -> String {
        value
            .as_ref()
            .map_or_else(|| quoted("-"), |path| quoted(path.display()))
    }
}

impl ConfigValue for AccessTarget {
    type Resolved = Self;
    const EXAMPLE: &'static str = "\"/var/log/access.log\"";

    fn read(text: &str) -> Result<Self, InvalidValue> {
        if text == "-" {
            return Ok(Self::Stdout);
        }
        let file = path(text)?;
        Ok(match StandardStream::named_by(&file) {
            Some(StandardStream::Stdout) => Self::Stdout,
            Some(StandardStream::Stderr) | None => Self::File(file),
        })
    }

    fn write(value: &Self) -> String {
        match value {
            Self::Stdout => quoted("-"),
            Self::File(path) => quoted(path.display()),
        }
    }
}

/// A path, whether or not anything is there.
#[derive(Debug, Clone)]
pub(crate) struct FilePath;

impl ConfigValue for FilePath {
    type Resolved = PathBuf;
    const EXAMPLE: &'static str = "\"/srv/app\"";

    fn read(text: &str) -> Result<PathBuf, InvalidValue> {
        path(text)
    }

    fn write(value: &PathBuf) -> String {
        quoted(value.display())
    }
}

impl ConfigValue for Control {
    type Resolved = Self;
    const EXAMPLE: &'static str = "\"/run/prefork/prefork.sock\"";

    fn read(text: &str) -> Result<Self, InvalidValue> {
        match text {
            "off" => Ok(Self::Off),
            "default" => Ok(Self::Default),
            _ => socket_path(text).map(Self::Path),
        }
    }

    fn write(value: &Self) -> String {
        match value {
            Self::Default => quoted("default"),
            Self::Path(path) => quoted(path.display()),
            Self::Off => quoted("off"),
        }
    }
}

/// One variable of the workers' environment: its name and its value.
#[derive(Debug, Clone)]
pub(crate) struct Variable;

impl ConfigValue for Variable {
    type Resolved = (String, String);
    const EXAMPLE: &'static str = "KEY=VALUE";

    fn read(text: &str) -> Result<Self::Resolved, InvalidValue> {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| invalid!("`{text}` sets no variable (write it like KEY=VALUE)"))?;
        Self::entry(key, value)
    }

    fn write((key, value): &Self::Resolved) -> String {
        quoted(format_args!("{key}={value}"))
    }

    fn entry(key: &str, value: &str) -> Result<Self::Resolved, InvalidValue> {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid!(
                "`{}` is no name for a variable",
                key.escape_debug()
            ));
        }
        if environment::ALL.contains(&key) {
            return Err(invalid!(
                "{key} is set for each worker by the supervisor itself (choose another name)"
            ));
        }
        Ok((key.to_owned(), value.to_owned()))
    }

    fn over(upper: Vec<Parsed<Self>>, mut lower: Vec<Parsed<Self>>) -> Vec<Parsed<Self>> {
        lower.extend(upper);
        lower
    }
}

fn path(text: &str) -> Result<PathBuf, InvalidValue> {
    Text::read(text)
        .ok()
        .filter(|text| !text.is_empty())
        .map(PathBuf::from)
        .ok_or_else(|| invalid!("`{}` is no path", text.escape_debug()))
}

/// The longest path that fits into a Unix socket's address, beside its closing NUL.
const LONGEST_SOCKET_PATH: usize = 107;

/// Reads a path that a Unix socket can have.
pub(crate) fn socket_path(text: &str) -> Result<PathBuf, InvalidValue> {
    if text.len() > LONGEST_SOCKET_PATH {
        return Err(invalid!(
            "{text} is too long for a Unix socket ({} bytes; at most {LONGEST_SOCKET_PATH})",
            text.len()
        ));
    }
    if text.ends_with('/') {
        return Err(invalid!("{text} is a directory (name the socket in it)"));
    }
    path(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal_or_binary_by_their_unit() {
        let read = |text| Size::<0, { u64::MAX }>::read(text);
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
                Err(invalid!(
                    "`{text}` is no size (write it like 64KiB, 10MB or 65536)"
                ))
            );
        }
        let message = "18446744073709551615KB is out of range (0 to 18446744073709551615)";
        assert_eq!(read("18446744073709551615KB"), Err(invalid!("{message}")));
    }

    #[test]
    fn durations_need_a_unit() {
        let read = |text| Time::<0, DAY>::read(text).map(|time| time.as_millis());
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
            assert_eq!(read(text), Err(invalid!("{message}")));
        }
        assert_eq!(
            read("30"),
            Err(invalid!("`30` has no unit (write it like 30s or 30ms)"))
        );
        assert_eq!(
            read("25h"),
            Err(invalid!("25h is out of range (0s to 1day)"))
        );
    }

    #[test]
    fn what_can_be_off_is_off_in_each_spelling() {
        for text in ["off", "0", "0s"] {
            assert_eq!(OrOff::<Time<1, DAY>>::read(text), Ok(None));
        }
    }

    #[test]
    fn a_signal_is_read_with_and_without_sig_in_any_case() {
        for text in ["TERM", "SIGTERM", "term", "sigterm"] {
            assert_eq!(StopSignal::read(text), Ok(Signal::SIGTERM));
        }
    }
}
