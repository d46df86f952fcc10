//! The command line: its shape, its help, its man page.

use super::options::{Options, Preset, SETTINGS};
use clap::{Arg, ArgAction, Args, Command, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use std::ffi::OsString;
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
            version: env!("CARGO_PKG_VERSION").to_owned(),
            about: "Prefork server: binds, forks, heals and reloads without losing a connection".to_owned(),
            linked: false,
        }
    }

    /// A program of this name that brings its own service.
    pub fn linked(name: impl Into<String>) -> Self {
        let name = name.into();
        Self { about: format!("{name}, served by prefork workers"), name, linked: true, ..Self::supervisor() }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Serve.
    Serve,
    /// Validate the configuration and exit.
    Check,
    /// Ask the running server how it is.
    Status {
        /// Answer in JSON.
        json: bool,
    },
    /// Ask the running server to reload.
    Reload {
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
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) verb: Option<Verb>,
    /// Validate the configuration and exit, like the subcommand
    #[arg(long, help_heading = "Configuration")]
    pub(super) check: bool,
    #[command(flatten)]
    pub(super) typed: Typed,
}

/// What a server is configured by.
#[derive(Args, Debug, Default)]
pub(super) struct Typed {
    /// Configuration file in TOML, read again at each reload
    #[arg(long, short, value_name = "FILE", help_heading = "Configuration")]
    pub(super) config: Option<PathBuf>,
    #[command(flatten)]
    pub(super) options: Options,
    /// Program to run as the workers, with its arguments, instead of a stock app
    #[arg(last = true, value_name = "PROGRAM")]
    pub(super) program: Vec<OsString>,
}

/// How to find the running server.
#[derive(Args, Debug)]
pub(super) struct Reach {
    /// Path of the running server's control socket
    #[arg(long, value_name = "PATH", help_heading = "Control")]
    pub(super) control: Option<super::words::Typed<super::Control>>,
    /// Configuration file that names the control socket
    #[arg(long, short, value_name = "FILE", help_heading = "Configuration")]
    pub(super) config: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// Validate the configuration and exit
    Check {
        #[command(flatten)]
        typed: Box<Typed>,
    },
    /// Tell how the running server and its workers are
    Status {
        /// Answer in JSON
        #[arg(long)]
        json: bool,
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
    /// Make the running server drain and stop
    Stop {
        /// Stop at once, without draining
        #[arg(long)]
        now: bool,
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
  HUP         reload configuration and program; the old workers serve until the new ones are ready
  TERM, QUIT  drain and stop within graceful-timeout; a second one stops at once
  INT         stop at once
  USR1        reopen the log file
  USR2        upgrade this program in place
  WINCH       drain all workers, keep the sockets
  TTIN, TTOU  one worker more, one fewer";

const PRECEDENCE: &str = "\
Each option can also be set by its variable (an empty one counts as not set) and by its name in the file:
a flag wins over the environment, which wins over the file. Times have a unit (500ms, 30s, 1m 30s). The file
may also say `command = [\"PROGRAM\", \"ARGUMENT\"]`, and hold a table `[env]`.";

/// The whole command line, for parsing, help, man page and completions.
pub fn command(identity: &Identity) -> Command {
    let name = &identity.name;
    let examples = if identity.linked {
        format!("Examples:\n  {name} --workers 8\n  {name} --config app.toml check\n  {name} reload --wait")
    } else {
        format!(
            "Examples:\n  {name} --workers 8\n  {name} --app files:/srv/www --bind 0.0.0.0:80 --bind '[::]:80'\n  \
             {name} --workers 4 -- python3 app.py\n  {name} check --config /etc/supervisor.toml\n  {name} reload --wait"
        )
    };
    let linked = identity.linked;
    let describe = move |command: Command| {
        command.mut_args(|arg| describe(arg)).mut_args(|arg| {
            let hide = linked && matches!(arg.get_id().as_str(), "app" | "program");
            arg.hide(hide)
        })
    };
    describe(Cli::command())
        .mut_subcommand("check", describe)
        .name(name.clone())
        .bin_name(name.clone())
        .version(identity.version.clone())
        .about(identity.about.clone())
        .after_help(format!("{SIGNALS}\n\n{examples}\n\n{PRECEDENCE}"))
}

/// Adds an option's default and variable to its help.
fn describe(arg: Arg) -> Arg {
    let id = arg.get_id().as_str().to_owned();
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    if id == "config" {
        return arg.help(format!("{help} [env: {}CONFIG]", super::options::PREFIX));
    }
    let Some(setting) = SETTINGS.iter().find(|setting| setting.name().replace('-', "_") == id) else {
        return arg;
    };
    let (Preset::Given(preset) | Preset::Computed(preset)) = setting.preset;
    let several = if matches!(arg.get_action(), ArgAction::Append) { ", separated by blanks" } else { "" };
    arg.help(format!("{help} [default: {preset}] [env: {}{several}]", setting.variable()))
}
