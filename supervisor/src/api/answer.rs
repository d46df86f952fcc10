//! Answers on the control socket: one or more lines of JSON, of which the last one has the verdict.
//!
//! Fields are only ever added. A client ignores those that it does not know, and takes the default
//! of those that an older server does not send. `docs/control.md` is the same for people.

use super::events::Event;
use super::request::VERSION;
use super::status::{Progress, Status};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::marker::PhantomData;

/// One line of an answer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Answer {
    /// [`VERSION`].
    pub(crate) version: u32,
    /// The verdict; absent from a line that reports progress or an event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ok: Option<bool>,
    /// What is in progress, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) progress: Option<String>,
    /// How far a reload is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reload: Option<Progress>,
    /// Why the verdict is no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// The generation that serves after a reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) generation: Option<u32>,
    /// The version that serves after an upgrade.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) upgraded: Option<String>,
    /// The number of workers before and after `scale`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) scaled: Option<(u16, u16)>,
    /// The slot that was restarted or drained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) slot: Option<u16>,
    /// The worker that serves a slot after `restart-worker`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) worker: Option<u64>,
    /// The answer to `status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<Json<Status>>,
    /// An event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) event: Option<Json<Event>>,
    /// The answer to `config`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) config: Option<Json<Vec<Setting>>>,
}

/// A document inside an answer, as the JSON that was written or received: a process that only
/// forwards it need not read it, and passes on what a newer server has put into it.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Json<T> {
    text: Box<RawValue>,
    #[serde(skip)]
    document: PhantomData<fn() -> T>,
}

/// A setting, its value, and who set it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value, as the configuration file would have it; null for one that has none.
    #[serde(default)]
    pub value: serde_json::Value,
    /// `flag`, `environment`, `file` or `default`.
    pub from: Cow<'static, str>,
    /// Where exactly; a default has no place.
    #[serde(rename = "where", default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

impl<T: Serialize> Json<T> {
    /// Writes a document; `None` when JSON cannot express it.
    pub(crate) fn write(document: &T) -> Option<Self> {
        serde_json::value::to_raw_value(document)
            .ok()
            .map(Self::from)
    }
}

impl<T: for<'de> Deserialize<'de>> Json<T> {
    /// Reads the document.
    ///
    /// # Errors
    /// When it is not what it should be.
    pub(crate) fn read(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.text.get())
    }
}

impl<T> Json<T> {
    /// Returns its text, which is one line.
    pub(crate) fn text(&self) -> &str {
        self.text.get()
    }
}

impl<T> From<Box<RawValue>> for Json<T> {
    fn from(text: Box<RawValue>) -> Self {
        Self {
            text,
            document: PhantomData,
        }
    }
}

impl<T> Clone for Json<T> {
    fn clone(&self) -> Self {
        self.text.clone().into()
    }
}

impl<T> std::fmt::Debug for Json<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text.get())
    }
}

/// Returns the line of an [`Answer`] that carries an event, with the line end.
pub(crate) fn event_line(event: &impl Serialize) -> Vec<u8> {
    #[derive(Serialize)]
    struct Line<'a, T> {
        version: u32,
        event: &'a T,
    }
    let line = Line {
        version: VERSION,
        event,
    };
    let mut line = serde_json::to_vec(&line).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Why a line is no answer of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AnswerError {
    /// Another program has written it.
    #[error("it does not speak the control protocol (does another program listen there?)")]
    Foreign,
    /// A server of another protocol has written it.
    #[error(
        "it speaks version {0} of the control protocol, and this command version {VERSION} (use \
         the command of the server's own version)"
    )]
    Version(u32),
    /// A document in it is not of this version of its schema.
    #[error("a document in it has other kinds of values (use the command of the server's version)")]
    Document,
}

impl Answer {
    /// Reads a line.
    ///
    /// # Errors
    /// When it is not of this protocol, or of another version of it.
    pub(crate) fn read(line: &[u8]) -> Result<Self, AnswerError> {
        // First, as another version may have other kinds of values in the same fields.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } =
            serde_json::from_slice(line).map_err(|_| AnswerError::Foreign)?;
        if version != VERSION {
            return Err(AnswerError::Version(version));
        }
        serde_json::from_slice(line).map_err(|_| AnswerError::Foreign)
    }

    /// The verdict yes.
    pub(crate) fn done() -> Self {
        Self {
            version: VERSION,
            ok: Some(true),
            ..Self::default()
        }
    }

    /// The verdict no, and why.
    pub(crate) fn failed(error: impl Into<String>) -> Self {
        Self {
            version: VERSION,
            ok: Some(false),
            error: Some(error.into()),
            ..Self::default()
        }
    }

    /// Progress before the verdict.
    pub(crate) fn progress(text: impl Into<String>) -> Self {
        Self {
            version: VERSION,
            progress: Some(text.into()),
            ..Self::default()
        }
    }

    /// Returns why the verdict is no.
    pub(crate) fn reason(&self) -> &str {
        self.error
            .as_deref()
            .unwrap_or("the server says no, without a reason")
    }

    /// Returns its line, with the line end.
    pub(crate) fn line(&self) -> Vec<u8> {
        // Strings and numbers only: nothing that JSON cannot say.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_servers_answer_is_read_and_its_documents_are_passed_on_as_they_are() {
        let line =
            r#"{"version":1,"ok":true,"mood":"fine","status":{"state":"dozing","extra":[1]}}"#;
        let answer: Answer = serde_json::from_str(line).expect("an answer");
        let status = answer.status.expect("a status");
        assert_eq!(status.text(), r#"{"state":"dozing","extra":[1]}"#);
        assert_eq!(status.read().expect("a status"), Status::default());
    }

    #[test]
    fn an_answer_of_another_version_or_program_is_not_believed() {
        let read = |line: &str| Answer::read(line.as_bytes()).map(|answer| answer.ok);
        assert_eq!(read(r#"{"version":1,"ok":true}"#), Ok(Some(true)));
        assert_eq!(
            read(r#"{"version":2,"ok":"yes"}"#),
            Err(AnswerError::Version(2))
        );
        for line in [r#"{"ok":true}"#, "HTTP/1.1 400 Bad Request", ""] {
            assert_eq!(read(line), Err(AnswerError::Foreign), "{line}");
        }
    }

    #[test]
    fn an_answer_leaves_out_what_it_does_not_have() {
        let line = String::from_utf8(Answer::done().line()).expect("UTF-8");
        assert_eq!(line, "{\"version\":1,\"ok\":true}\n");
        assert_eq!(
            event_line(&7),
            b"{\"version\":1,\"event\":7}\n",
            "an event is carried by a line of the same shape"
        );
    }
}
