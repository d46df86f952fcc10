//! Requests on the control socket: one line of JSON each.
//!
//! Fields and commands are only ever added; what would break a client raises [`VERSION`].
//! `docs/control.md` is the same for people.

use crate::config::nearest;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The version of requests and answers, named in every answer.
pub(crate) const VERSION: u32 = 1;
/// The longest request, in bytes.
pub(crate) const MAX_REQUEST: usize = 4096;

/// A request of an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Return the status document. (In braces, or serde would let it have any field.)
    Status {},
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
    Config {},
}

/// The commands, and the fields of each besides `command`.
const COMMANDS: &[(&str, &[Field])] = &[
    ("status", &[]),
    ("reload", &[WAIT]),
    ("upgrade", &[WAIT]),
    ("stop", &[Field("now", Kind::Flag)]),
    ("scale", &[Field("workers", Kind::Number)]),
    ("restart-worker", &[SLOT, WAIT]),
    ("drain", &[SLOT, WAIT]),
    (
        "events",
        &[
            Field("follow", Kind::Flag),
            Field("since", Kind::Optional(u64::MAX)),
            Field("recent", Kind::Optional(u32::MAX as u64)),
        ],
    ),
    ("config", &[]),
];
const WAIT: Field = Field("wait", Kind::Flag);
const SLOT: Field = Field("slot", Kind::Number);

/// A field of a request: its name and its kind.
#[derive(Debug, Clone, Copy)]
struct Field(&'static str, Kind);

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// True or false; false when it is absent.
    Flag,
    /// A number of workers or of a slot, which must be present.
    Number,
    /// A number up to this one; absent or null for none.
    Optional(u64),
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
    /// It is not what a request looks like.
    #[error("no such request: {0}")]
    Invalid(#[from] InvalidRequest),
}

/// What is wrong with a line that should be a request, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// It is not JSON, or not an object.
    #[error(r#"the line is no JSON object (write it like {{"command":"status"}})"#)]
    NotJson,
    /// It names no command.
    #[error(
        r#"it names no command (write it like {{"command":"status"}}; there are {})"#,
        commands()
    )]
    NoCommand,
    /// It names a command that does not exist.
    #[error("no command is named `{0}` ({near}there are {all})", near = did_you_mean(.0),
        all = commands())]
    UnknownCommand(String),
    /// It has a field that its command does not have.
    #[error("`{command}` has no field `{field}` (it has {has})", has = fields(.command))]
    UnknownField {
        /// The command.
        command: &'static str,
        /// The field.
        field: String,
    },
    /// A field is absent that its command needs.
    #[error(r#"`{command}` needs `{field}` (write it like {{"command":"{command}","{field}":2}})"#)]
    MissingField {
        /// The command.
        command: &'static str,
        /// The field.
        field: &'static str,
    },
    /// A field's value is of another kind.
    #[error("`{field}` of `{command}` must be {expected}")]
    WrongValue {
        /// The command.
        command: &'static str,
        /// The field.
        field: &'static str,
        /// What it must be.
        expected: String,
    },
}

/// Returns the names of all commands.
fn commands() -> String {
    let names: Vec<&str> = COMMANDS.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

fn did_you_mean(word: &str) -> String {
    let near = nearest(word, COMMANDS.iter().map(|(name, _)| *name));
    near.map_or_else(String::new, |near| format!("did you mean `{near}`? "))
}

/// Returns the names of a command's fields.
fn fields(command: &str) -> String {
    let found = COMMANDS.iter().find(|(name, _)| *name == command);
    let names: Vec<_> = found
        .into_iter()
        .flat_map(|(_, fields)| fields.iter().map(|Field(name, _)| format!("`{name}`")))
        .collect();
    if names.is_empty() {
        "none besides `command`".to_owned()
    } else {
        names.join(" and ")
    }
}

/// Checks a request against the table, so that what is wrong can be said in plain words.
fn check(request: &Map<String, Value>) -> Result<(), InvalidRequest> {
    let name = request.get("command").and_then(Value::as_str);
    let name = name.ok_or(InvalidRequest::NoCommand)?;
    let found = COMMANDS.iter().find(|(command, _)| *command == name);
    let (command, fields) =
        *found.ok_or_else(|| InvalidRequest::UnknownCommand(name.to_owned()))?;
    let known = |field: &str| field == "command" || fields.iter().any(|Field(it, _)| *it == field);
    if let Some(field) = request.keys().find(|field| !known(field)) {
        let field = field.clone();
        return Err(InvalidRequest::UnknownField { command, field });
    }
    fields.iter().try_for_each(|Field(field, kind)| {
        let value = request.get(*field);
        let number = value.and_then(Value::as_u64);
        let most = match kind {
            Kind::Flag if value.is_none_or(Value::is_boolean) => return Ok(()),
            Kind::Flag => None,
            Kind::Number if value.is_none() => {
                return Err(InvalidRequest::MissingField { command, field });
            }
            Kind::Optional(_) if value.is_none_or(Value::is_null) => return Ok(()),
            Kind::Number => Some(u64::from(u16::MAX)),
            Kind::Optional(most) => Some(*most),
        };
        match (most, number) {
            (Some(most), Some(number)) if number <= most => Ok(()),
            _ => Err(InvalidRequest::WrongValue {
                command,
                field,
                expected: most.map_or_else(
                    || "true or false".to_owned(),
                    |most| format!("a number from 0 to {most}"),
                ),
            }),
        }
    })
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
    /// assert_eq!(Request::read(b"{\"command\":\"status\"}\n"), Some(Ok(Request::Status {})));
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
        let request = serde_json::from_slice::<Map<String, Value>>(&input[..end])
            .map_err(|_| InvalidRequest::NotJson)
            .and_then(|request| {
                check(&request)?;
                // A test compares the table with what is read here.
                serde_json::from_value(Value::Object(request)).map_err(|_| InvalidRequest::NotJson)
            });
        Some(request.map_err(RequestError::from))
    }

    /// Returns whether its answer comes as soon as the server has read it, not when something is
    /// done.
    pub(crate) fn is_answered_at_once(&self) -> bool {
        match self {
            Self::Status {} | Self::Config {} | Self::Stop { .. } | Self::Scale { .. } => true,
            Self::Reload { wait }
            | Self::Upgrade { wait }
            | Self::RestartWorker { wait, .. }
            | Self::Drain { wait, .. } => !wait,
            Self::Events { follow, .. } => !follow,
        }
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
            Self::Status {} | Self::Events { .. } | Self::Config {} => Role::Read,
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

    /// Every request, with every field set.
    const ALL: [Request; 9] = [
        Request::Status {},
        Request::Reload { wait: true },
        Request::Upgrade { wait: true },
        Request::Stop { now: true },
        Request::Scale { workers: 3 },
        Request::RestartWorker {
            slot: 1,
            wait: true,
        },
        Request::Drain {
            slot: 1,
            wait: true,
        },
        Request::Events {
            follow: true,
            since: None,
            recent: Some(7),
        },
        Request::Config {},
    ];

    #[test]
    fn a_request_is_read_as_it_is_written() {
        for request in ALL {
            assert_eq!(Request::read(&request.line()), Some(Ok(request)));
        }
    }

    #[test]
    fn the_table_has_the_commands_and_fields_that_are_read() {
        let written = ALL.map(|request| {
            let value = serde_json::to_value(request).expect("JSON");
            let object = value.as_object().expect("an object").clone();
            let mut keys: Vec<String> = object.keys().cloned().collect();
            keys.retain(|key| key != "command");
            keys.sort();
            (object["command"].as_str().expect("a name").to_owned(), keys)
        });
        let table: Vec<_> = COMMANDS
            .iter()
            .map(|(name, fields)| {
                let mut keys: Vec<_> = fields.iter().map(|field| field.0.to_owned()).collect();
                keys.sort();
                ((*name).to_owned(), keys)
            })
            .collect();
        assert_eq!(written.to_vec(), table);
    }

    #[test]
    fn what_is_wrong_with_a_request_is_said_with_the_remedy() {
        let reason = |line: &str| match Request::read(format!("{line}\n").as_bytes()) {
            Some(Err(error)) => error.to_string(),
            other => panic!("{line}: {other:?}"),
        };
        for (line, words) in [
            ("stop", "no JSON object"),
            ("[]", "no JSON object"),
            ("{}", "names no command"),
            (r#"{"command":7}"#, "names no command"),
            (r#"{"command":"statsu"}"#, "did you mean `status`?"),
            (r#"{"command":"dance"}"#, "there are status, reload"),
            (
                r#"{"command":"status","x":1}"#,
                "`status` has no field `x` (it has none",
            ),
            (
                r#"{"command":"config","wait":true}"#,
                "`config` has no field `wait`",
            ),
            (
                r#"{"command":"drain","slots":1}"#,
                "(it has `slot` and `wait`)",
            ),
            (r#"{"command":"scale"}"#, "`scale` needs `workers`"),
            (
                r#"{"command":"scale","workers":-1}"#,
                "must be a number from 0 to 65535",
            ),
            (
                r#"{"command":"scale","workers":65536}"#,
                "must be a number from 0 to 65535",
            ),
            (
                r#"{"command":"stop","now":1}"#,
                "`now` of `stop` must be true or false",
            ),
            (
                r#"{"command":"events","recent":4294967296}"#,
                "0 to 4294967295",
            ),
        ] {
            let reason = reason(line);
            assert!(reason.contains(words), "{line}: {reason}");
            assert!(!reason.contains(" at line "), "{line}: {reason}");
        }
    }
}
