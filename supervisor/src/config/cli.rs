//! The command line: its shape, its help, its man page.

use super::options::{Options, Preset, SETTINGS};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Args, Command, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
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
    /// Whether it brings a service of its own, so that it runs neither a stock app nor another program.
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
pub enum Act {
    /// Serve.
    Serve,
    /// Validate the configuration and exit.
    Check {
        /// Print what is true, by [`Config::render`](super::Config::render).
        print: bool,
    },
    /// Ask the running server how it is.
    Status,
    /// Ask the running server for this many workers.
    Scale(u16),
    /// Ask the running server to replace a slot's worker.
    RestartWorker(u16),
    /// Ask the running server to empty a slot.
    Drain(u16),
    /// Ask the running server what has happened.
    Events {
        /// Go on telling.
        follow: bool,
        /// Only the last so many.
        recent: Option<u32>,
        /// Only those after this number.
        since: Option<u64>,
    },
    /// Ask the running server what its settings are.
    Config,
    /// Show the running server.
    Top {
        /// From one look to the next.
        interval: std::time::Duration,
        /// Print frames instead.
        batch: bool,
        /// So many looks.
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
    },
    /// Print the man page.
    Man,
    /// Print completions for this shell.
    Completions(Shell),
}

#[derive(Parser, Debug)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
    /// Validate the configuration and exit, like the subcommand
    #[arg(long, help_heading = "Configuration")]
    pub(crate) check: bool,
    #[command(flatten)]
    pub(crate) typed: Typed,
}

/// What a server is configured by.
#[derive(Args, Debug, Default)]
pub(crate) struct Typed {
    /// Configuration file in TOML, read again at each reload
    #[arg(long, short, value_name = "FILE", help_heading = "Configuration")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: Options,
    /// Program to run as the workers, with its arguments, instead of a stock app
    #[arg(last = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<OsString>,
}

/// How to find the running server.
#[derive(Args, Debug)]
pub(crate) struct Reach {
    /// Path of the running server's control socket
    #[arg(long, value_name = "PATH", help_heading = "Control")]
    pub(crate) control: Option<super::reader::Typed<super::Control>>,
    /// Configuration file that names the control socket
    #[arg(long, short, value_name = "FILE", help_heading = "Configuration")]
    pub(crate) config: Option<PathBuf>,
    /// Name of the running server, as its --name says
    #[arg(long, value_name = "NAME", help_heading = "Control")]
    pub(crate) name: Option<super::reader::Typed<super::words::ServerName>>,
    /// Answer in JSON, as docs/control.md has it
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Verb {
    /// Validate the configuration and exit
    Check {
        /// Print every setting with the value that it has, as a configuration file
        #[arg(long, help_heading = "Configuration")]
        print: bool,
        #[command(flatten)]
        typed: Box<Typed>,
    },
    /// Tell how the running server and its workers are
    Status {
        #[command(flatten)]
        reach: Reach,
    },
    /// Make the running server reload its configuration and program
    Reload {
        /// Wait for the verdict; exit with 1 and the reason when the reload was refused
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        reach: Reach,
    },
    /// Make the running server upgrade its own program in place: same pid, sockets and workers
    Upgrade {
        /// Wait for the verdict; exit with 1 and the reason when the new program cannot take over
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        reach: Reach,
    },
    /// Make the running server drain and stop
    Stop {
        /// Stop at once, without draining
        #[arg(long)]
        now: bool,
        #[command(flatten)]
        reach: Reach,
    },
    /// Make the running server have N workers, until the next reload
    Scale {
        /// How many
        #[arg(value_name = "N")]
        workers: u16,
        #[command(flatten)]
        reach: Reach,
    },
    /// Replace the worker of a slot: the new one is ready before the old one drains; exit with 1 and the reason when it fails
    RestartWorker {
        /// The slot's number, as `status` tells it
        slot: u16,
        #[command(flatten)]
        reach: Reach,
    },
    /// Drain the worker of a slot, and hold the slot empty until restart-worker or a reload fills it
    Drain {
        /// The slot's number, as `status` tells it
        slot: u16,
        #[command(flatten)]
        reach: Reach,
    },
    /// Tell what has happened in the running server
    Events {
        /// Go on telling, until interrupted
        #[arg(long, short)]
        follow: bool,
        /// Only the last N
        #[arg(long, short = 'n', value_name = "N")]
        recent: Option<u32>,
        /// Only those after this number
        #[arg(long, value_name = "NUMBER")]
        since: Option<u64>,
        #[command(flatten)]
        reach: Reach,
    },
    /// Tell the running server's settings, and where each came from
    Config {
        #[command(flatten)]
        reach: Reach,
    },
    /// Show the running server on the terminal, with keys to operate it
    Top {
        /// How long from one look to the next
        #[arg(long, value_name = "TIME", default_value = "1s")]
        interval: super::reader::Typed<super::words::Span<100, 3_600_000>>,
        /// Print frames as plain text (with --json as JSON) instead of taking the terminal
        #[arg(long, short)]
        batch: bool,
        /// Leave after N frames
        #[arg(long, short = 'n', value_name = "N")]
        count: Option<u32>,
        #[command(flatten)]
        reach: Reach,
    },
    /// Print the man page
    #[command(hide = true)]
    Man,
    /// Print completions for a shell
    #[command(hide = true)]
    Completions {
        /// bash, elvish, fish, powershell or zsh
        shell: Shell,
    },
}

const SIGNALS: &str = "\
Signals:
  HUP         reload configuration and program; the old workers serve until the
              new ones are ready
  TERM, QUIT  stop: after pre-stop-delay, workers drain within graceful-timeout;
              a second one does not wait for the delay, or ends the drain
  INT         stop at once
  USR1        reopen the log file and the access log
  USR2        upgrade this program in place: same pid, sockets and workers; a
              reload does so, too, when it finds the program replaced on disk
  WINCH       drain all workers, keep the sockets
  TTIN, TTOU  one worker more, one fewer";

const PRECEDENCE: &str = "\
Precedence:
  Each option can also be set by its variable, and by its name in the file
  (workers = 8). A flag wins over the environment, which wins over the file. An
  empty variable counts as not set. Times have a unit: 500ms, 30s, 1m 30s.
  Only the file can hold: command = [\"PROGRAM\", \"ARGUMENT\"] and, at its end,
  a table [env] with a line for each of the workers' variables.";

const STATUS: &str = "\
Exit status:
  0  stopped as asked; the configuration is right; the request was granted
  1  no worker could start; the request was refused, or no server runs
  2  the command line, the environment or the file is wrong";

/// The whole command line, for parsing and help.
pub(crate) fn command(identity: &Identity) -> Command {
    let name = &identity.name;
    let examples = examples(identity);
    let linked = identity.linked;
    let finish = move |command: Command| {
        command.mut_args(describe).mut_args(|arg| {
            let hide = linked && matches!(arg.get_id().as_str(), "app" | "program");
            arg.hide(hide)
        })
    };
    finish(Cli::command())
        .mut_subcommand("check", finish)
        .name(name.clone())
        .bin_name(name.clone())
        .version(identity.version.clone())
        .about(identity.about.clone())
        .after_help([PRECEDENCE, SIGNALS, STATUS, &examples].join("\n\n"))
}

fn examples(identity: &Identity) -> String {
    let name = &identity.name;
    let own = format!("{name} check --config /etc/{name}.toml\n  {name} reload --wait");
    let others = format!(
        "{name} --app files:/srv/www --bind 0.0.0.0:80 --bind '[::]:80'\n  {name} --workers 4 -- python3 app.py\n  "
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
        "Synopsis:\n  {name} [OPTIONS]{program}\n  {name} check [--print] [OPTIONS]{program}\n  {name} status\n  \
         {name} events [--follow]\n  {name} config\n  {name} top\n  {name} reload [--wait]\n  {name} upgrade [--wait]\n  \
         {name} stop [--now]\n  {name} scale N\n  {name} restart-worker SLOT\n  {name} drain SLOT"
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

/// Adds an option's default and variable to its help.
fn describe(arg: Arg) -> Arg {
    let id = arg.get_id().as_str().to_owned();
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    if id == "config" {
        return arg.help(format!("{help} [env: {}CONFIG]", super::options::PREFIX));
    }
    let Some(setting) = SETTINGS
        .iter()
        .find(|setting| setting.name().replace('-', "_") == id)
    else {
        return arg;
    };
    let (Preset::Given(preset) | Preset::Computed(preset)) = setting.preset;
    let several = if matches!(arg.get_action(), ArgAction::Append) {
        ", separated by blanks"
    } else {
        ""
    };
    arg.help(format!(
        "{help} [default: {preset}] [env: {}{several}]",
        setting.variable()
    ))
}

/// Adds to an error about a stray word what was probably meant.
pub(crate) fn with_tip(mut error: clap::Error, identity: &Identity) -> clap::Error {
    let stray = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(word)) if error.kind() == ErrorKind::UnknownArgument => {
            word.clone()
        }
        _ => return error,
    };
    let name = &identity.name;
    let tip = if stray.starts_with('-') {
        return error;
    } else if Cli::command().find_subcommand(&stray).is_some() {
        format!("`{stray}` comes first: {name} {stray} [OPTIONS]")
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
