//! The log: one line per decision, for people or for machines, to stderr, the journal or a file.
//!
//! The same code runs in the supervisor and in its Rust workers, which find their settings in the
//! environment. A log file recovers from rotation by itself: each writer checks about once a second
//! whether the path still names its open file, so workers need no signal. USR1 makes the supervisor
//! check at once.

pub(crate) mod access_log;
mod bounded;
mod file;
pub(crate) mod output;
pub(crate) mod stderr;

use crate::config::{LogFormat, LogSettings};
use crate::logging::stderr::writer::{LogWriter, stderr_writer};
use env_logger::{Builder, Target, WriteStyle};
use file::{LogFile, Loss};
use log::kv::{Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::io;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The format of a worker's lines.
pub(crate) const FORMAT_VARIABLE: &str = "PREFORK_LOG_FORMAT";
/// The file that they go to.
pub(crate) const FILE_VARIABLE: &str = "PREFORK_LOG_FILE";

static FILE: OnceLock<LogFile> = OnceLock::new();

/// A worker's format when its lines end on the supervisor's terminal, although it does not write
/// there itself.
const COLOUR: &str = "colour";

/// Starts logging in a supervisor, without ever waiting for the reader of its standard error or of
/// its log file. To be called once in a process.
pub(crate) fn start(settings: &LogSettings) -> Result<(), String> {
    begin(settings, Some(Box::new(LogWriter)), colours())
}

/// Gives the readers of the log and of standard error a last chance. To be called before the
/// process exits.
pub(crate) fn finish() {
    if let Some(file) = FILE.get() {
        file.finish();
    }
    stderr_writer().finish();
}

/// Writes what waits for the reader of the log file, and reports what was lost. Returns whether
/// anything still waits.
pub(crate) fn flush() -> bool {
    let Some(file) = FILE.get() else { return false };
    let waits = file.flush();
    log::logger().flush();
    waits
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
    let logger = Logger(builder.build());
    log::set_max_level(logger.0.filter());
    log::set_boxed_logger(Box::new(logger)).map_err(|error| error.to_string())
}

/// The log, which also reports what it has lost.
struct Logger(env_logger::Logger);

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        self.0.log(record);
        self.flush();
    }

    fn flush(&self) {
        let Some(file) = FILE.get() else { return };
        match file.take_loss() {
            None => {}
            Some(Loss::Dropped(lines)) => self.0.log(
                &Record::builder()
                    .level(Level::Warn)
                    .target(module_path!())
                    .key_values(&[("lines", lines)])
                    .args(format_args!(
                        "dropped {lines} lines of the log: its reader or disk is too slow"
                    ))
                    .build(),
            ),
            // The log is not the place to say so.
            Some(Loss::Failing(reason)) => {
                let path = file.path.display();
                let line = format!("error: cannot write log file {path}: {reason}\n");
                let _ = LogWriter.write(line.as_bytes());
            }
        }
    }
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
