//! Layers → [`Config`]: what the settings mean together.

use super::cgroups::WorkerCount;
use super::error::{ConfigError, Place, Problem};
use super::hooks::Hooks;
use super::options::{Options, SETTINGS};
use super::privileges::{Name, Wanted, privileges};
use super::reader::Typed;
use super::source::{Layer, Origin, Surroundings};
use super::words::OrOff;
use super::{Account, Admin, Bind, Config, Control, Limit, LogSettings, Program, Ready, Sandbox};
use prefork_protocol::Slot;
use prefork_protocol::settings::ClassName;
use std::collections::BTreeSet;

/// Settings that only a Rust worker hears of.
const RUST_ONLY: [&str; 13] = [
    "access-log",
    "access-log-format",
    "slow-log",
    "max-requests",
    "class",
    "threads",
    "max-connections",
    "drain-idle",
    "request-timeout",
    "keep-alive",
    "header-timeout",
    "max-head",
    "max-body",
];

/// Why a program cannot be asked for what only Rust workers have.
const NO_CHANNEL: &str = "only a program that links the worker crate has a channel, and always uses it (choose auto, notify, listen or after=TIME for another one)";

/// Why a supervisor that is neither root nor the workers' user cannot see what they wait for.
const NO_SIGHT: &str = "listen cannot look into workers of another user than supervisor-user (choose notify or after=TIME, or give both one user)";

/// Settings that only another program needs.
const FOREIGN_ONLY: [&str; 2] = ["ready", "stop-signal"];

/// Makes a configuration of layers, highest first, or says everything that is wrong with it.
pub(crate) fn resolve(
    layers: &[Layer],
    linked: bool,
    around: &Surroundings<'_>,
    warnings: Vec<String>,
) -> Result<Config, ConfigError> {
    let mut desk = Desk {
        layers,
        problems: Vec::new(),
        warnings,
    };
    let all = layers
        .iter()
        .map(|layer| layer.options.clone())
        .reduce(Options::over)
        .expect("there is always the layer of defaults");

    let program = desk.program(linked, around, value(all.app.clone()).0);
    let (sandbox, useless) = Sandbox::resolve(&all, &program);
    for name in useless {
        let place = desk.place(name);
        desk.warnings
            .push(format!("{place}: has no effect with sandbox off"));
    }
    let count = value(all.workers);
    let workers = match count {
        WorkerCount::Auto => u16::try_from(around.cpus)
            .unwrap_or(Slot::MAX)
            .clamp(1, Slot::MAX),
        WorkerCount::Fixed(count) | WorkerCount::Range(count, _) => count,
    };
    let range = match count {
        WorkerCount::Range(_, most) => Some(most),
        WorkerCount::Auto | WorkerCount::Fixed(_) => None,
    };
    let max_workers = match all.max_workers {
        None => range.unwrap_or(workers.saturating_mul(2).clamp(8, Slot::MAX)),
        Some(Typed(most)) => small(most.0),
    };
    if let Some(most) = range.filter(|most| *most != max_workers) {
        desk.refuse(
            "max-workers",
            format!("{max_workers} is not the end of the range {workers}..{most} of workers (leave it out)"),
        );
    } else if max_workers < workers {
        desk.refuse(
            "max-workers",
            format!("{max_workers} is less than the {workers} workers (raise it, or leave it out)"),
        );
    }
    for name in ["scale-down-after", "scale-up-memory"] {
        if let Some(layer) = desk.typed(name).filter(|_| range.is_none()) {
            let place = layer.place(name);
            desk.warnings.push(format!(
                "{place}: has no effect with a fixed number of workers (give a range, like --workers 2..16)"
            ));
        }
    }
    let binds = desk.binds(value_list(all.bind), around);
    let admin = desk.admin(all.admin, all.agent, all.admin_user, &binds);
    let directory = all.directory.map(|Typed(place)| place.0);
    if let Some(directory) = directory.as_ref().filter(|directory| !directory.is_dir()) {
        desk.refuse(
            "directory",
            format!(
                "{} is no directory (make it, or name another)",
                directory.display()
            ),
        );
    }
    let wanted = Wanted {
        user: all.user,
        group: all.group,
        groups: all.groups,
        keep_cap: all.keep_cap,
        no_new_privileges: all.no_new_privileges,
        core_dumps: all.core_dumps,
        supervisor_user: all.supervisor_user,
    };
    let privileges = privileges(wanted, |name, message| desk.refuse(name, message));
    let class = value(all.class);
    let ready = value(all.ready);
    if ready == Ready::Channel && matches!(program, Program::Command(_)) {
        desk.refuse("ready", NO_CHANNEL.to_owned());
    }
    let other = privileges.user.as_ref().map(|user| user.uid);
    let apart = privileges
        .supervisor_user
        .as_ref()
        .is_some_and(|own| other.is_some_and(|uid| uid != own.uid));
    if ready == Ready::Listen && apart && matches!(program, Program::Command(_)) {
        desk.refuse("ready", NO_SIGHT.to_owned());
    }
    desk.warn_of_unused(&program, class, ready);

    let config = Config {
        binds,
        backlog: value(all.backlog).0,
        accept: value(all.accept),
        workers,
        max_workers,
        range: range.is_some(),
        scale_down_after: value(all.scale_down_after).0,
        scale_up_memory: limit(all.scale_up_memory).map(|size| size.0),
        max_unavailable: value(all.max_unavailable),
        max_requests: limit(all.max_requests).map(|count| count.0.into()),
        max_age: limit(all.max_age).map(|span| span.0),
        max_memory: limit(all.max_memory).map(|size| size.0),
        program,
        class,
        threads: small(value(all.threads).0),
        max_connections: value(all.max_connections).0,
        env: value_list(all.env)
            .into_iter()
            .map(|variable| (variable.key, variable.value))
            .collect(),
        directory,
        sandbox,
        limits: Limit::last_of_each(value_list(all.limit)),
        surge: value(all.surge),
        min_ready: value(all.min_ready).0,
        graceful_timeout: value(all.graceful_timeout).0,
        pre_stop_delay: value(all.pre_stop_delay).0,
        drain_idle: value(all.drain_idle).0,
        stop_signal: value(all.stop_signal).0,
        clean_exit: value(all.clean_exit),
        cgroups: value(all.cgroups),
        worker_memory: limit(all.worker_memory).map(|size| size.0),
        worker_cpus: limit(all.worker_cpus).map(|cpus| cpus.0),
        start_timeout: value(all.start_timeout).0,
        ready,
        hang_timeout: limit(all.hang_timeout).map(|span| span.0),
        request_timeout: limit(all.request_timeout).map(|span| span.0),
        keep_alive: value(all.keep_alive).0,
        header_timeout: value(all.header_timeout).0,
        max_head: u32::try_from(value(all.max_head).0).expect("the range of max-head fits"),
        max_body: limit(all.max_body).map(|size| size.0),
        privileges,
        log: LogSettings {
            level: value(all.log_level),
            format: value(all.log_format),
            file: value(all.log_file).0,
        },
        worker_stderr: value(all.worker_stderr),
        admin,
        access_log: limit(all.access_log),
        access_log_format: value(all.access_log_format),
        slow_log: limit(all.slow_log).map(|span| span.0),
        hooks: Hooks {
            program: all.on_event.map(|Typed(program)| program.0),
            kinds: value_list(all.on_event_kinds)
                .into_iter()
                .map(|kind| kind.0)
                .collect(),
            timeout: value(all.on_event_timeout).0,
        },
        control: all
            .control
            .map_or(Control::Default, |Typed(control)| control),
        name: all.name.map(|Typed(name)| name.0),
        control_readers: all.control_readers.map(|Typed(group)| group),
        warnings: desk.warnings,
    };
    if desk.problems.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError {
            problems: desk.problems,
        })
    }
}

/// A setting that has a default.
fn value<T>(value: Option<Typed<T>>) -> T {
    value.expect("the table gives a default").0
}

fn value_list<T>(list: Option<Vec<Typed<T>>>) -> Vec<T> {
    list.unwrap_or_default()
        .into_iter()
        .map(|Typed(word)| word)
        .collect()
}

fn limit<T>(limit: Option<Typed<OrOff<T>>>) -> Option<T> {
    value(limit).0
}

/// A number whose range in the table fits.
fn small(number: u32) -> u16 {
    u16::try_from(number).expect("the range in the table fits")
}

/// The layers, and what has been found in them.
struct Desk<'a> {
    layers: &'a [Layer],
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl Desk<'_> {
    /// The highest layer that sets it, unless that is the one of defaults.
    fn typed(&self, name: &str) -> Option<&Layer> {
        let setting = SETTINGS.iter().find(|setting| setting.name() == name)?;
        self.layers
            .iter()
            .find(|layer| layer.options.sets(setting))
            .filter(|layer| !matches!(layer.origin, Origin::Presets))
    }

    fn place(&self, name: &str) -> Place {
        self.typed(name)
            .map_or_else(|| Place::Preset(name.to_owned()), |layer| layer.place(name))
    }

    fn refuse(&mut self, name: &str, message: String) {
        self.problems.push(Problem {
            place: self.place(name),
            message,
        });
    }

    /// The highest layer that names a program or an app decides.
    fn program(&mut self, linked: bool, around: &Surroundings<'_>, preset: String) -> Program {
        let typed = |layer: &&Layer| !matches!(layer.origin, Origin::Presets);
        let app = |layer: &Layer| layer.options.app.clone().map(|Typed(app)| app.0);
        let deciding = self
            .layers
            .iter()
            .filter(typed)
            .find(|layer| layer.options.app.is_some() || !layer.program.is_empty());
        let Some(layer) = deciding else {
            return if linked {
                Program::Linked
            } else {
                Program::App(preset)
            };
        };
        let name = if layer.program.is_empty() {
            "app"
        } else {
            "command"
        };
        let place = layer.place(name);
        if linked {
            let message = "this program serves a service of its own (leave it out)".to_owned();
            self.problems.push(Problem { place, message });
            return Program::Linked;
        }
        match app(layer) {
            None => Program::Command(layer.program.clone()),
            Some(app) if layer.program.is_empty() => {
                if let Err(error) = (around.check_app)(&app) {
                    let message = error.to_string();
                    self.problems.push(Problem { place, message });
                }
                Program::App(app)
            }
            Some(app) => {
                let message = format!(
                    "a program cannot serve beside the app `{app}` (leave one of them out)"
                );
                self.problems.push(Problem { place, message });
                Program::Command(layer.program.clone())
            }
        }
    }

    /// The addresses; without any, what was inherited.
    fn binds(&mut self, binds: Vec<Bind>, around: &Surroundings<'_>) -> Vec<Bind> {
        if binds.is_empty() {
            self.refuse(
                "bind",
                "the list is empty (name an address, or leave it out)".to_owned(),
            );
        }
        if self.typed("bind").is_none() && !around.inherited.is_empty() {
            let names: BTreeSet<_> = around.inherited.iter().cloned().collect();
            return names.into_iter().map(Bind::Inherited).collect();
        }
        for (index, bind) in binds.iter().enumerate() {
            if binds[..index]
                .iter()
                .any(|earlier| same_address(earlier, bind))
            {
                self.refuse("bind", format!("{bind} is named twice (leave one out)"));
            }
            let Bind::Inherited(name) = bind else {
                continue;
            };
            if !around.inherited.contains(name) {
                let names = match around.inherited {
                    [] => "none was inherited".to_owned(),
                    names => format!("inherited: {}", names.join(", ")),
                };
                self.refuse(
                    "bind",
                    format!("no inherited socket is named {name} ({names})"),
                );
            }
        }
        binds
    }

    /// What the admin child serves. Its sockets are nobody else's.
    fn admin(
        &mut self,
        http: Option<Vec<Typed<Bind>>>,
        agent: Option<Vec<Typed<Bind>>>,
        user: Option<Typed<Name>>,
        binds: &[Bind],
    ) -> Admin {
        let mut taken: Vec<Bind> = binds.to_vec();
        let mut lists = [("admin", value_list(http)), ("agent", value_list(agent))];
        for (name, list) in &mut lists {
            for bind in list.iter() {
                if matches!(bind, Bind::Fd(_) | Bind::Inherited(_)) {
                    self.refuse(
                        name,
                        format!("{bind} is an inherited socket (name HOST:PORT or unix:/PATH)"),
                    );
                } else if taken.iter().any(|other| same_address(other, bind)) {
                    self.refuse(
                        name,
                        format!("{bind} is named twice (choose another address)"),
                    );
                }
                taken.push(bind.clone());
            }
        }
        let [(_, http), (_, agent)] = lists;
        let serves = !http.is_empty() || !agent.is_empty();
        let root = nix::unistd::geteuid().is_root();
        let user = match (user, serves && root) {
            (Some(Typed(name)), _) => Some(name),
            (None, true) => Some(Name("nobody".to_owned())),
            (None, false) => None,
        };
        let found = user.map(|name| Account::with_group(&name.0)).transpose();
        let user = found.unwrap_or_else(|reason| {
            self.refuse("admin-user", reason);
            None
        });
        Admin { http, agent, user }
    }

    fn warn_of_unused(&mut self, program: &Program, class: ClassName, ready: Ready) {
        let foreign = matches!(program, Program::Command(_));
        for name in RUST_ONLY.into_iter().chain(FOREIGN_ONLY) {
            let reason = match name {
                _ if foreign == FOREIGN_ONLY.contains(&name) => match (name, class) {
                    ("threads", ClassName::Sync | ClassName::Async) => {
                        format!("has no effect in class {class} (it is for class threads)")
                    }
                    ("max-connections", ClassName::Sync | ClassName::Threads) => {
                        format!("has no effect in class {class} (it is for class async)")
                    }
                    _ => continue,
                },
                // That is how they do it.
                "ready" if matches!(ready, Ready::Auto | Ready::Channel) => continue,
                _ if foreign => {
                    "has no effect on another program (it is for apps and Rust services)".to_owned()
                }
                _ => "has no effect on an app or a Rust service (it is for other programs)"
                    .to_owned(),
            };
            if let Some(layer) = self.typed(name) {
                self.warnings
                    .push(format!("{}: {reason}", layer.place(name)));
            }
        }
    }
}

/// Whether two binds would take the same address. Port 0 is another one each time.
fn same_address(one: &Bind, other: &Bind) -> bool {
    match (one, other) {
        (Bind::Unix { path: one, .. }, Bind::Unix { path: other, .. }) => one == other,
        (Bind::Tcp { port: 0, .. }, Bind::Tcp { .. }) => false,
        _ => one == other,
    }
}
