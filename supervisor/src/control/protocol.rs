//! What is said on the control socket: a request is one line of JSON, an answer is one or more.
//!
//! Fields and commands are only ever added, and a client leaves fields that it does not know; what would break it raises
//! [`VERSION`]. `docs/control.md` is the same for people.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version of requests and answers, named in every answer.
pub(crate) const VERSION: u32 = 1;
/// The longest request, in bytes.
pub(crate) const MAX_REQUEST: usize = 4096;

/// What an operator can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How is the server?
    Status,
    /// Reload, and perhaps wait for the verdict.
    Reload {
        /// Answer when it is known.
        #[serde(default)]
        wait: bool,
    },
    /// Upgrade the supervisor's own program in place, and perhaps wait for the verdict.
    Upgrade {
        /// Answer when it is known.
        #[serde(default)]
        wait: bool,
    },
    /// Stop, gracefully or at once.
    Stop {
        /// At once.
        #[serde(default)]
        now: bool,
    },
    /// Have this many workers.
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
    /// What has happened, and perhaps what happens from now on.
    Events {
        /// Go on telling.
        #[serde(default)]
        follow: bool,
        /// Only those after this number.
        #[serde(default)]
        since: Option<u64>,
        /// Only the last so many.
        #[serde(default)]
        recent: Option<u32>,
    },
    /// What holds, and where each setting came from.
    Config,
}

/// What a client may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub enum Role {
    /// How things are.
    Read,
    /// Everything.
    Operate,
}

impl Request {
    /// Reads a request out of what a client has sent so far; `None` while it is incomplete.
    ///
    /// # Errors
    /// What is wrong with it, in words for the client.
    ///
    /// ```
    /// use prefork_supervisor::internals::Request;
    /// assert_eq!(Request::read(br#"{"command":"sta"#), None);
    /// assert_eq!(Request::read(b"{\"command\":\"status\"}\n"), Some(Ok(Request::Status)));
    /// ```
    pub fn read(input: &[u8]) -> Option<Result<Self, String>> {
        // However it is cut on its way: a line that is too long is so with its end, too.
        let Some(end) = input
            .iter()
            .take(MAX_REQUEST)
            .position(|byte| *byte == b'\n')
        else {
            let long = input.len() >= MAX_REQUEST;
            return long.then(|| {
                Err(format!(
                    "a request is one line of at most {MAX_REQUEST} bytes"
                ))
            });
        };
        Some(
            serde_json::from_slice(&input[..end])
                .map_err(|error| format!("no such request: {error}")),
        )
    }

    /// Who may ask for it.
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

/// One line of an answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// [`VERSION`].
    pub version: u32,
    /// How it ended; absent from a line that only tells of progress or of an event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ok: Option<bool>,
    /// What goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// How far a reload is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reload: Option<Progress>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The generation that serves after a reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// The version that serves after an upgrade.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgraded: Option<String>,
    /// The number of workers before and after `scale`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaled: Option<(u16, u16)>,
    /// The slot that was restarted or drained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<u16>,
    /// The worker that serves a slot after `restart-worker`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<u64>,
    /// The answer to `status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
    /// Something that has happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<Value>,
    /// The answer to `config`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<Value>,
}

/// The line of an [`Answer`] that tells of something that has happened, with the end.
pub(crate) fn event_line(event: &impl Serialize) -> Vec<u8> {
    #[derive(Serialize)]
    struct Line<'a, T> {
        version: u32,
        event: &'a T,
    }
    let mut line = serde_json::to_vec(&Line {
        version: VERSION,
        event,
    })
    .unwrap_or_default();
    line.push(b'\n');
    line
}

/// How far a reload is, in slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// The generation on trial.
    pub generation: u32,
    /// How many it fills.
    pub slots: u16,
    /// Those that have a worker of it.
    pub spawned: u16,
    /// Those in which it is ready.
    pub ready: u16,
    /// Those that have been ready for `--min-ready`.
    pub passed: u16,
}

impl Answer {
    /// It is done.
    pub(crate) fn done() -> Self {
        Self {
            version: VERSION,
            ok: Some(true),
            ..Self::default()
        }
    }

    /// It is not, and why.
    pub(crate) fn failed(error: impl Into<String>) -> Self {
        Self {
            version: VERSION,
            ok: Some(false),
            error: Some(error.into()),
            ..Self::default()
        }
    }

    /// It goes on.
    pub(crate) fn progress(text: impl Into<String>) -> Self {
        Self {
            version: VERSION,
            progress: Some(text.into()),
            ..Self::default()
        }
    }

    /// Its line, with the end.
    pub(crate) fn line(&self) -> Vec<u8> {
        // Strings and numbers only: nothing that JSON cannot say.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}
