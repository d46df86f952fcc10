//! The notation of access log lines, which the supervisor checks and workers write by.
//!
//! A format is text with variables, as in nginx: `$remote_addr`, `${status}`, `$http_user_agent`.
//! Two formats have names: `combined` and `json`. One that begins with `escape=json ` has its
//! values escaped for JSON.

use std::fmt;
use thiserror::Error;

/// The longest line, its newline included: as much as a pipe takes at once (`PIPE_BUF`).
pub const MAX_LINE: usize = 4096;
/// How much of it a format's own text may be.
const MAX_TEXT: usize = 2048;
/// What stands before a format whose values are to be escaped for JSON.
const ESCAPE_JSON: &str = "escape=json ";

const COMBINED: &str = concat!(
    r#"$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "#,
    r#""$http_referer" "$http_user_agent""#
);
const JSON: &str = concat!(
    r#"{"time":"$time_iso8601","remote_addr":"$remote_addr","method":"$request_method","#,
    r#""uri":"$request_uri","#,
    r#""protocol":"$server_protocol","status":$status,"body_bytes_sent":$body_bytes_sent,"#,
    r#""request_time":$request_time,"host":"$http_host","referer":"$http_referer","#,
    r#""user_agent":"$http_user_agent","#,
    r#""worker":$worker,"slot":$slot,"pid":$pid,"connection":$connection,"#,
    r#""connection_requests":$connection_requests}"#
);

/// A part of a format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// As it stands there.
    Text(String),
    /// To be filled in.
    Variable(Variable),
    /// A header of the request, by its name in lower case.
    Header(String),
}

macro_rules! variables {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal,)+) => {
        /// What a line can contain.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Variable {$(
            $(#[doc = $doc])+
            $name,
        )+}

        /// The variables and their words, in the order of the documentation.
        pub const VARIABLES: &[(&str, Variable)] = &[$(($word, Variable::$name),)+];
    };
}

variables! {
    /// The client's IP address, or `unix:`.
    RemoteAddr = "remote_addr",
    /// The client's port; 0 for Unix sockets.
    RemotePort = "remote_port",
    /// Always a dash: users are the service's business.
    RemoteUser = "remote_user",
    /// The time as in `27/Nov/2026:22:04:17 +0000`.
    TimeLocal = "time_local",
    /// The time as in `2026-11-27T22:04:17+00:00`.
    TimeIso8601 = "time_iso8601",
    /// Seconds since 1970, with milliseconds.
    Msec = "msec",
    /// The request line.
    Request = "request",
    /// Its method.
    RequestMethod = "request_method",
    /// Its path and query.
    RequestUri = "request_uri",
    /// Its path.
    Uri = "uri",
    /// Its query.
    Args = "args",
    /// `HTTP/1.0`, `HTTP/1.1` or `HTTP/2.0`.
    ServerProtocol = "server_protocol",
    /// The host that was asked for.
    Host = "host",
    /// The response's status; 499 when its client has gone before there was one.
    Status = "status",
    /// Bytes of the response's body.
    BodyBytesSent = "body_bytes_sent",
    /// Seconds from the request's head to its response's end, with milliseconds.
    RequestTime = "request_time",
    /// The connection's number in its worker.
    Connection = "connection",
    /// How many requests the connection has brought by now.
    ConnectionRequests = "connection_requests",
    /// The worker's process.
    Pid = "pid",
    /// The worker's id.
    Worker = "worker",
    /// The worker's slot.
    Slot = "slot",
    /// The worker's generation.
    Generation = "generation",
}

/// How values are escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escape {
    /// Quotes, backslashes, control characters and all that is no ASCII as `\xHH`; what is missing
    /// is a dash.
    Hex,
    /// As in JSON's strings; what is missing is empty.
    Json,
}

/// Why a text is no format.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FormatError {
    /// It says nothing about requests.
    #[error(
        "`{0}` has no variable (choose combined or json, or write a format, such as \
         \"$remote_addr $request $status\")"
    )]
    NoVariable(String),
    /// It would break a line, or a terminal.
    #[error("a format is one line, without control characters")]
    ControlCharacter,
    /// Its own text leaves no space for values.
    #[error("the format is too long for lines of {MAX_LINE} bytes (leave something out)")]
    TooLong,
    /// A variable's braces are not closed.
    #[error("`${{` has no `}}`")]
    Unclosed,
    /// There is no such variable.
    #[error(
        "`${0}` is no variable of the access log (they are {known} and $http_NAME)",
        known = known()
    )]
    UnknownVariable(String),
}

/// All variables, for a message.
fn known() -> String {
    let words: Vec<String> = VARIABLES
        .iter()
        .map(|(word, _)| format!("${word}"))
        .collect();
    words.join(" ")
}

/// A format of lines, as it was written and as it is understood.
///
/// ```
/// use prefork_protocol::access_log::{Format, Piece, Variable};
/// let format: Format = "$status ${http_host}".parse()?;
/// let header = Piece::Header("host".to_owned());
/// let space = Piece::Text(" ".to_owned());
/// assert_eq!(format.pieces, [Piece::Variable(Variable::Status), space, header]);
/// assert!("$stauts".parse::<Format>().unwrap_err().to_string().contains("$status"));
/// # Ok::<(), prefork_protocol::access_log::FormatError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    /// As it was written.
    pub written: String,
    /// Its parts.
    pub pieces: Vec<Piece>,
    /// How values are escaped.
    pub escape: Escape,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

impl std::str::FromStr for Format {
    type Err = FormatError;

    fn from_str(written: &str) -> Result<Self, FormatError> {
        let (text, escape) = match written {
            "combined" => (COMBINED, Escape::Hex),
            "json" => (JSON, Escape::Json),
            _ => match written.strip_prefix(ESCAPE_JSON) {
                Some(text) => (text, Escape::Json),
                None => (written, Escape::Hex),
            },
        };
        if !text.contains('$') {
            return Err(FormatError::NoVariable(written.to_owned()));
        }
        if text.chars().any(|c| c.is_control() && c != '\t') {
            return Err(FormatError::ControlCharacter);
        }
        let pieces = pieces(text)?;
        let fixed: usize = pieces
            .iter()
            .map(|piece| {
                if let Piece::Text(text) = piece {
                    text.len()
                } else {
                    24
                }
            })
            .sum();
        if fixed > MAX_TEXT {
            return Err(FormatError::TooLong);
        }
        Ok(Self {
            written: written.to_owned(),
            pieces,
            escape,
        })
    }
}

fn pieces(text: &str) -> Result<Vec<Piece>, FormatError> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        if at > 0 {
            pieces.push(Piece::Text(rest[..at].to_owned()));
        }
        rest = &rest[at + 1..];
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let name = if let Some(inner) = rest.strip_prefix('{') {
            let end = inner.find('}').ok_or(FormatError::Unclosed)?;
            rest = &inner[end + 1..];
            &inner[..end]
        } else {
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            rest = after;
            name
        };
        pieces.push(variable(name)?);
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(pieces)
}

fn variable(name: &str) -> Result<Piece, FormatError> {
    if let Some((_, variable)) = VARIABLES.iter().find(|(word, _)| *word == name) {
        return Ok(Piece::Variable(*variable));
    }
    let is_header = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    match name.strip_prefix("http_") {
        Some(header) if !header.is_empty() && header.bytes().all(is_header) => {
            Ok(Piece::Header(header.replace('_', "-")))
        }
        _ => Err(FormatError::UnknownVariable(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_formats_are_formats() {
        for name in ["combined", "json"] {
            assert!(
                name.parse::<Format>()
                    .is_ok_and(|format| format.pieces.len() > 10),
                "{name}"
            );
        }
    }

    #[test]
    fn what_is_no_format_is_refused_with_the_remedy() {
        let refused = |text: &str| text.parse::<Format>().expect_err(text).to_string();
        assert!(refused("comined").contains("choose combined"));
        assert!(refused("$status $").contains("`$` is no variable"));
        assert!(refused("${status").contains("has no `}`"));
        assert!(refused("$status\n").contains("one line"));
        assert!(refused("$http_").contains("$http_NAME"));
        assert!(refused(&format!("$status {}", "x".repeat(2100))).contains("too long"));
    }
}
