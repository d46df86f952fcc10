//! Requests on the control socket: one line of JSON each.
//!
//! Fields and commands are only ever added; what would break a client raises [`VERSION`].
//! `docs/control.md` is the same for people.

use serde::{Deserialize, Serialize};

/// The version of requests and answers, named in every answer.
pub(crate) const VERSION: u32 = 1;
/// The longest request, in bytes.
pub(crate) const MAX_REQUEST: usize = 4096;

/// A request of an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Return the status document.
    Status,
    /// Reload configuration and program.
    Reload {
        /// Answer when the verdict is known.
        #[serde(default)]
        wait: bool,
    },
    /// Upgrade the supervisor's own program in place.
    Upgrade {
        /// Answer when the verdict is known.
        #[serde(default)]
        wait: bool,
    },
    /// Stop, gracefully or at once.
    Stop {
        /// At once.
        #[serde(default)]
        now: bool,
    },
    /// Set the number of workers.
    Scale {
        /// How many.
        workers: u16,
    },
    /// Replace a slot's worker: the new one is ready before the old one drains.
    RestartWorker {
        /// Which slot.
        slot: u16,
        /// Answer when the new worker is ready, or has failed.
        #[serde(default)]
        wait: bool,
    },
    /// Empty a slot, and hold it empty.
    Drain {
        /// Which slot.
        slot: u16,
        /// Answer when its worker has left.
        #[serde(default)]
        wait: bool,
    },
    /// Return recent events, and optionally those that follow.
    Events {
        /// Keep the connection open for new events.
        #[serde(default)]
        follow: bool,
        /// Only those after this number.
        #[serde(default)]
        since: Option<u64>,
        /// Only the last ones, this many.
        #[serde(default)]
        recent: Option<u32>,
    },
    /// Return the effective settings and their origins.
    Config,
}

/// The rights of a control client. A role includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub enum Role {
    /// Status, events and configuration.
    Read,
    /// Everything.
    Operate,
}

/// A line that is not a request, in words for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Its end has not come within the limit.
    #[error("a request is one line of at most {MAX_REQUEST} bytes")]
    TooLong,
    /// It is not JSON, or names no command, or has a field that the command does not have.
    #[error("no such request: {0}")]
    Invalid(String),
}

impl Request {
    /// Reads a request out of what a client has sent so far; `None` while it is incomplete.
    ///
    /// # Errors
    /// When the line is too long or is not a request.
    ///
    /// ```
    /// use prefork_supervisor::internals::Request;
    /// assert_eq!(Request::read(br#"{"command":"sta"#), None);
    /// assert_eq!(Request::read(b"{\"command\":\"status\"}\n"), Some(Ok(Request::Status)));
    /// ```
    pub fn read(input: &[u8]) -> Option<Result<Self, RequestError>> {
        // However it is cut on its way: a line that is too long is so with its end, too.
        let Some(end) = input
            .iter()
            .take(MAX_REQUEST)
            .position(|byte| *byte == b'\n')
        else {
            return (input.len() >= MAX_REQUEST).then_some(Err(RequestError::TooLong));
        };
        let request = serde_json::from_slice(&input[..end]);
        Some(request.map_err(|error| RequestError::Invalid(error.to_string())))
    }

    /// Returns its line, with the line end.
    pub(crate) fn line(&self) -> Vec<u8> {
        // Numbers and flags only: nothing that JSON cannot say.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// Returns the role that a client needs for it.
    pub fn needs(&self) -> Role {
        match self {
            Self::Status | Self::Events { .. } | Self::Config => Role::Read,
            Self::Reload { .. }
            | Self::Upgrade { .. }
            | Self::Stop { .. }
            | Self::Scale { .. }
            | Self::RestartWorker { .. }
            | Self::Drain { .. } => Role::Operate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_too_long_is_rejected_however_it_is_cut() {
        let line = format!("{{\"command\":\"status\"}}{}\n", " ".repeat(MAX_REQUEST));
        let too_long = Some(Err(RequestError::TooLong));
        assert_eq!(Request::read(line.as_bytes()), too_long);
        assert_eq!(Request::read(&line.as_bytes()[..line.len() - 1]), too_long);
    }

    #[test]
    fn a_request_is_read_as_it_is_written() {
        for request in [
            Request::Status,
            Request::Reload { wait: true },
            Request::Scale { workers: 3 },
            Request::Events {
                follow: true,
                since: None,
                recent: Some(7),
            },
        ] {
            assert_eq!(Request::read(&request.line()), Some(Ok(request)));
        }
    }
}
