//! The command line: its shape, its help, its man page.
//!
//! `-h` is a page with what most people need, `--help` and the man page tell everything. What is
//! true of every option is said once, after the list.

use super::error::printable;
use super::file::nearest;
use super::options::{Applies, Options, PREFIX, Preset};
use super::reader::{InvalidValue, Parsed, invalid};
use super::types::Control;
use super::values::{ServerName, Time, Whole};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Args, Command, CommandFactory, FromArgMatches, Parser, ValueHint};
use clap_complete::Shell;
use prefork_protocol::Slot;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

/// Whose command line it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The command's name, as in its usage line.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it is, in a sentence.
    pub about: String,
    /// Whether it brings a service of its own, so that it runs neither a stock app nor another
    /// program.
    pub linked: bool,
}

impl Identity {
    /// The `supervisor` binary.
    pub fn supervisor() -> Self {
        Self {
            name: "supervisor".to_owned(),
            version: crate::version::VERSION.to_owned(),
            about: "Prefork server: binds, forks, heals and reloads without losing a connection"
                .to_owned(),
            linked: false,
        }
    }

    /// A program of this name that brings its own service.
    pub fn linked(name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            about: format!("{name}, served by prefork workers"),
            name,
            linked: true,
            ..Self::supervisor()
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subcommand {
    /// Serve.
    Serve,
    /// Validate the configuration and exit.
    Check {
        /// Print what is true, by [`Config::render`](super::Config::render).
        print: bool,
    },
    /// Ask the running server how it is.
    Status {
        /// Only whether it is ready.
        check: bool,
    },
    /// Ask the running server for this many workers.
    Scale(u16),
    /// Ask the running server to replace a slot's worker.
    RestartWorker(u16),
    /// Ask the running server to empty a slot.
    Drain(u16),
    /// Ask the running server what has happened.
    Events {
        /// Wait for more.
        follow: bool,
        /// Only this many, the last ones.
        recent: Option<u32>,
        /// Only those after this number.
        since: Option<u64>,
    },
    /// Ask the running server what its settings are.
    Config,
    /// Show the running server.
    Top {
        /// From one frame to the next.
        interval: std::time::Duration,
        /// Print frames instead.
        batch: bool,
        /// Exit after this many frames.
        count: Option<u32>,
    },
    /// Ask the running server to reload.
    Reload {
        /// Wait for the verdict.
        wait: bool,
    },
    /// Ask the running server to upgrade its own program.
    Upgrade {
        /// Wait for the verdict.
        wait: bool,
    },
    /// Ask the running server to stop.
    Stop {
        /// Without draining.
        now: bool,
        /// Wait until it has ended.
        wait: bool,
    },
    /// Print the man page.
    Man,
    /// Print completions for this shell.
    Completions(Shell),
}

/// A command line, taken apart.
#[derive(Debug)]
pub(crate) struct CommandLine {
    pub(crate) subcommand: Subcommand,
    /// A client is to print JSON.
    pub(crate) json: bool,
    /// The file that it names.
    pub(crate) config: Option<PathBuf>,
    pub(crate) options: Options,
    /// The external program; empty when none is named.
    pub(crate) program: Vec<OsString>,
}

/// Reads a command line, the program's name first.
///
/// # Errors
/// When it is wrong, and also for `-h`, `--help` and `--version`.
pub(crate) fn parse(
    identity: &Identity,
    args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<CommandLine, clap::Error> {
    let mut command = command(identity);
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    command
        .try_get_matches_from_mut(&args)
        .and_then(|mut matches| TopLevel::from_arg_matches_mut(&mut matches))
        .map(CommandLine::from)
        .map_err(|error| {
            let help = error.kind() == ErrorKind::DisplayHelp;
            if help && error.to_string() == command.render_help().to_string() {
                summary(identity)
            } else if error.kind() == ErrorKind::InvalidUtf8 {
                let message = not_utf8(&args);
                clap::Error::raw(ErrorKind::InvalidUtf8, message).format(&mut command)
            } else {
                with_tip(error, identity).format(&mut command)
            }
        })
}

/// Returns which argument is not text, and of which option it is the value.
fn not_utf8(args: &[OsString]) -> String {
    let wrong = args.iter().position(|argument| argument.to_str().is_none());
    let Some((index, wrong)) = wrong.and_then(|index| Some((index, args.get(index)?))) else {
        return "an argument is not UTF-8".to_owned();
    };
    let shown = printable(&wrong.to_string_lossy());
    let before = index.checked_sub(1).and_then(|index| args[index].to_str());
    let option = match shown.split_once('=') {
        Some((option, _)) if option.starts_with('-') => Some(option),
        _ => before.filter(|word| word.starts_with('-') && !word.contains('=')),
    };
    match option {
        Some(option) => format!("{option}: `{shown}` is not UTF-8 (write it as UTF-8)"),
        None => format!("argument `{shown}` is not UTF-8 (write it as UTF-8)"),
    }
}

#[derive(Parser, Debug)]
#[command(args_conflicts_with_subcommands = true)]
struct TopLevel {
    #[command(subcommand)]
    subcommand: Option<SubcommandArgs>,
    /// Validate the configuration and exit, like the subcommand
    #[arg(long, help_heading = "Configuration")]
    check: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// What configures a server.
#[derive(Args, Debug, Default)]
struct ServerArgs {
    /// Read this TOML file, also at each reload
    #[arg(long, short, value_name = "FILE", help_heading = "Configuration")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
    /// Run this program as the workers, with its arguments, instead of a stock app
    #[arg(last = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

/// The most slots and workers.
const SLOTS: u32 = Slot::MAX as u32;

/// Reads the number of an event.
fn event_number(text: &str) -> Result<u64, InvalidValue> {
    text.parse().map_err(|_| {
        invalid!("`{text}` is no number of an event (`events --json` shows them: seq)")
    })
}

/// How to find the running server.
#[derive(Args, Debug)]
struct ClientArgs {
    /// Connect to the control socket at this path
    #[arg(long, value_name = "PATH", help_heading = "Control", value_hint = ValueHint::AnyPath)]
    control: Option<Parsed<Control>>,
    /// Find the control socket by this configuration file
    #[arg(long, short, value_name = "FILE", help_heading = "Configuration",
        value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// Find the server that was started with this --name
    #[arg(long, value_name = "NAME", help_heading = "Control")]
    name: Option<Parsed<ServerName>>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Subcommand, Debug)]
enum SubcommandArgs {
    /// Validate the configuration and exit
    Check {
        /// Print every option with its value, as a configuration file
        #[arg(long, help_heading = "Configuration")]
        print: bool,
        #[command(flatten)]
        server: Box<ServerArgs>,
    },
    /// Show the state of the server and its workers
    Status {
        /// Exit with 1 unless the server is ready, for health checks and probes
        ///
        /// Prints only the state. Ready means the same as for /readyz.
        #[arg(long)]
        check: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Reload configuration and program
    Reload {
        /// Wait for the result; exit with 1 and the reason when the reload was rejected
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Upgrade the supervisor in place: same pid, sockets and workers
    Upgrade {
        /// Wait for the result; exit with 1 and the reason when the new program cannot take over
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Drain workers and stop
    Stop {
        /// Stop immediately, without draining
        #[arg(long)]
        now: bool,
        /// Return when the supervisor has ended
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Run N workers until the next reload
    Scale {
        /// Number of workers
        #[arg(value_name = "N", allow_negative_numbers = true)]
        workers: Parsed<Whole<0, SLOTS, u16>>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Replace the worker of a slot
    ///
    /// The new one is ready before the old one drains. Exits with 1 and the reason when that fails.
    RestartWorker {
        /// Number of the slot, as `status` shows it
        #[arg(allow_negative_numbers = true)]
        slot: Parsed<Whole<0, SLOTS, u16>>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Drain the worker of a slot
    ///
    /// Keeps the slot empty until restart-worker or a reload fills it.
    Drain {
        /// Number of the slot, as `status` shows it
        #[arg(allow_negative_numbers = true)]
        slot: Parsed<Whole<0, SLOTS, u16>>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show what has happened
    Events {
        /// Wait for more events until interrupted
        #[arg(long, short)]
        follow: bool,
        /// Show only the last N
        #[arg(long, short = 'n', value_name = "N", allow_negative_numbers = true)]
        recent: Option<Parsed<Whole<0, { u32::MAX }>>>,
        /// Show only those after this number
        #[arg(long, value_name = "NUMBER", value_parser = event_number)]
        since: Option<u64>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show the running server's options, and where each was set
    Config {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Watch and operate the server on the terminal
    Top {
        /// Refresh this often
        #[arg(long, value_name = "DURATION", default_value = "1s")]
        interval: Parsed<Time<100, 3_600_000>>,
        /// Print frames as plain text, or with --json as JSON, instead of using the terminal
        #[arg(long, short)]
        batch: bool,
        /// Exit after N frames
        #[arg(long, short = 'n', value_name = "N", allow_negative_numbers = true)]
        count: Option<Parsed<Whole<0, { u32::MAX }>>>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Print the man page
    Man,
    /// Print completions for a shell
    Completions {
        /// bash, elvish, fish, powershell or zsh
        shell: Shell,
    },
}

impl From<TopLevel> for CommandLine {
    fn from(top_level: TopLevel) -> Self {
        let TopLevel {
            subcommand,
            check,
            server,
        } = top_level;
        let Some(subcommand) = subcommand else {
            let subcommand = if check {
                Subcommand::Check { print: false }
            } else {
                Subcommand::Serve
            };
            return Self::of_server(subcommand, server);
        };
        match subcommand {
            SubcommandArgs::Check { print, server } => {
                Self::of_server(Subcommand::Check { print }, *server)
            }
            SubcommandArgs::Status { check, client } => {
                Self::of_client(Subcommand::Status { check }, client)
            }
            SubcommandArgs::Events {
                follow,
                recent,
                since,
                client,
            } => {
                let events = Subcommand::Events {
                    follow,
                    recent: recent.map(|Parsed(recent)| recent),
                    since,
                };
                Self::of_client(events, client)
            }
            SubcommandArgs::Scale { workers, client } => {
                Self::of_client(Subcommand::Scale(workers.0), client)
            }
            SubcommandArgs::RestartWorker { slot, client } => {
                Self::of_client(Subcommand::RestartWorker(slot.0), client)
            }
            SubcommandArgs::Drain { slot, client } => {
                Self::of_client(Subcommand::Drain(slot.0), client)
            }
            SubcommandArgs::Config { client } => Self::of_client(Subcommand::Config, client),
            SubcommandArgs::Top {
                interval: Parsed(interval),
                batch,
                count,
                client,
            } => {
                let top = Subcommand::Top {
                    interval,
                    batch,
                    count: count.map(|Parsed(count)| count),
                };
                Self::of_client(top, client)
            }
            SubcommandArgs::Reload { wait, client } => {
                Self::of_client(Subcommand::Reload { wait }, client)
            }
            SubcommandArgs::Upgrade { wait, client } => {
                Self::of_client(Subcommand::Upgrade { wait }, client)
            }
            SubcommandArgs::Stop { now, wait, client } => {
                Self::of_client(Subcommand::Stop { now, wait }, client)
            }
            SubcommandArgs::Man => Self::of_server(Subcommand::Man, ServerArgs::default()),
            SubcommandArgs::Completions { shell } => {
                Self::of_server(Subcommand::Completions(shell), ServerArgs::default())
            }
        }
    }
}

impl CommandLine {
    fn of_server(subcommand: Subcommand, server: ServerArgs) -> Self {
        let ServerArgs {
            config,
            options,
            program,
        } = server;
        Self {
            subcommand,
            json: false,
            config,
            options,
            program,
        }
    }

    fn of_client(subcommand: Subcommand, client: ClientArgs) -> Self {
        let ClientArgs {
            control,
            config,
            name,
            json,
        } = client;
        Self {
            subcommand,
            json,
            config,
            options: Options {
                name,
                control,
                ..Options::default()
            },
            program: Vec::new(),
        }
    }
}

/// The options that `-h` shows, in its order.
pub(crate) const COMMON: [&str; 13] = [
    "config",
    "bind",
    "workers",
    "app",
    "class",
    "env",
    "user",
    "max-requests",
    "hang-timeout",
    "graceful-timeout",
    "log-level",
    "access-log",
    "admin",
];

const SIGNALS: &str = "\
Signals:
  HUP         reload configuration and program; the old workers serve until the
              new ones are ready
  TERM, QUIT  stop: after pre-stop-delay, workers drain within graceful-timeout;
              a second one skips the delay, or ends the drain
  INT         stop immediately
  USR1        reopen the log file and the access log
  USR2        upgrade the supervisor in place: same pid, sockets and workers; a
              reload does so, too, when the program was replaced on disk
  WINCH       drain all workers, keep the sockets
  TTIN, TTOU  one worker more, one fewer";

const PRECEDENCE: &str = "\
Precedence:
  Every option --NAME can be set as SUPERVISOR_NAME in the environment and as NAME
  in the file: --max-workers 8, SUPERVISOR_MAX_WORKERS=8, max-workers = 8. A flag
  overrides the environment, which overrides the file. An empty variable counts as
  not set. An option that can be repeated takes a list: values separated by spaces
  in a variable, [\"A\", \"B\"] in the file.
  Durations have a unit: 500ms, 30s, 1m 30s. So can sizes: 64KiB is 65536 bytes,
  64KB is 64000.
  Only the file can hold: command = [\"PROGRAM\", \"ARGUMENT\"] and, at its end,
  a table [env] with a line for each of the workers' variables.";

const STATUS: &str = "\
Exit status:
  0  stopped as requested; the configuration is valid; the request was granted
  1  no worker could start; the request was rejected, no server is running, or
     it does not answer; it is not ready (status --check)
  2  the command line, the environment or the file is invalid";

/// Returns the whole command line, for parsing and help.
pub(crate) fn command(identity: &Identity) -> Command {
    let name = &identity.name;
    let examples = examples(identity);
    let linked = identity.linked;
    let finish = move |command: Command| command.mut_args(|arg| describe(arg, linked));
    finish(TopLevel::command())
        .mut_subcommand("check", finish)
        .name(name.clone())
        .bin_name(name.clone())
        .version(identity.version.clone())
        .about(identity.about.clone())
        .after_long_help([PRECEDENCE, SIGNALS, STATUS, &examples].join("\n\n"))
}

/// Returns what `-h` prints, as the error that makes clap print it.
fn summary(identity: &Identity) -> clap::Error {
    let name = &identity.name;
    let order = |arg: &Arg| {
        let name = arg.get_id().as_str().replace('_', "-");
        COMMON.iter().position(|common| *common == name)
    };
    let program = if identity.linked {
        ""
    } else {
        " [-- PROGRAM ARGUMENT...]"
    };
    let usage = format!("{name} [OPTIONS]{program}\n       {name} COMMAND [OPTIONS]");
    let commands = "Commands:\n  \
                    check                              Validate the configuration\n  \
                    status, events, config, top        Show the running server\n  \
                    reload, upgrade, stop, scale, restart-worker, drain    Operate it\n  \
                    help COMMAND, man, completions SHELL    Explain";
    let more = format!(
        "Options can also be set in the environment (SUPERVISOR_WORKERS=4) and in the file\n\
         (workers = 4). {name} --help lists all of them, signals, exit status and examples."
    );
    command(identity)
        .mut_args(|arg| {
            let position = order(&arg);
            let hidden = arg.is_hide_set() || position.is_none();
            arg.hide(hidden)
                .help_heading(None)
                .display_order(position.unwrap_or_default())
        })
        .help_template(
            "{about-with-newline}\n{usage-heading} \
            {usage}\n\n{before-help}Options:\n{options}{after-help}",
        )
        .override_usage(usage)
        .before_help(commands)
        .after_help(more)
        .try_get_matches_from([name.as_str(), "-h"])
        .expect_err("asked for help")
}

fn examples(identity: &Identity) -> String {
    let name = &identity.name;
    let own = format!("{name} check --config /etc/{name}.toml\n  {name} reload --wait");
    let others = format!(
        "{name} --app files:/srv/www --bind 0.0.0.0:80 --bind '[::]:80'\n  {name} --workers 4 -- \
         python3 app.py\n  "
    );
    let others = if identity.linked { "" } else { &others };
    format!("Examples:\n  {name} --workers 8\n  {others}{own}")
}

/// The man page, in roff.
pub(crate) fn man(identity: &Identity) -> Vec<u8> {
    let name = &identity.name;
    let program = if identity.linked {
        ""
    } else {
        " [-- PROGRAM ARGUMENT...]"
    };
    let synopsis = format!(
        "Synopsis:\n  {name} [OPTIONS]{program}\n  {name} check [--print] [OPTIONS]{program}\n  {name} status [--check]\n  \
         {name} events [--follow]\n  {name} config\n  {name} top\n  {name} reload [--wait]\n  {name} upgrade [--wait]\n  \
         {name} stop [--now] [--wait]\n  {name} scale N\n  {name} restart-worker SLOT\n  {name} drain SLOT\n  \
         {name} help [COMMAND]\n  {name} man\n  {name} completions SHELL"
    );
    let man = clap_mangen::Man::new(command(identity)).section("8");
    let mut page = Vec::new();
    man.render_title(&mut page)
        .and_then(|()| man.render_name_section(&mut page))
        .and_then(|()| page.write_all(section(&synopsis).as_bytes()))
        .and_then(|()| man.render_options_section(&mut page))
        .and_then(|()| man.render_subcommands_section(&mut page))
        .expect("memory takes every byte");
    for text in [PRECEDENCE, SIGNALS, STATUS, &examples(identity)] {
        page.extend_from_slice(section(text).as_bytes());
    }
    page
}

/// A section of the man page, from text with its heading in the first line, as `--help` has it.
fn section(text: &str) -> String {
    let (heading, body) = text.split_once('\n').unwrap_or((text, ""));
    let heading = heading.trim_end_matches(':').to_uppercase();
    // No line of ours begins with a dot, which roff would obey.
    let body = body
        .replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq");
    format!(".SH \"{heading}\"\n.nf\n{body}\n.fi\n")
}

/// A shell's completions.
pub(crate) fn completions(identity: &Identity, shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(
        shell,
        &mut command(identity),
        identity.name.clone(),
        &mut script,
    );
    script
}

/// Adds to an option's help its default and the workers to which it applies, and hides it where it
/// makes no sense.
fn describe(arg: Arg, linked: bool) -> Arg {
    let name = arg.get_id().as_str().replace('_', "-");
    let hint = hint(&arg);
    let arg = if hint == ValueHint::Unknown {
        arg
    } else {
        arg.value_hint(hint)
    };
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let long_help = arg.get_long_help().map(ToString::to_string);
    let long_help = long_help.unwrap_or_else(|| help.clone());
    let arg = arg.hide_short_help(!COMMON.contains(&name.as_str()));
    if name == "config" {
        return arg.long_help(format!("{long_help}\n\n[env: {PREFIX}CONFIG]"));
    }
    let Some(setting) = super::options::setting(&name) else {
        return arg.hide(linked && name == "program");
    };
    let scope = match setting.applies {
        Applies::All | Applies::Stock => "",
        Applies::Rust => " [for stock apps and Rust services]",
        Applies::Threads => " [for class threads]",
        Applies::Async => " [for class async]",
        Applies::External => " [for external programs]",
        Applies::Range => " [for a range of workers]",
    };
    let (Preset::Given(preset) | Preset::Computed(preset)) = setting.preset;
    let help = match setting.preset {
        Preset::Given(preset) => format!("{help} [default: {preset}]"),
        Preset::Computed(_) => help,
    };
    let refused = linked && matches!(setting.applies, Applies::Stock | Applies::External);
    let of_service = |text: &str| {
        if linked {
            in_a_service(text)
        } else {
            text.to_owned()
        }
    };
    let (help, long_help) = (of_service(&help), of_service(&long_help));
    let preset = of_service(preset);
    let scope = if linked && setting.applies == Applies::Rust {
        ""
    } else {
        scope
    };
    // The help shows the values in place of the value, or in its text.
    arg.help(help)
        .hide_possible_values(true)
        .long_help(format!("{long_help}\n\n[default: {preset}]{scope}"))
        .hide(refused)
}

/// Returns a text about an option for a program that brings its own service: without what is true of
/// stock apps and external programs only.
fn in_a_service(text: &str) -> String {
    [
        (
            "best-effort for stock apps, with --user, and where",
            "best-effort with --user, and where",
        ),
        (
            "everything; for stock apps nothing but what they serve",
            "everything",
        ),
        ("everything; for stock apps nothing", "everything"),
        ("deny for stock apps, allow for others", "allow"),
        (
            "enforce for stock apps and with --user, off for others",
            "enforce with --user, else off",
        ),
        (" External programs never steal.", ""),
        (" An external program that was never seen to wait for connections may still be starting: it has --start-timeout.", ""),
        (", as in a program's arguments", ""),
    ]
    .iter()
    .fold(text.to_owned(), |text, (others, own)| {
        text.replace(others, own)
    })
}

/// Returns what a shell completes an option's value with, by what `--help` shows in its place.
fn hint(arg: &Arg) -> ValueHint {
    let Some([shown]) = arg.get_value_names() else {
        return ValueHint::Unknown;
    };
    match shown.as_str() {
        "FILE" | "FILE|-" | "FILE|-|off" => ValueHint::FilePath,
        "DIR" | "auto|off|DIR" => ValueHint::DirPath,
        "PATH" | "PATH|off" => ValueHint::AnyPath,
        "USER" => ValueHint::Username,
        "PROGRAM" => ValueHint::CommandName,
        _ => ValueHint::Unknown,
    }
}

/// Returns the command that a stray word may have been meant to be.
fn command_like(stray: &str) -> Option<String> {
    let command = TopLevel::command();
    let names = || command.get_subcommands().map(Command::get_name);
    let longer = names().find(|name| stray.len() >= 3 && name.starts_with(stray));
    longer
        .or_else(|| nearest(stray, names()))
        .map(str::to_owned)
}

/// Adds to an error about a stray word what was probably meant.
fn with_tip(mut error: clap::Error, identity: &Identity) -> clap::Error {
    let stray = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(word)) if error.kind() == ErrorKind::UnknownArgument => {
            word.clone()
        }
        _ => return error,
    };
    let name = &identity.name;
    let tip = if stray.starts_with('-') {
        return error;
    } else if TopLevel::command().find_subcommand(&stray).is_some() {
        format!("`{stray}` comes first: {name} {stray} [OPTIONS]")
    } else if let Some(near) = command_like(&stray) {
        format!("did you mean `{name} {near}`? (`{name} help` lists the commands)")
    } else if identity.linked {
        return error;
    } else {
        format!("a program comes after `--`: {name} [OPTIONS] -- {stray}")
    };
    error.insert(
        ContextKind::Suggested,
        ContextValue::StyledStrs(vec![tip.into()]),
    );
    error
}
