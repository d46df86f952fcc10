//! When a program counts as ready: the setting `ready`.

use super::reader::{ConfigValue, InvalidValue, invalid};
use super::toml_text::quoted;
use super::values::{DAY, Time};
use std::fmt;
use std::time::Duration;

/// What tells that a worker is ready to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// What fits most: a Rust worker's channel; of another program, as [`After`](Self::After) a
    /// second.
    Auto,
    /// It says so, and nothing else counts.
    Notify,
    /// It says so, or lives for so long without having said anything.
    After(Duration),
    /// It is seen to wait for connections on all its sockets, whatever it says.
    Listen,
    /// It says so on its channel; for Rust workers only, who do so in any case.
    Channel,
}

/// How long a program may say nothing, with [`Ready::Auto`].
const SILENCE: Duration = Duration::from_secs(1);

impl Ready {
    /// How long a program must live without a word to count as ready, if that is enough.
    pub fn silence(self) -> Option<Duration> {
        match self {
            Self::Auto => Some(SILENCE),
            Self::After(silence) => Some(silence),
            Self::Notify | Self::Listen | Self::Channel => None,
        }
    }
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Notify => f.write_str("notify"),
            Self::After(silence) => write!(f, "after={}", humantime::format_duration(*silence)),
            Self::Listen => f.write_str("listen"),
            Self::Channel => f.write_str("channel"),
        }
    }
}

impl ConfigValue for Ready {
    type Resolved = Self;
    const EXAMPLE: &'static str = "\"auto\"";
    const CHOICES: &'static [&'static str] = &["auto", "notify", "listen", "channel"];

    fn read(text: &str) -> Result<Self, InvalidValue> {
        match text {
            "auto" => Ok(Self::Auto),
            "notify" => Ok(Self::Notify),
            "listen" => Ok(Self::Listen),
            "channel" => Ok(Self::Channel),
            _ => match text.strip_prefix("after=") {
                Some(time) => Time::<0, DAY>::read(time).map(Self::After),
                None => Err(invalid!(
                    "`{text}` is no way to get ready (choose auto, notify, after=TIME, listen or \
                     channel)"
                )),
            },
        }
    }

    fn write(value: &Self) -> String {
        quoted(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_as_it_is_read() {
        for text in [
            "auto",
            "notify",
            "listen",
            "channel",
            "after=0s",
            "after=1m 30s",
        ] {
            assert_eq!(
                Ready::read(text).map(|ready| ready.to_string()),
                Ok(text.to_owned())
            );
        }
        for (text, message) in [
            (
                "after",
                "`after` is no way to get ready (choose auto, notify, after=TIME, listen or \
                 channel)",
            ),
            ("after=3", "`3` has no unit (write it like 3s or 3ms)"),
        ] {
            assert_eq!(Ready::read(text), Err(invalid!("{message}")));
        }
    }
}
