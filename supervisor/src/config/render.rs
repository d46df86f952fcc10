//! What is true, written so that it could be typed: [`Config::render`].

use super::words::binary;
use super::{
    AccessTarget, Account, Cgroups, Config, Control, LogFormat, Privileges, Program, Surge,
};
use std::fmt::{Display, Write};
use std::time::Duration;

impl Config {
    /// Every setting with its value, as a file that gives this configuration again. A program's arguments that are
    /// not UTF-8 cannot be written in a file; they come out with replacement characters.
    pub fn render(&self) -> String {
        let mut page = Page(String::new());
        let binds: Vec<_> = self.binds.iter().map(ToString::to_string).collect();
        page.line("bind", quoted_list(&binds));
        page.line("backlog", self.backlog);
        page.line("accept", quoted(self.accept));
        match &self.program {
            Program::App(app) => page.line("app", quoted(app)),
            Program::Linked => {}
            Program::Command(words) => {
                let words: Vec<_> = words
                    .iter()
                    .map(|word| word.to_string_lossy().into_owned())
                    .collect();
                page.line("command", quoted_list(&words));
            }
        }
        if self.range {
            page.line(
                "workers",
                quoted(format_args!("{}..{}", self.workers, self.max_workers)),
            );
        } else {
            page.line("workers", self.workers);
        }
        page.line("max-workers", self.max_workers);
        page.line("scale-down-after", span(self.scale_down_after));
        page.line(
            "scale-up-memory",
            self.scale_up_memory
                .map_or_else(off, |size| quoted(binary(size))),
        );
        page.line("max-unavailable", quoted(self.max_unavailable));
        page.line("class", quoted(self.class));
        page.line("threads", self.threads);
        page.line("max-connections", self.max_connections);
        if let Some(directory) = &self.directory {
            page.line("directory", quoted(directory.display()));
        }
        page.line(
            "max-requests",
            self.max_requests
                .map_or_else(off, |count| count.to_string()),
        );
        page.line("max-age", self.max_age.map_or_else(off, span));
        page.line(
            "max-memory",
            self.max_memory
                .map_or_else(off, |size| quoted(binary(size))),
        );
        let sandbox = &self.sandbox;
        page.line("sandbox", quoted(sandbox.rigour.as_str()));
        for (name, paths) in [
            ("read-only", &sandbox.read_only),
            ("writable", &sandbox.writable),
        ] {
            let paths: Vec<_> = paths
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            page.line(name, quoted_list(&paths));
        }
        page.line(
            "tcp-bind",
            quoted(if sandbox.tcp_bind { "allow" } else { "deny" }),
        );
        page.line("seccomp", quoted(sandbox.seccomp.as_str()));
        page.line(
            "private-tmp",
            quoted(if sandbox.private_tmp { "on" } else { "off" }),
        );
        let limits: Vec<_> = self.limits.iter().map(ToString::to_string).collect();
        page.line("limit", quoted_list(&limits));
        match self.surge {
            Surge::All => page.line("surge", quoted("all")),
            Surge::Count(count) => page.line("surge", count),
        }
        page.line("min-ready", span(self.min_ready));
        page.line("graceful-timeout", span(self.graceful_timeout));
        page.line("pre-stop-delay", span(self.pre_stop_delay));
        page.line("drain-idle", span(self.drain_idle));
        page.line(
            "stop-signal",
            quoted(self.stop_signal.as_str().trim_start_matches("SIG")),
        );
        page.line("clean-exit", quoted(&self.clean_exit));
        match &self.cgroups {
            Cgroups::Auto => page.line("cgroups", quoted("auto")),
            Cgroups::Path(path) => page.line("cgroups", quoted(path.display())),
            Cgroups::Off => page.line("cgroups", off()),
        }
        page.line(
            "worker-memory",
            self.worker_memory
                .map_or_else(off, |size| quoted(binary(size))),
        );
        let cpus = |thousandths: u32| quoted(f64::from(thousandths) / 1000.0);
        page.line("worker-cpus", self.worker_cpus.map_or_else(off, cpus));
        page.line("start-timeout", span(self.start_timeout));
        page.line("ready", quoted(self.ready));
        page.line("hang-timeout", self.hang_timeout.map_or_else(off, span));
        page.line(
            "request-timeout",
            self.request_timeout.map_or_else(off, span),
        );
        page.line("keep-alive", span(self.keep_alive));
        page.line("header-timeout", span(self.header_timeout));
        page.line("max-head", quoted(binary(self.max_head.into())));
        page.line(
            "max-body",
            self.max_body.map_or_else(off, |size| quoted(binary(size))),
        );
        self.privileges.render(&mut page);
        page.line(
            "log-level",
            quoted(self.log.level.as_str().to_ascii_lowercase()),
        );
        page.line("log-format", quoted(self.log.format.as_str()));
        page.line(
            "log-file",
            self.log
                .file
                .as_ref()
                .map_or_else(|| quoted("-"), |path| quoted(path.display())),
        );
        page.line("worker-stderr", quoted(self.worker_stderr.as_str()));
        for (name, list) in [("admin", &self.admin.http), ("agent", &self.admin.agent)] {
            let list: Vec<_> = list.iter().map(ToString::to_string).collect();
            page.line(name, quoted_list(&list));
        }
        if let Some(user) = &self.admin.user {
            page.line("admin-user", quoted(&user.written));
        }
        let target = |target: &AccessTarget| match target {
            AccessTarget::Stdout => quoted("-"),
            AccessTarget::File(path) => quoted(path.display()),
        };
        page.line(
            "access-log",
            self.access_log.as_ref().map_or_else(off, target),
        );
        page.line("access-log-format", quoted(&self.access_log_format));
        page.line("slow-log", self.slow_log.map_or_else(off, span));
        if let Some(program) = &self.hooks.program {
            page.line("on-event", quoted(program.display()));
        }
        let kinds: Vec<_> = self
            .hooks
            .kinds
            .iter()
            .map(|kind| (*kind).to_owned())
            .collect();
        page.line("on-event-kinds", quoted_list(&kinds));
        page.line("on-event-timeout", span(self.hooks.timeout));
        match &self.control {
            Control::Default => page.line("control", quoted("default")),
            Control::Path(path) => page.line("control", quoted(path.display())),
            Control::Off => page.line("control", off()),
        }
        if let Some(name) = &self.name {
            page.line("name", quoted(name));
        }
        if let Some(group) = &self.control_readers {
            page.line("control-readers", quoted(&group.written));
        }
        if !self.env.is_empty() {
            page.0.push_str("\n[env]\n");
            for (key, value) in &self.env {
                page.line(&quoted(key), quoted(value));
            }
        }
        page.0
    }
}

impl Privileges {
    /// Only what is set: nothing that can be written means whoever starts the supervisor.
    fn render(&self, page: &mut Page) {
        let account =
            |account: &Option<Account>| account.as_ref().map(|account| quoted(&account.written));
        if let Some(user) = account(&self.user) {
            page.line("user", user);
        }
        if let Some(group) = &self.group {
            page.line("group", quoted(&group.written));
        }
        let groups: Vec<_> = self
            .groups
            .iter()
            .map(|group| group.written.clone())
            .collect();
        page.line("groups", quoted_list(&groups));
        page.line("keep-cap", quoted_list(&self.keep.names()));
        if let Some(on) = self.no_new_privileges {
            page.line("no-new-privileges", quoted(if on { "on" } else { "off" }));
        }
        page.line("core-dumps", quoted(self.core_dumps.as_str()));
        if let Some(user) = account(&self.supervisor_user) {
            page.line("supervisor-user", user);
        }
    }
}

impl LogFormat {
    /// The word for it, as on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

struct Page(String);

impl Page {
    fn line(&mut self, name: &str, value: impl Display) {
        writeln!(self.0, "{name} = {value}").expect("a string takes every line");
    }
}

/// A TOML string.
fn quoted(text: impl Display) -> String {
    let mut quoted = String::from("\"");
    for c in text.to_string().chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                write!(quoted, "\\u{:04X}", u32::from(c)).expect("a string takes every character");
            }
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

/// A TOML list of strings.
fn quoted_list(words: &[String]) -> String {
    let words: Vec<_> = words.iter().map(quoted).collect();
    format!("[{}]", words.join(", "))
}

fn off() -> String {
    quoted("off")
}

fn span(span: Duration) -> String {
    quoted(humantime::format_duration(span))
}
