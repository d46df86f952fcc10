//! The table of settings: each has its name, type, help and default here and nowhere else.
//!
//! From the table come the flag (`--max-workers`), the variable (`SUPERVISOR_MAX_WORKERS`), the key in the file
//! (`max-workers`), the line in `--help` and the man page, and the lowest layer: a default is text that is read
//! by the same reader as what a user types.

use super::bind::Bind;
use super::cgroups::{Cpus, WorkerCount};
use super::clean::CleanExits;
use super::hooks::Kind;
use super::privileges::{Capabilities, CoreDumps, Name, NamedGroup, OnOff};
use super::reader::{Typed, Value};
use super::sandbox::{Limit, Permission, Rigour, Seccomp};
use super::stderr::WorkerStderr;
use super::words::{
    DAY, LogFile, OrOff, Place, Plain, ServerName, Size, Span, StopSignal, Variable, Whole, YEAR,
};
use super::{AccessTarget, Cgroups, Control, LogFormat, Ready, Surge};
use log::LevelFilter;
use prefork_core::Share;
use prefork_protocol::access_log::Format;
use prefork_protocol::settings::{Accept, ClassName};

/// What holds when nobody sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Preset {
    /// This value, as it would be typed.
    Given(&'static str),
    /// What these words say.
    Computed(&'static str),
}

/// A setting: one row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    /// Its name in Rust, as in `max_workers`.
    identifier: &'static str,
    /// The heading under which `--help` shows it.
    #[cfg(test)]
    pub(crate) heading: &'static str,
    /// What holds when nobody sets it.
    pub preset: Preset,
}

impl Setting {
    /// The name that the command line and the file use, as in `max-workers`.
    pub(crate) fn name(&self) -> String {
        self.identifier.replace('_', "-")
    }

    /// The environment variable, as in `SUPERVISOR_MAX_WORKERS`.
    pub(crate) fn variable(&self) -> String {
        format!("{PREFIX}{}", self.identifier.to_ascii_uppercase())
    }
}

/// What every variable begins with.
pub(crate) const PREFIX: &str = "SUPERVISOR_";

/// The setting of a name, as the command line and the file use it.
pub(crate) fn setting(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name() == name)
}

macro_rules! settings {
    ($($heading:literal {
        $($(#[doc = $doc:literal])+ $name:ident: ($($type:tt)+) as $placeholder:literal = $how:ident($preset:literal);)+
    })+) => {
        /// What one layer (the command line, the environment, the file, the defaults) sets.
        #[derive(clap::Args, Debug, Clone, Default)]
        pub(crate) struct Options {$($(
            $(#[doc = $doc])+
            #[arg(long, help_heading = $heading, value_name = $placeholder, allow_negative_numbers = true)]
            pub(crate) $name: Option<$($type)+>,
        )+)+}

        /// Every setting, in the order of `--help`.
        pub(crate) const SETTINGS: &[Setting] = &[$($(
            Setting { identifier: stringify!($name), #[cfg(test)] heading: $heading, preset: Preset::$how($preset) },
        )+)+];

        impl Options {
            /// Whether this layer sets it.
            pub(crate) fn sets(&self, setting: &Setting) -> bool {
                match setting.identifier {
                    $($(stringify!($name) => self.$name.is_some(),)+)+
                    _ => false,
                }
            }

            /// Sets it from text.
            pub(crate) fn set(&mut self, setting: &Setting, text: &str) -> Result<(), String> {
                match setting.identifier {
                    $($(stringify!($name) => self.$name = Some(Value::from_text(text)?),)+)+
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
                    $($(stringify!($name) => self.$name = Some(Value::from_toml(value)?),)+)+
                    _ => {}
                }
                Ok(())
            }

            /// This layer over a lower one.
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
        /// Address to listen on: HOST:PORT, unix:/PATH[,mode=0660][,owner=USER][,group=GROUP], fd://N or fd://NAME.
        /// May be given several times
        bind: (Vec<Typed<Bind>>) as "ADDRESS" = Given("127.0.0.1:8000");
        /// Connections that may wait in each listening socket's queue; the kernel's net.core.somaxconn caps it
        backlog: (Typed<Whole<1, 1_048_576>>) as "N" = Given("4096");
        /// Whose queues a worker takes connections from: own (its slot's only), steal (also its siblings', when its own
        /// is empty) or shared (one queue for all workers). Other programs than ours never steal
        accept: (Typed<Accept>) as "WHOSE" = Given("steal");
    }
    "Workers" {
        /// Stock app to serve when no program is named: hello, echo, greeter, files:DIR, sleep or burn
        app: (Typed<Plain>) as "APP" = Given("hello");
        /// Number of worker processes; auto is one per CPU that affinity, cpuset and the control group's quota leave. Between
        /// MIN and MAX the number follows the load
        workers: (Typed<WorkerCount>) as "N|MIN..MAX|auto" = Given("auto");
        /// Most workers that TTIN can scale up to
        max_workers: (Typed<Whole<1, 1024>>) as "N" = Computed("twice the workers, at least 8; of a range, its end");
        /// How long a worker must have been unneeded before it is retired, where the number of workers follows the load
        scale_down_after: (Typed<Span<1_000, DAY>>) as "TIME" = Given("60s");
        /// Memory that all workers together may use for more to be started, where their number follows the load, or off
        scale_up_memory: (Typed<OrOff<Size<1_048_576, 1_125_899_906_842_624>>>) as "SIZE" = Given("off");
        /// How many slots may be out of service, or have two workers, because somebody wants that (restart-worker, drain,
        /// recycling): a number, or a share of the slots, but at least one. Slots that are down count, too
        max_unavailable: (Typed<Share>) as "N|PERCENT%" = Given("10%");
        /// How a worker serves: sync (one connection at a time), threads (one per thread) or async (many at once)
        class: (Typed<ClassName>) as "CLASS" = Given("async");
        /// Threads of a worker of class threads
        threads: (Typed<Whole<1, 1024>>) as "N" = Given("16");
        /// Connections that a worker of class async has in hand at most
        max_connections: (Typed<Whole<1, 1_000_000>>) as "N" = Given("10000");
        /// Variable for the workers' environment. May be given several times
        env: (Vec<Typed<Variable>>) as "KEY=VALUE" = Computed("what the supervisor has");
        /// Working directory of the workers
        directory: (Typed<Place>) as "DIR" = Computed("the supervisor's");
    }
    "Recycling" {
        /// Requests that a worker answers, less up to a fifth by chance, before another one takes its place, or off. Not for
        /// other programs, which do not count
        max_requests: (Typed<OrOff<Whole<1, 4_000_000_000>>>) as "N" = Given("off");
        /// Age of a worker, less up to a fifth by chance, at which another one takes its place, or off
        max_age: (Typed<OrOff<Span<1_000, YEAR>>>) as "TIME" = Given("off");
        /// Memory of a worker (proportional set size), less up to a fifth by chance, at which another one takes its place,
        /// or off
        max_memory: (Typed<OrOff<Size<1_048_576, 1_125_899_906_842_624>>>) as "SIZE" = Given("off");
    }
    "Sandbox" {
        /// What to do when the kernel lacks a part of the workers' sandbox: strict (refuse), best-effort (say so and go on)
        /// or off (no sandbox)
        sandbox: (Typed<Rigour>) as "HOW" = Computed("best-effort for stock apps, with --user, and where another option asks for a part");
        /// Path that workers may read and execute. May be given several times; then they see nothing else but what any
        /// program needs to run
        read_only: (Vec<Typed<Place>>) as "PATH" = Computed("everything; for stock apps nothing but what they serve");
        /// Path that workers may read and write. May be given several times; then they see nothing else but what any
        /// program needs to run
        writable: (Vec<Typed<Place>>) as "PATH" = Computed("everything; for stock apps nothing");
        /// Whether workers may bind TCP ports of their own: allow or deny
        tcp_bind: (Typed<Permission>) as "WHETHER" = Computed("deny for stock apps, allow for others");
        /// What becomes of system calls that a worker should not need: enforce (they fail), log (the kernel logs them) or
        /// off
        seccomp: (Typed<Seccomp>) as "HOW" = Computed("enforce for stock apps and with --user, off for others");
        /// Whether each worker has a /tmp and a /var/tmp of its own: on or off. Needs CAP_SYS_ADMIN
        private_tmp: (Typed<OnOff>) as "WHETHER" = Computed("off");
        /// Limit of a resource of a worker: as, core, cpu, data, fsize, memlock, msgqueue, nofile, nproc, sigpending or stack.
        /// May be given several times
        limit: (Vec<Typed<Limit>>) as "NAME=SOFT[:HARD]" = Computed("the supervisor's");
    }
    "Reload and shutdown" {
        /// How many workers a reload replaces at a time: all, or a number
        surge: (Typed<Surge>) as "all|N" = Given("all");
        /// How long a reload's new workers must live after they are ready before the old ones drain
        min_ready: (Typed<Span<0, DAY>>) as "TIME" = Given("2s");
        /// How long a worker may drain before it is killed
        graceful_timeout: (Typed<Span<0, DAY>>) as "TIME" = Given("30s");
        /// How long a graceful stop is announced, by not being ready, before workers drain: for load balancers. A second
        /// signal does not wait
        pre_stop_delay: (Typed<Span<0, DAY>>) as "TIME" = Given("0s");
        /// How long a draining worker leaves an idle kept-alive connection open for its next request
        drain_idle: (Typed<Span<0, 60_000>>) as "TIME" = Given("500ms");
        /// Signal that asks a program to drain
        stop_signal: (Typed<StopSignal>) as "SIGNAL" = Given("TERM");
        /// Exit statuses and signals by which a worker may end: one that has served for a second and ends so is
        /// replaced without a delay. The stop signal is clean for whoever was asked to drain
        clean_exit: (Typed<CleanExits>) as "LIST" = Given("0 HUP INT TERM PIPE");
    }
    "Control groups" {
        /// Where each worker gets a control group of its own: auto (below ours, where it was delegated to us), a directory
        /// that is ours to use, or off. Read at start only
        cgroups: (Typed<Cgroups>) as "auto|off|DIR" = Given("auto");
        /// Memory that a worker's control group may use, or off; a worker that needs more is killed, and only that one
        worker_memory: (Typed<OrOff<Size<1_048_576, 1_125_899_906_842_624>>>) as "SIZE" = Given("off");
        /// CPUs that a worker's control group may use, such as 1.5, or off
        worker_cpus: (Typed<OrOff<Cpus>>) as "CPUS" = Given("off");
    }
    "Timeouts" {
        /// How long a worker may take to get ready
        start_timeout: (Typed<Span<100, DAY>>) as "TIME" = Given("60s");
        /// When a program counts as ready: notify (it says READY=1), after=TIME (it says so, or nothing for so long), auto
        /// (after=1s), or listen (it is seen to wait for connections). Rust workers use their channel
        ready: (Typed<Ready>) as "HOW" = Given("auto");
        /// How long a worker may give no sign of life, or leave its queue alone, before it is killed and replaced, or off
        hang_timeout: (Typed<OrOff<Span<500, DAY>>>) as "TIME" = Given("30s");
        /// How long a handler may take before its client gets 503, or off; a worker in which one blocks a second longer is
        /// killed and replaced
        request_timeout: (Typed<OrOff<Span<1, DAY>>>) as "TIME" = Given("off");
    }
    "HTTP" {
        /// How long a kept-alive connection may be idle
        keep_alive: (Typed<Span<100, DAY>>) as "TIME" = Given("75s");
        /// How long a request's head may take to arrive
        header_timeout: (Typed<Span<100, DAY>>) as "TIME" = Given("30s");
        /// Longest request head; longer ones get 431. KB is 1000 bytes, KiB 1024
        max_head: (Typed<Size<8_192, 16_777_216>>) as "SIZE" = Given("64KiB");
        /// Longest request body, or off; longer ones get 413
        max_body: (Typed<OrOff<Size<1, 1_099_511_627_776>>>) as "SIZE" = Given("off");
    }
    "Privileges" {
        /// User that the workers run as, by name or number, with its group and all other groups that it is in. Workers get
        /// HOME, USER, LOGNAME and SHELL of it. Needs root
        user: (Typed<Name>) as "USER" = Computed("the supervisor's");
        /// Group that the workers run as, by name or number
        group: (Typed<Name>) as "GROUP" = Computed("the user's");
        /// Group that the workers are in besides. May be given several times
        groups: (Vec<Typed<Name>>) as "GROUP" = Computed("those of the user");
        /// Capability that the workers keep, like net_bind_service, or all; they lose all others. May be given several times
        keep_cap: (Vec<Typed<Capabilities>>) as "NAME" = Computed("none");
        /// Whether nothing that a worker executes may gain privileges, as by set-user-id files: on or off
        no_new_privileges: (Typed<OnOff>) as "on|off" = Computed("on for root, and when a user or group is set");
        /// When a worker leaves a core dump: on (at every crash), abort (when it is aborted as hung; until then, no process
        /// of its user can look into a Rust worker) or off
        core_dumps: (Typed<CoreDumps>) as "WHEN" = Computed("abort when a user or group is set, else on");
        /// User that the supervisor itself becomes before it binds, keeping only the capabilities that it needs. Needs root
        supervisor_user: (Typed<Name>) as "USER" = Computed("whoever starts it");
    }
    "Logging" {
        /// Least important messages to log: off, error, warn, info, debug or trace
        log_level: (Typed<LevelFilter>) as "LEVEL" = Given("info");
        /// How a log line looks: text or json
        log_format: (Typed<LogFormat>) as "FORMAT" = Given("text");
        /// File to log to, reopened on USR1; - is stderr
        log_file: (Typed<LogFile>) as "FILE" = Given("-");
        /// Where workers' standard error goes: capture (through the supervisor, which passes on whole lines and tells
        /// the last ones when a worker dies) or inherit (straight to the supervisor's own)
        worker_stderr: (Typed<WorkerStderr>) as "WAY" = Given("capture");
        /// File that gets a line for each request, reopened on USR1 and when it was renamed; - is standard output; or off
        access_log: (Typed<OrOff<AccessTarget>>) as "FILE" = Given("off");
        /// How these lines look: combined, json, or a format in nginx's notation, like '$remote_addr "$request" $status'
        access_log_format: (Typed<Format>) as "FORMAT" = Given("combined");
        /// How long a request may take before a warning tells of it, or off
        slow_log: (Typed<OrOff<Span<1, DAY>>>) as "TIME" = Given("off");
    }
    "Admin" {
        /// Address on which a child of its own serves the dashboard, /metrics, /healthz, /readyz, /status and /events:
        /// HOST:PORT or unix:/PATH as for bind. May be given several times. Whoever reaches it may read all that status and
        /// events tell
        admin: (Vec<Typed<Bind>>) as "ADDRESS" = Computed("none");
        /// Address on which the same child answers HAProxy's agent-check. May be given several times
        agent: (Vec<Typed<Bind>>) as "ADDRESS" = Computed("none");
        /// User that this child runs as, by name or number
        admin_user: (Typed<Name>) as "USER" = Computed("nobody if the supervisor is root, else the supervisor's");
    }
    "Hooks" {
        /// Program to start for each notable event, with the event in JSON on its standard input, as the workers' user
        on_event: (Typed<Place>) as "PROGRAM" = Computed("none");
        /// Kinds of events to start it for, as `supervisor events` tells them. May be given several times
        on_event_kinds: (Vec<Typed<Kind>>) as "KIND" = Computed("those that a person would want to hear of");
        /// How long it may take before it is killed
        on_event_timeout: (Typed<Span<100, 600_000>>) as "TIME" = Given("10s");
    }
    "Control" {
        /// Name of this server, by which the commands find it among others (supervisor status --name NAME)
        name: (Typed<ServerName>) as "NAME" = Computed("none");
        /// Group whose members may ask how things are (status, events, config), by name or number; the control socket gets
        /// it. Read at start only
        control_readers: (Typed<NamedGroup>) as "GROUP" = Computed("nobody but the supervisor's user, its group and root");
        /// Path of the control socket, or off
        control: (Typed<Control>) as "PATH" = Computed("prefork.sock, or prefork-NAME.sock, in $RUNTIME_DIRECTORY, else in $XDG_RUNTIME_DIR");
    }
}

impl Options {
    /// The lowest layer.
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
