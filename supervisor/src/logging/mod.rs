//! The log: one line per decision, for people or for machines, to stderr, the journal or a file.
//!
//! The same code runs in the supervisor and in its Rust workers, which find their settings in the
//! environment. A log file recovers from rotation by itself: each writer checks about once a second
//! whether the path still names its open file, so workers need no signal. USR1 makes the supervisor
//! check at once.

pub(crate) mod access_log;
pub(crate) mod stderr;

use crate::config::{LogFormat, LogSettings};
use crate::logging::stderr::writer::LogWriter;
use env_logger::{Builder, Target, WriteStyle};
use log::kv::{Key, Value, VisitSource};
use log::{Level, LevelFilter, Record};
use std::fs::{File, OpenOptions};
use std::io;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The format of a worker's lines.
pub(crate) const FORMAT_VARIABLE: &str = "PREFORK_LOG_FORMAT";
/// The file that they go to.
pub(crate) const FILE_VARIABLE: &str = "PREFORK_LOG_FILE";

const LOOK_EVERY: Duration = Duration::from_secs(1);

static FILE: OnceLock<LogFile> = OnceLock::new();

/// A worker's format when its lines end on the supervisor's terminal, although it does not write
/// there itself.
const COLOUR: &str = "colour";

/// Starts logging in a supervisor, without ever waiting for the reader of its standard error. To be
/// called once in a process.
pub(crate) fn start(settings: &LogSettings) -> Result<(), String> {
    begin(settings, Some(Box::new(LogWriter)), colours())
}

/// Gives the reader of standard error a last chance. To be called before the process exits.
pub(crate) fn finish() {
    crate::logging::stderr::writer::stderr_writer().finish();
}

/// Whether lines on standard error are to have colours.
fn colours() -> bool {
    use std::io::IsTerminal;
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    io::stderr().is_terminal() && !is_set("NO_COLOR") && !dumb
}

fn begin(
    settings: &LogSettings,
    stderr: Option<Box<dyn Write + Send>>,
    colours: bool,
) -> Result<(), String> {
    let mut builder = Builder::new();
    builder.filter_level(settings.level).parse_default_env();
    if let Some(path) = &settings.file {
        let file = FILE.get_or_init(|| LogFile::new(path.clone()));
        file.reopen().map_err(|error| cannot_open(path, &error))?;
        builder
            .target(Target::Pipe(Box::new(file)))
            .write_style(WriteStyle::Never);
    } else {
        builder.write_style(if colours {
            WriteStyle::Always
        } else {
            WriteStyle::Never
        });
        if let Some(stderr) = stderr {
            builder.target(Target::Pipe(stderr));
        }
    }
    let journal = settings.file.is_none() && crate::systemd::journal::stderr_is_journal();
    match settings.format {
        LogFormat::Json => builder.format(json),
        LogFormat::Text if journal => builder.format(|out, record| {
            let level = priority(record.level());
            for line in record.args().to_string().lines() {
                writeln!(out, "<{level}>{line}")?;
            }
            Ok(())
        }),
        LogFormat::Text => builder.format(|out, record| {
            let (time, level) = (out.timestamp_millis(), record.level());
            let style = out.default_level_style(level);
            writeln!(out, "{time} {style}{level:<5}{style:#} {}", record.args())
        }),
    };
    builder.try_init().map_err(|error| error.to_string())
}

/// Starts logging in a worker, as its environment says.
pub(crate) fn start_in_worker() {
    let (format, coloured) = match std::env::var(FORMAT_VARIABLE).as_deref() {
        Ok("json") => (LogFormat::Json, false),
        Ok(COLOUR) => (LogFormat::Text, true),
        _ => (LogFormat::Text, colours()),
    };
    let file = std::env::var_os(FILE_VARIABLE).map(PathBuf::from);
    let settings = LogSettings {
        level: LevelFilter::Trace,
        format,
        file,
    };
    if let Err(error) = begin(&settings, None, coloured) {
        let _ = writeln!(io::stderr(), "{error}");
    }
}

/// Returns what a worker needs in its environment to log like the supervisor. `captured`: its
/// standard error is a pipe to us.
pub(crate) fn environment(settings: &LogSettings, captured: bool) -> Vec<(&'static str, PathBuf)> {
    let format = match settings.format {
        LogFormat::Json => "json",
        LogFormat::Text if captured && settings.file.is_none() && colours() => COLOUR,
        LogFormat::Text => "text",
    };
    let mut environment = vec![(FORMAT_VARIABLE, PathBuf::from(format))];
    environment.extend(settings.file.clone().map(|file| (FILE_VARIABLE, file)));
    environment
}

/// Reopens the log file, if there is one: it was rotated.
///
/// # Errors
/// When it cannot be opened; the old one stays in use.
pub(crate) fn reopen() -> Result<bool, String> {
    match FILE.get() {
        None => Ok(false),
        Some(file) => file
            .reopen()
            .map(|()| true)
            .map_err(|error| cannot_open(&file.path, &error)),
    }
}

/// Whether a process could go on logging like this one.
///
/// # Errors
/// When the log file cannot be opened; the text names it.
pub(crate) fn can_start(settings: &LogSettings) -> Result<(), String> {
    let Some(path) = &settings.file else {
        return Ok(());
    };
    LogFile::new(path.clone())
        .reopen()
        .map_err(|error| cannot_open(path, &error))
}

fn cannot_open(path: &Path, error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("give it to user {} with chown", nix::unistd::geteuid())
        }
        _ => "create its directory".to_owned(),
    };
    format!(
        "cannot open log file {}: {error} ({remedy}, or choose another --log-file)",
        path.display()
    )
}

/// Returns syslog(3)'s number for a level, which journald takes from a line's `<n>` prefix.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

fn json(out: &mut env_logger::fmt::Formatter, record: &Record<'_>) -> io::Result<()> {
    struct Fields(serde_json::Map<String, serde_json::Value>);
    impl<'kvs> VisitSource<'kvs> for Fields {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
            let value = match (value.to_u64(), value.to_bool()) {
                (Some(number), _) => number.into(),
                (None, Some(yes)) => yes.into(),
                (None, None) => value.to_string().into(),
            };
            self.0.insert(key.to_string(), value);
            Ok(())
        }
    }
    let mut fields = Fields(serde_json::Map::new());
    fields
        .0
        .insert("time".to_owned(), out.timestamp_millis().to_string().into());
    fields.0.insert(
        "level".to_owned(),
        record.level().as_str().to_ascii_lowercase().into(),
    );
    fields
        .0
        .insert("message".to_owned(), record.args().to_string().into());
    let _ = record.key_values().visit(&mut fields);
    writeln!(out, "{}", serde_json::Value::Object(fields.0))
}

/// A file that is appended to, and reopened when its path names another one.
struct LogFile {
    path: PathBuf,
    open: Mutex<Option<Open>>,
}

struct Open {
    file: File,
    identity: (u64, u64),
    looked: Instant,
}

impl LogFile {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            open: Mutex::new(None),
        }
    }

    fn reopen(&self) -> io::Result<()> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.path)?;
        let about = file.metadata()?;
        let open = Open {
            file,
            identity: (about.dev(), about.ino()),
            looked: Instant::now(),
        };
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(open);
        Ok(())
    }

    fn heal(&self) {
        let mut guard = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = guard.as_mut() else { return };
        if open.looked.elapsed() < LOOK_EVERY {
            return;
        }
        open.looked = Instant::now();
        let there = std::fs::metadata(&self.path)
            .ok()
            .map(|about| (about.dev(), about.ino()));
        if there != Some(open.identity) {
            drop(guard);
            // If it fails, the old file stays in use.
            let _ = self.reopen();
        }
    }
}

impl Write for &LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.heal();
        match self
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
        {
            Some(open) => open.file.write(bytes),
            None => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_file_is_reopened() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let file = LogFile::new(path.clone());
        file.reopen().expect("open");
        (&file).write_all(b"one\n").expect("write");
        std::fs::rename(&path, folder.path().join("log.1")).expect("rotate");
        (&file).write_all(b"two\n").expect("write");
        file.open
            .lock()
            .expect("lock")
            .as_mut()
            .expect("open")
            .looked -= LOOK_EVERY;
        (&file).write_all(b"three\n").expect("write");
        assert_eq!(
            std::fs::read_to_string(folder.path().join("log.1")).expect("read"),
            "one\ntwo\n"
        );
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "three\n");
    }
}
