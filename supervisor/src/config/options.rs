//! The table of options, and what the compiler makes of it.
//!
//! A row holds all that there is to say about an option: its name, which gives the flag
//! (`--max-workers`), the variable (`SUPERVISOR_MAX_WORKERS`) and the key in the file
//! (`max-workers`); its help; the kind of its value, which reads and writes it; what `--help` shows
//! in place of the value; its default; the workers to which it applies; and its place in
//! [`Config`]. A default is text, which is read by the same reader as what a user types.
//!
//! # A new option
//!
//! One row, and whatever uses the new field of [`Config`]. Only if the option is of an unusual
//! kind, something else must be touched:
//!
//! * A new kind of value: an `impl ConfigValue` in `values.rs`, or `keywords!` for an enum.
//! * A check against other options: in `resolve.rs`. The row stays as it is.
//! * A field that is made of several options, like `Config::sandbox`: the row ends with
//!   `in |config| ..`, which finds the option's value in the configuration, and the field stands in
//!   the block `checked` after the table. The compiler then asks for the field in `resolve.rs`.
//! * An option that most people need: its name in `COMMON` in `command_line.rs`, so
//!   that `-h` shows it.
//!
//! `UPDATE_DOCS=1 cargo test --test docs` then writes it into `docs/configuration.md`.
//!
//! The table does not know what options mean together, nor which program is to run.

use super::admin::Admin;
use super::bind::Bind;
use super::cgroups::{Cpus, WorkerCount};
use super::clean_exits::CleanExits;
use super::hooks::{Hooks, Kind};
use super::privileges::{Capabilities, CoreDumps, Name, NamedGroup, OnOff, Privileges};
use super::reader::{InvalidValue, OptionValue, Parsed, Text};
use super::ready::Ready;
use super::sandbox::{Limit, Permission, Sandbox, SandboxMode, Seccomp};
use super::types::{
    AccessTarget, Cgroups, Control, KillMode, LogFormat, LogSettings, Program, Surge, WorkerStderr,
};
use super::values::{
    DAY, FilePath, LogFile, OrNever, OrOff, ServerName, Size, StopSignal, Time, Variable, Whole,
    YEAR,
};
use log::LevelFilter;
use nix::sys::signal::Signal;
use prefork_core::Share;
use prefork_protocol::access_log::Format;
use prefork_protocol::settings::{Accept, ClassName};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// The value of an option that is not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Preset {
    /// This value, as it would be typed.
    Given(&'static str),
    /// What these words say.
    Computed(&'static str),
}

/// The workers to which an option applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applies {
    /// All.
    All,
    /// Those of a stock app.
    Stock,
    /// Those that are written in Rust: stock apps and linked services.
    Rust,
    /// Those of them that are of class threads.
    Threads,
    /// Those of them that are of class async.
    Async,
    /// Those that run an external program.
    External,
    /// All, when their number is a range.
    Range,
}

/// An option: one row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    /// Its name in Rust, as in `max_workers`.
    identifier: &'static str,
    /// The heading under which `--help` shows it.
    #[cfg(test)]
    pub(crate) heading: &'static str,
    /// The value when it is not set.
    pub(crate) preset: Preset,
    /// The workers to which it applies.
    pub(crate) applies: Applies,
}

impl Setting {
    /// Returns its name on the command line and in the file, as in `max-workers`.
    pub(crate) fn name(&self) -> String {
        self.identifier.replace('_', "-")
    }

    /// Returns its environment variable, as in `SUPERVISOR_MAX_WORKERS`.
    pub(crate) fn variable(&self) -> String {
        format!("{PREFIX}{}", self.identifier.to_ascii_uppercase())
    }
}

/// The options that a reload cannot change: what they configure is made once.
pub(crate) const READ_AT_START: [&str; 7] = [
    "cgroups",
    "control",
    "control-readers",
    "log-file",
    "log-format",
    "name",
    "supervisor-user",
];

/// What every variable begins with.
pub(crate) const PREFIX: &str = "SUPERVISOR_";

/// Finds an option by its name on the command line and in the file.
pub(crate) fn setting(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name() == name)
}

/// Writes the value of the option that `_option` finds.
fn write<V: OptionValue>(_option: fn(&Options) -> &Option<V>, value: &V::Resolved) -> String {
    V::write(value)
}

/// What a row's field holds, and how it is written, unless the row says where it is found.
macro_rules! field {
    (resolve $option:expr) => {
        OptionValue::resolve($option)
    };
    (resolve $option:expr, if_set) => {
        $option.map(|value| OptionValue::resolve(Some(value)))
    };
    (write $option:expr, $value:expr) => {
        Some(write($option, &$value))
    };
    (write $option:expr, $value:expr, if_set) => {
        $value.as_ref().map(|value| write($option, value))
    };
}

macro_rules! settings {
    (
        $($heading:literal {$(
            $(#[doc = $doc:literal])+
            $name:ident: ($($type:tt)+) as $value:literal
                = $how:ident($preset:literal), $applies:ident
            $(=> $field:ty $(, $if_set:ident)?;)?
            $(in |$config:ident| $written:expr;)?
        )+})+
        checked {$(
            $(#[doc = $checked_doc:literal])+
            $checked:ident: $checked_type:ty;
        )+}
    ) => {
        /// What one layer (the command line, the environment, the file, the defaults) sets.
        #[derive(clap::Args, Debug, Clone, Default)]
        pub(crate) struct Options {$($(
            $(#[doc = $doc])+
            #[arg(
                long,
                help_heading = $heading,
                value_name = $value,
                allow_negative_numbers = true
            )]
            pub(crate) $name: Option<$($type)+>,
        )+)+}

        /// Every option, in the order of `--help`.
        pub(crate) const SETTINGS: &[Setting] = &[$($(
            Setting {
                identifier: stringify!($name),
                #[cfg(test)]
                heading: $heading,
                preset: Preset::$how($preset),
                applies: Applies::$applies,
            },
        )+)+];

        /// A configuration in which everything has been checked.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Config {
            $($($(
                #[doc = concat!("The option `", stringify!($name), "`, as its row describes it.")]
                pub $name: $field,
            )?)+)+
            $(
                $(#[doc = $checked_doc])+
                pub $checked: $checked_type,
            )+
        }

        /// The fields of [`Config`] that are made of several options.
        #[derive(Debug)]
        pub(crate) struct Checked {$(
            pub(crate) $checked: $checked_type,
        )+}

        impl Config {
            /// Makes it of options that include the defaults.
            pub(crate) fn new(all: Options, checked: Checked) -> Self {
                Self {
                    $($($(
                        $name: {
                            // Says the type, which makes it a part of this repetition.
                            let value: $field = field!(resolve all.$name $(, $if_set)?);
                            value
                        },
                    )?)+)+
                    $($checked: checked.$checked,)+
                }
            }

            /// Writes an option's value as the file has it; `None` for one that is not set.
            pub(crate) fn written(&self, setting: &Setting) -> Option<String> {
                match setting.identifier {
                    $($(stringify!($name) => {
                        $({
                            let value: &$field = &self.$name;
                            field!(write |options| &options.$name, *value $(, $if_set)?)
                        })?
                        $({
                            let $config = self;
                            let value = $written;
                            value.map(|value| write(|options| &options.$name, &value))
                        })?
                    })+)+
                    _ => None,
                }
            }
        }

        impl Options {
            /// Returns whether this layer sets it.
            pub(crate) fn sets(&self, setting: &Setting) -> bool {
                match setting.identifier {
                    $($(stringify!($name) => self.$name.is_some(),)+)+
                    _ => false,
                }
            }

            /// Sets it from text.
            pub(crate) fn set(
                &mut self,
                setting: &Setting,
                text: &str,
            ) -> Result<(), InvalidValue> {
                match setting.identifier {
                    $($(stringify!($name) => {
                        self.$name = Some(OptionValue::from_text(text)?);
                    })+)+
                    _ => {}
                }
                Ok(())
            }

            /// Sets it from the file.
            pub(crate) fn set_toml(
                &mut self,
                setting: &Setting,
                value: toml::de::ValueDeserializer<'_>,
            ) -> Result<(), toml::de::Error> {
                match setting.identifier {
                    $($(stringify!($name) => {
                        self.$name = Some(OptionValue::from_toml(value)?);
                    })+)+
                    _ => {}
                }
                Ok(())
            }

            /// Lays this layer over a lower one.
            pub(crate) fn over(self, lower: Self) -> Self {
                Self {$($(
                    $name: match (self.$name, lower.$name) {
                        (Some(upper), Some(lower)) => Some(upper.over(lower)),
                        (upper, lower) => upper.or(lower),
                    },
                )+)+}
            }
        }
    };
}

settings! {
    "Listening" {
        /// Listen on this address
        ///
        /// HOST:PORT, unix:/PATH[,mode=0660][,owner=USER][,group=GROUP], or an inherited socket:
        /// fd://N by its number, fd://NAME by its name in LISTEN_FDNAMES. With ,name=NAME workers
        /// find it under this name there. Can be repeated.
        bind: (Vec<Parsed<Bind>>) as "ADDRESS" = Given("127.0.0.1:8000"), All
            in |config| Some(config.binds.clone());
        /// Let N connections wait in each listening socket's queue
        ///
        /// The kernel caps this at net.core.somaxconn.
        backlog: (Parsed<Whole<1, 1_048_576>>) as "N" = Given("4096"), All => u32;
        /// Choose the queues that a worker accepts from
        ///
        /// own: only the queue of its slot. steal: also its siblings' queues when its own is empty.
        /// shared: one queue for all workers. External programs never steal.
        accept: (Parsed<Accept>) as "own|steal|shared" = Given("steal"), All => Accept;
        /// Start external programs with non-blocking listening sockets
        ///
        /// Off, a program finds them as under systemd: accept waits for a connection. All workers
        /// of a socket share this. As NonBlocking= of systemd.
        nonblocking_sockets: (Parsed<OnOff>) as "on|off" = Given("off"), External => bool;
    }
    "Workers" {
        /// Serve a stock app, like files:DIR
        ///
        /// hello, echo, greeter, files:DIR, sleep or burn.
        app: (Parsed<Text>) as "APP" = Given("hello"), Stock
            in |config| config.program.app().map(str::to_owned);
        /// Run N workers, or MIN to MAX by load
        ///
        /// auto starts one per CPU that affinity, cpuset and the control group's quota leave.
        workers: (Parsed<WorkerCount>) as "N|MIN..MAX|auto" = Given("auto"), All
            in |config| Some(config.worker_count());
        /// Limit the number of workers that TTIN and scale can reach
        max_workers: (Parsed<Whole<1, 1024, u16>>) as "N"
            = Computed("twice the workers, at least 8; of a range, its end"), All
            in |config| Some(config.max_workers);
        /// Retire a worker when it has not been needed for this long
        scale_down_after: (Parsed<Time<1_000, DAY>>) as "DURATION" = Given("60s"), Range
            => Duration;
        /// Start no more workers while all of them together use this much memory
        scale_up_memory: (Parsed<OrOff<Size<1_048_576, 1_125_899_906_842_624>>>) as "SIZE|off"
            = Given("off"), Range => Option<u64>;
        /// Limit how many slots may be out of service at a time
        ///
        /// A number, or a share of the slots that comes to at least one. Counts the slots in which
        /// restart-worker, drain or recycling replaces a worker, and those that are down.
        max_unavailable: (Parsed<Share>) as "N|PERCENT%" = Given("10%"), All => Share;
        /// Choose how many connections a worker serves
        ///
        /// sync: one at a time. threads: one per thread. async: many on one thread.
        class: (Parsed<ClassName>) as "sync|threads|async" = Given("async"), Rust => ClassName;
        /// Run N threads in each worker
        threads: (Parsed<Whole<1, 1024, u16>>) as "N" = Given("16"), Threads => u16;
        /// Limit the connections that a worker serves at a time
        max_connections: (Parsed<Whole<1, 1_000_000>>) as "N" = Given("10000"), Async => u32;
        /// Set a variable for the workers
        ///
        /// {worker}, {slot}, {generation} and {port} (a free TCP port) are filled in, as in a
        /// program's arguments. Can be repeated. Variables of several layers add up.
        env: (Vec<Parsed<Variable>>) as "KEY=VALUE" = Computed("the supervisor's environment"), All
            in |_config| None::<Vec<(String, String)>>;
        /// Start workers in this directory
        directory: (Parsed<FilePath>) as "DIR" = Computed("the supervisor's"), All
            => Option<PathBuf>, if_set;
    }
    "Recycling" {
        /// Replace a worker after N requests
        ///
        /// N is jittered by up to 20 %, so that workers are not replaced all at once.
        max_requests: (Parsed<OrOff<Whole<1, 4_000_000_000, u64>>>) as "N|off" = Given("off"), Rust
            => Option<u64>;
        /// Replace a worker at this age
        ///
        /// The age is jittered by up to 20 %.
        max_age: (Parsed<OrOff<Time<1_000, YEAR>>>) as "DURATION|off" = Given("off"), All
            => Option<Duration>;
        /// Replace a worker that uses this much memory
        ///
        /// Measured as proportional set size, with all that it has started. The limit is jittered by
        /// up to 20 %.
        max_memory: (Parsed<OrOff<Size<1_048_576, 1_125_899_906_842_624>>>) as "SIZE|off"
            = Given("off"), All => Option<u64>;
    }
    "Sandbox" {
        /// Choose what happens when the kernel lacks a part of the workers' sandbox
        ///
        /// strict refuses to start, best-effort warns and goes on, off runs workers without a
        /// sandbox.
        sandbox: (Parsed<SandboxMode>) as "strict|best-effort|off"
            = Computed("best-effort for stock apps, with --user, and where another option asks \
                for a part"),
            All in |config| Some(config.sandbox.mode);
        /// Let workers read and execute what is below PATH
        ///
        /// Can be repeated. Workers then see nothing else but what any program needs to run.
        read_only: (Vec<Parsed<FilePath>>) as "PATH"
            = Computed("everything; for stock apps nothing but what they serve"), All
            in |config| Some(config.sandbox.read_only.clone());
        /// Let workers read and write what is below PATH
        ///
        /// Can be repeated. Workers then see nothing else but what any program needs to run.
        writable: (Vec<Parsed<FilePath>>) as "PATH"
            = Computed("everything; for stock apps nothing"), All
            in |config| Some(config.sandbox.writable.clone());
        /// Allow workers to bind TCP ports of their own, or deny it
        tcp_bind: (Parsed<Permission>) as "allow|deny"
            = Computed("deny for stock apps, allow for others"), All
            in |config| Some(config.sandbox.tcp_bind);
        /// Filter system calls that a worker should not need
        ///
        /// enforce makes them fail, log lets the kernel log them, off allows them.
        seccomp: (Parsed<Seccomp>) as "enforce|log|off"
            = Computed("enforce for stock apps and with --user, off for others"), All
            in |config| Some(config.sandbox.seccomp);
        /// Give each worker its own /tmp and /var/tmp, empty at first
        ///
        /// Needs CAP_SYS_ADMIN.
        private_tmp: (Parsed<OnOff>) as "on|off" = Computed("off"), All
            in |config| Some(config.sandbox.private_tmp);
        /// Limit a resource of each worker
        ///
        /// NAME is as, core, cpu, data, fsize, memlock, msgqueue, nofile, nproc, sigpending or
        /// stack. Can be repeated.
        limit: (Vec<Parsed<Limit>>) as "NAME=SOFT[:HARD]" = Computed("the supervisor's"), All
            in |config| Some(config.limits.clone());
    }
    "Reload and shutdown" {
        /// Run this command before a generation's first worker starts
        ///
        /// /bin/sh runs it once, as the workers' user, in their directory, environment and sandbox.
        /// If it fails or takes longer than start-timeout, no worker starts and a reload fails with
        /// the end of its standard error.
        preflight: (Parsed<Text>) as "COMMAND" = Computed("none"), All
            => Option<String>, if_set;
        /// Replace this many workers at a time during a reload
        surge: (Parsed<Surge>) as "all|N" = Given("all"), All => Surge;
        /// Let a reload's new workers live for this long before the old ones drain
        ///
        /// A worker that dies within this time makes the reload fail, and the old ones stay.
        min_ready: (Parsed<Time<0, DAY>>) as "DURATION" = Given("2s"), All => Duration;
        /// Limit how long a worker may drain, or off
        ///
        /// A worker that takes longer is killed. With off it may take as long as its clients do.
        graceful_timeout: (Parsed<OrNever>) as "DURATION" = Given("30s"), All => Duration;
        /// Report not ready for this long before a graceful stop drains workers
        ///
        /// Load balancers can take the server out of rotation meanwhile. A second signal skips the
        /// wait.
        pre_stop_delay: (Parsed<Time<0, DAY>>) as "DURATION" = Given("0s"), All => Duration;
        /// Keep an idle connection open for this long while draining, for its next request
        drain_idle: (Parsed<Time<0, 60_000>>) as "DURATION" = Given("500ms"), Rust => Duration;
        /// Ask an external program to drain with this signal
        stop_signal: (Parsed<StopSignal>) as "SIGNAL" = Given("TERM"), External => Signal;
        /// Choose which processes of an external program get the stop signal
        ///
        /// mixed: the program itself, and what is left of its process group once it has exited.
        /// control-group: all of its process group at once. Either way the worker is gone when all
        /// of them are; after --graceful-timeout they are killed. As KillMode= of systemd, where
        /// mixed leaves the others without the signal.
        kill_mode: (Parsed<KillMode>) as "mixed|control-group" = Given("mixed"), External
            => KillMode;
        /// Treat these exit statuses and signals as a clean exit
        ///
        /// A worker that has served for a second and exits cleanly is replaced without a delay. The
        /// stop signal is always clean for a worker that was asked to drain. A status of 128 and a
        /// signal is as clean as the signal.
        clean_exit: (Parsed<CleanExits>) as "LIST" = Given("0 HUP INT TERM PIPE"), All
            => CleanExits;
    }
    "Control groups" {
        /// Put each worker into its own control group
        ///
        /// auto creates them below the supervisor's own group, if that was delegated. DIR is a
        /// control group that the supervisor may use. Read at start only.
        cgroups: (Parsed<Cgroups>) as "auto|off|DIR" = Given("auto"), All => Cgroups;
        /// Limit the memory of a worker's control group
        ///
        /// The kernel kills a worker that needs more, and only that one.
        worker_memory: (Parsed<OrOff<Size<1_048_576, 1_125_899_906_842_624>>>) as "SIZE|off"
            = Given("off"), All => Option<u64>;
        /// Limit the CPUs of a worker's control group, as in 1.5
        worker_cpus: (Parsed<OrOff<Cpus>>) as "CPUS|off" = Given("off"), All => Option<u32>;
    }
    "Timeouts" {
        /// Kill a worker that is not ready within this time
        start_timeout: (Parsed<Time<100, DAY>>) as "DURATION" = Given("60s"), All => Duration;
        /// Choose when an external program counts as ready
        ///
        /// notify: it sends READY=1. after=DURATION: it sends READY=1, or has run for this long
        /// without sending anything. auto: after=1s. listen: it waits for connections on all its
        /// sockets. channel: as Rust workers do in any case.
        ready: (Parsed<Ready>) as "auto|notify|after=DURATION|listen|channel"
            = Given("auto"), External => Ready;
        /// Replace a worker that hangs this long
        ///
        /// A worker hangs when it shows no sign of life, or does not accept from its queue. It is
        /// killed. An external program that was never seen to wait for connections may still be
        /// starting: it has --start-timeout.
        hang_timeout: (Parsed<OrOff<Time<500, DAY>>>) as "DURATION|off" = Given("30s"), All
            => Option<Duration>;
        /// Answer 503 when a handler takes longer
        ///
        /// A worker whose handler blocks a second longer is killed and replaced.
        request_timeout: (Parsed<OrOff<Time<1, DAY>>>) as "DURATION|off" = Given("off"), Rust
            => Option<Duration>;
    }
    "HTTP" {
        /// Close a kept-alive connection that has been idle for this long
        keep_alive: (Parsed<Time<100, DAY>>) as "DURATION" = Given("75s"), Rust => Duration;
        /// Close a connection whose request head does not arrive within this time
        header_timeout: (Parsed<Time<100, DAY>>) as "DURATION" = Given("30s"), Rust => Duration;
        /// Answer 431 to a longer request head
        max_head: (Parsed<Size<8_192, 16_777_216>>) as "SIZE" = Given("64KiB"), Rust => u64;
        /// Answer 413 to a longer request body
        max_body: (Parsed<OrOff<Size<1, 1_099_511_627_776>>>) as "SIZE|off" = Given("off"), Rust
            => Option<u64>;
    }
    "Privileges" {
        /// Run workers as this user
        ///
        /// By name or number. Workers get its group and all its other groups. Sets HOME, USER,
        /// LOGNAME and SHELL. Needs root.
        user: (Parsed<Name>) as "USER" = Computed("the supervisor's"), All
            in |config| config.privileges.user.as_ref().map(|user| user.written.clone());
        /// Run workers as this group, by name or number
        group: (Parsed<Name>) as "GROUP" = Computed("the user's"), All
            in |config| config.privileges.group.as_ref().map(|group| group.written.clone());
        /// Add workers to this group
        ///
        /// Can be repeated.
        groups: (Vec<Parsed<Name>>) as "GROUP" = Computed("those of the user"), All
            in |config| Some(config.privileges.written_groups());
        /// Let workers keep this capability, like net_bind_service, or all
        ///
        /// Workers lose all others. Can be repeated.
        keep_cap: (Vec<Parsed<Capabilities>>) as "NAME" = Computed("none"), All
            in |config| Some(config.privileges.keep.each());
        /// Prevent workers and their children from gaining privileges, as by set-user-id files
        no_new_privileges: (Parsed<OnOff>) as "on|off"
            = Computed("on for root, and when a user or group is set"), All
            in |config| config.privileges.no_new_privileges;
        /// Leave a core dump at every crash, only when a hung worker is aborted, or never
        ///
        /// With abort and off, no other process of its user can look into a Rust worker.
        core_dumps: (Parsed<CoreDumps>) as "on|abort|off"
            = Computed("abort when a user or group is set, else on"), All
            in |config| Some(config.privileges.core_dumps);
        /// Change the supervisor to this user before it binds
        ///
        /// It keeps only the capabilities that it needs. Needs root. Read at start only.
        supervisor_user: (Parsed<Name>) as "USER" = Computed("the user that starts it"), All
            in |config| config.privileges.supervisor_user.as_ref().map(|user| user.written.clone());
    }
    "Logging" {
        /// Log down to this level
        ///
        /// off, error, warn, info, debug or trace.
        log_level: (Parsed<LevelFilter>) as "LEVEL" = Given("info"), All
            in |config| Some(config.log.level);
        /// Write log lines as text or as JSON objects
        ///
        /// Read at start only.
        log_format: (Parsed<LogFormat>) as "text|json" = Given("text"), All
            in |config| Some(config.log.format);
        /// Log to this file, or to stderr for -
        ///
        /// USR1 reopens it. Read at start only.
        log_file: (Parsed<LogFile>) as "FILE|-" = Given("-"), All
            in |config| Some(config.log.file.clone());
        /// Capture workers' standard error, or let them inherit the supervisor's
        ///
        /// A captured one goes through the supervisor, which forwards whole lines and logs the last
        /// ones when a worker dies.
        worker_stderr: (Parsed<WorkerStderr>) as "capture|inherit" = Given("capture"), All
            => WorkerStderr;
        /// Log each request to this file
        ///
        /// - is standard output. The file is reopened on USR1, and when it was renamed.
        access_log: (Parsed<OrOff<AccessTarget>>) as "FILE|-|off" = Given("off"), Rust
            => Option<AccessTarget>;
        /// Format these lines as combined, as JSON, or in nginx's notation
        ///
        /// For example '$remote_addr "$request" $status'.
        access_log_format: (Parsed<Format>) as "combined|json|FORMAT" = Given("combined"), Rust
            => Format;
        /// Warn of a request that takes longer
        slow_log: (Parsed<OrOff<Time<1, DAY>>>) as "DURATION|off" = Given("off"), Rust
            => Option<Duration>;
    }
    "Admin" {
        /// Serve dashboard, metrics and health here
        ///
        /// HOST:PORT or unix:/PATH, as for --bind. A separate process serves /, /metrics, /healthz,
        /// /readyz, /status and /events. Anyone who can connect can read status and events. Can be
        /// repeated.
        admin: (Vec<Parsed<Bind>>) as "ADDRESS" = Computed("none"), All
            in |config| Some(config.admin.http.clone());
        /// Answer HAProxy's agent-check on this address
        ///
        /// Can be repeated.
        agent: (Vec<Parsed<Bind>>) as "ADDRESS" = Computed("none"), All
            in |config| Some(config.admin.agent.clone());
        /// Run the process that serves them as this user
        ///
        /// By name or number.
        admin_user: (Parsed<Name>) as "USER"
            = Computed("nobody if the supervisor is root, else the supervisor's"), All
            in |config| config.admin.user.as_ref().map(|user| user.written.clone());
    }
    "Hooks" {
        /// Start this program for each notable event
        ///
        /// It gets the event as JSON on standard input, and runs as the workers' user.
        on_event: (Parsed<FilePath>) as "PROGRAM" = Computed("none"), All
            in |config| config.hooks.program.clone();
        /// Start it for events of this kind instead
        ///
        /// `supervisor events` shows the kinds. Can be repeated.
        on_event_kinds: (Vec<Parsed<Kind>>) as "KIND"
            = Computed("those that an operator should know of"), All
            in |config| Some(config.hooks.kinds.clone());
        /// Kill it when it takes longer
        on_event_timeout: (Parsed<Time<100, 600_000>>) as "DURATION" = Given("10s"), All
            in |config| Some(config.hooks.timeout);
    }
    "Control" {
        /// Name this server, so that commands find it among others
        ///
        /// As in supervisor status --name NAME. Read at start only.
        name: (Parsed<ServerName>) as "NAME" = Computed("none"), All => Option<String>, if_set;
        /// Let members of this group ask for status, events and config
        ///
        /// By name or number. The control socket gets this group. Read at start only.
        control_readers: (Parsed<NamedGroup>) as "GROUP"
            = Computed("only the supervisor's user, its group and root"), All
            => Option<NamedGroup>, if_set;
        /// Create the control socket at this path
        ///
        /// Read at start only.
        control: (Parsed<Control>) as "PATH|off"
            = Computed("prefork.sock, or prefork-NAME.sock, in $RUNTIME_DIRECTORY, else in \
                $XDG_RUNTIME_DIR, else in /run for root, in /run/user/UID or /tmp/prefork-UID for \
                others"),
            All in |config| Some(config.control.clone());
    }
    checked {
        /// What a worker runs.
        program: Program;
        /// Where to listen: at least one address, none twice.
        binds: Vec<Bind>;
        /// Worker processes: 1 to `max_workers`; the fewest, where their number is a range.
        workers: u16;
        /// Workers that can be scaled up to: at most [`prefork_protocol::Slot::MAX`].
        max_workers: u16;
        /// The number of workers follows the load.
        range: bool;
        /// Variables to add to the workers' environment. None is one that the supervisor sets
        /// itself.
        env: BTreeMap<String, String>;
        /// How workers are confined.
        sandbox: Sandbox;
        /// Resource limits of a worker, no resource twice.
        limits: Vec<Limit>;
        /// As whom workers and the supervisor run, and what they keep.
        privileges: Privileges;
        /// What is logged, how and where.
        log: LogSettings;
        /// Where a child serves metrics, health and the dashboard.
        admin: Admin;
        /// What is started for events.
        hooks: Hooks;
        /// Where the control socket is.
        control: Control;
        /// What is allowed but probably not meant, in sentences to be logged.
        warnings: Vec<String>;
    }
}

impl Options {
    /// Returns the lowest layer.
    pub(crate) fn presets() -> Self {
        let mut options = Self::default();
        for setting in SETTINGS {
            if let Preset::Given(text) = setting.preset {
                options
                    .set(setting, text)
                    .expect("a test reads every default");
            }
        }
        options
    }
}

impl Config {
    /// Returns the values of the options that are read at start only, as the file has them.
    pub(crate) fn read_at_start(&self) -> Vec<(String, String)> {
        let value = |name: &str| {
            let written = setting(name).and_then(|setting| self.written(setting));
            (name.to_owned(), written.unwrap_or_default())
        };
        READ_AT_START.iter().map(|name| value(name)).collect()
    }

    /// Returns how the number of workers would be typed.
    fn worker_count(&self) -> WorkerCount {
        if self.range {
            WorkerCount::Range(self.workers, self.max_workers)
        } else {
            WorkerCount::Fixed(self.workers)
        }
    }
}
