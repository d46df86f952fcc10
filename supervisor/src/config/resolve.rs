//! Layers → [`Config`]: what the options mean together.
//!
//! Each field of [`Checked`] is made here by a function of its name. What only refuses a
//! combination of values is a function named `check_`.

use super::admin::Admin;
use super::bind::Bind;
use super::cgroups::WorkerCount;
use super::error::{ConfigError, Place, Problem};
use super::hooks::Hooks;
use super::layer::{Layer, Surroundings};
use super::options::{Applies, Checked, Config, Options, SETTINGS, Setting, setting};
use super::privileges::{Account, Capabilities, CoreDumps, LookupError, NamedGroup, Privileges};
use super::reader::{ConfigValue, OptionValue, Parsed};
use super::ready::Ready;
use super::sandbox::{Limit, Sandbox, SandboxMode, Seccomp};
use super::types::{Control, LogSettings, Program};
use prefork_protocol::Slot;
use prefork_protocol::settings::ClassName;
use std::collections::BTreeSet;

/// Why an external program cannot be asked for what only Rust workers have.
const NO_CHANNEL: &str = "only a program that links the prefork crate has a channel, and always \
                          uses it (choose auto, notify, listen or after=TIME for another one)";

/// Why a supervisor that is neither root nor the workers' user cannot see what they wait for.
const NO_SIGHT: &str = "listen cannot look into workers of another user than supervisor-user \
                        (choose notify or after=TIME, or give both one user)";

/// Makes a configuration of layers, highest first, or says everything that is wrong with it.
pub(crate) fn resolve(
    layers: &[Layer],
    linked: bool,
    around: &Surroundings<'_>,
    warnings: Vec<String>,
) -> Result<Config, ConfigError> {
    let all = layers
        .iter()
        .map(|layer| layer.options.clone())
        .reduce(Options::over)
        .expect("there is always the layer of defaults");
    let mut resolver = Resolver {
        layers,
        all: &all,
        around,
        problems: Vec::new(),
        warnings,
    };
    let program = resolver.program(linked);
    let sandbox = resolver.sandbox(&program);
    let (workers, max_workers, range) = resolver.workers();
    let binds = resolver.binds();
    let admin = resolver.admin(&binds);
    resolver.check_directory();
    let privileges = resolver.privileges();
    resolver.check_ready(&program, &privileges);
    resolver.warn_of_unused(&program, range);
    resolver.warn_of_missing_companions();
    let checked = Checked {
        program,
        binds,
        workers,
        max_workers,
        range,
        env: resolve_option(all.env.as_ref()).into_iter().collect(),
        sandbox,
        limits: Limit::last_of_each(resolve_option(all.limit.as_ref())),
        privileges,
        log: LogSettings {
            level: resolve_option(all.log_level.as_ref()),
            format: resolve_option(all.log_format.as_ref()),
            file: resolve_option(all.log_file.as_ref()),
        },
        admin,
        hooks: Hooks {
            program: given(all.on_event.as_ref()),
            kinds: resolve_option(all.on_event_kinds.as_ref()),
            timeout: resolve_option(all.on_event_timeout.as_ref()),
        },
        control: given(all.control.as_ref()).unwrap_or(Control::Default),
        warnings: resolver.warnings,
    };
    let problems = resolver.problems;
    if problems.is_empty() {
        Ok(Config::new(all, checked))
    } else {
        Err(ConfigError { problems })
    }
}

/// Returns the value of an option that is a list or has a default.
fn resolve_option<V: OptionValue + Clone>(option: Option<&V>) -> V::Resolved {
    V::resolve(option.cloned())
}

/// Returns the value of an option that may be unset.
fn given<T: ConfigValue>(option: Option<&Parsed<T>>) -> Option<T::Resolved> {
    option.map(|Parsed(value)| value.clone())
}

/// The layers, and what has been found in them.
struct Resolver<'a> {
    layers: &'a [Layer],
    /// The layers laid over each other.
    all: &'a Options,
    around: &'a Surroundings<'a>,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl Resolver<'_> {
    /// Returns the highest layer that sets an option, unless that is the one of defaults.
    fn typed(&self, setting: &Setting) -> Option<&Layer> {
        self.layers
            .iter()
            .find(|layer| layer.options.sets(setting))
            .filter(|layer| layer.is_typed())
    }

    /// Returns where an option is set.
    fn place(&self, name: &str) -> Place {
        setting(name)
            .and_then(|setting| self.typed(setting))
            .map_or_else(|| Place::Preset(name.to_owned()), |layer| layer.place(name))
    }

    fn refuse(&mut self, name: &str, message: impl Into<String>) {
        self.problems.push(Problem {
            place: self.place(name),
            message: message.into(),
        });
    }

    /// Returns what workers run. The highest layer that names a program or an app decides.
    fn program(&mut self, linked: bool) -> Program {
        let names_one = |layer: &&Layer| layer.options.app.is_some() || !layer.program.is_empty();
        let typed = self.layers.iter().filter(|layer| layer.is_typed());
        let Some(layer) = typed.clone().find(names_one) else {
            return if linked {
                Program::Linked
            } else {
                Program::App(resolve_option(self.all.app.as_ref()))
            };
        };
        let name = if layer.program.is_empty() {
            "app"
        } else {
            "command"
        };
        let place = layer.place(name);
        let refuse = |message| self.problems.push(Problem { place, message });
        if linked {
            refuse("this program serves a service of its own (leave it out)".to_owned());
            return Program::Linked;
        }
        match given(layer.options.app.as_ref()) {
            None => Program::Command(layer.program.clone()),
            Some(app) if layer.program.is_empty() => {
                if let Err(error) = (self.around.check_app)(&app) {
                    refuse(error.to_string());
                }
                Program::App(app)
            }
            Some(app) => {
                refuse(format!(
                    "a program cannot serve beside the app `{app}` (leave one of them out)"
                ));
                Program::Command(layer.program.clone())
            }
        }
    }

    /// Returns how workers are confined; warns of what is asked for in vain.
    fn sandbox(&mut self, program: &Program) -> Sandbox {
        let all = self.all;
        let stock = matches!(program, Program::App(_));
        let sandbox = Sandbox {
            mode: SandboxMode::Off,
            read_only: resolve_option(all.read_only.as_ref()),
            writable: resolve_option(all.writable.as_ref()),
            tcp_bind: given(all.tcp_bind.as_ref()).unwrap_or(!stock),
            seccomp: given(all.seccomp.as_ref()).unwrap_or(Seccomp::Off),
            private_tmp: given(all.private_tmp.as_ref()).unwrap_or(false),
        };
        let asking: Vec<_> = [
            ("read-only", !sandbox.read_only.is_empty()),
            ("writable", !sandbox.writable.is_empty()),
            ("tcp-bind", given(all.tcp_bind.as_ref()) == Some(false)),
            ("seccomp", sandbox.seccomp != Seccomp::Off),
            ("private-tmp", sandbox.private_tmp),
        ]
        .into_iter()
        .filter_map(|(name, asks)| asks.then_some(name))
        .collect();
        // Workers that have a user of their own are not meant to reach each other or the
        // supervisor.
        let apart = stock || all.user.is_some();
        let mode = given(all.sandbox.as_ref()).unwrap_or(if apart || !asking.is_empty() {
            SandboxMode::BestEffort
        } else {
            SandboxMode::Off
        });
        if mode == SandboxMode::Off {
            for name in asking {
                let place = self.place(name);
                self.warnings
                    .push(format!("{place}: has no effect with sandbox off"));
            }
            return Sandbox::OFF;
        }
        let seccomp = match given(all.seccomp.as_ref()) {
            None if apart => Seccomp::Enforce,
            _ => sandbox.seccomp,
        };
        Sandbox {
            mode,
            seccomp,
            ..sandbox
        }
    }

    /// Returns the fewest and the most workers, and whether their number is a range.
    fn workers(&mut self) -> (u16, u16, bool) {
        let count = resolve_option(self.all.workers.as_ref());
        let workers = match count {
            WorkerCount::Auto => u16::try_from(self.around.cpus)
                .unwrap_or(Slot::MAX)
                .clamp(1, Slot::MAX),
            WorkerCount::Fixed(count) | WorkerCount::Range(count, _) => count,
        };
        let end = match count {
            WorkerCount::Range(_, most) => Some(most),
            WorkerCount::Auto | WorkerCount::Fixed(_) => None,
        };
        let max_workers = given(self.all.max_workers.as_ref())
            .or(end)
            .unwrap_or_else(|| workers.saturating_mul(2).clamp(8, Slot::MAX));
        if let Some(most) = end.filter(|most| *most != max_workers) {
            self.refuse(
                "max-workers",
                format!(
                    "{max_workers} is not the end of the range {workers}..{most} of workers (leave \
                     it out)"
                ),
            );
        } else if max_workers < workers {
            self.refuse(
                "max-workers",
                format!(
                    "{max_workers} is less than the {workers} workers (raise it, or leave it out)"
                ),
            );
        }
        (workers, max_workers, end.is_some())
    }

    /// Returns the addresses; without any, what was inherited.
    fn binds(&mut self) -> Vec<Bind> {
        let binds = resolve_option(self.all.bind.as_ref());
        if binds.is_empty() {
            self.refuse(
                "bind",
                "the list is empty (name an address, or leave it out)",
            );
        }
        let inherited = self.around.inherited;
        let typed = setting("bind").and_then(|bind| self.typed(bind)).is_some();
        if !typed && !inherited.is_empty() {
            let names: BTreeSet<_> = inherited.iter().cloned().collect();
            return names.into_iter().map(Bind::Inherited).collect();
        }
        for (index, bind) in binds.iter().enumerate() {
            if binds[..index]
                .iter()
                .any(|earlier| same_address(earlier, bind))
            {
                self.refuse("bind", format!("{bind} is named twice (leave one out)"));
            }
            let Bind::Inherited(name) = bind.address() else {
                continue;
            };
            if !inherited.contains(name) {
                let names = match inherited {
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

    /// Returns what the admin child serves. It shares no address with the workers.
    fn admin(&mut self, binds: &[Bind]) -> Admin {
        let mut taken: Vec<Bind> = binds.to_vec();
        let http = resolve_option(self.all.admin.as_ref());
        let agent = resolve_option(self.all.agent.as_ref());
        for (name, list) in [("admin", &http), ("agent", &agent)] {
            for bind in list {
                if bind.name().is_some() {
                    self.refuse(
                        name,
                        format!("{bind} has a name, which only workers could use (leave it out)"),
                    );
                } else if matches!(bind, Bind::Fd(_) | Bind::Inherited(_)) {
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
        let serves = !http.is_empty() || !agent.is_empty();
        let root = nix::unistd::geteuid().is_root();
        let found = match given(self.all.admin_user.as_ref()) {
            Some(name) => Some(Account::with_group(&name)),
            None if serves && root => Some(Account::nobody()),
            None => None,
        };
        let user = found.transpose().unwrap_or_else(|error| {
            self.refuse("admin-user", error.to_string());
            None
        });
        Admin { http, agent, user }
    }

    /// Refuses a working directory that does not exist.
    fn check_directory(&mut self) {
        let directory = given(self.all.directory.as_ref());
        if let Some(directory) = directory.filter(|directory| !directory.is_dir()) {
            let message = format!(
                "{} is no directory (make it, or name another)",
                directory.display()
            );
            self.refuse("directory", message);
        }
    }

    /// Looks up all users and groups, and returns as whom workers and the supervisor run.
    fn privileges(&mut self) -> Privileges {
        let all = self.all;
        let user = self.account("user", given(all.user.as_ref()), all.group.is_some());
        let supervisor_user = self.account(
            "supervisor-user",
            given(all.supervisor_user.as_ref()),
            false,
        );
        let group = given(all.group.as_ref()).and_then(|name| self.group("group", &name));
        let groups = resolve_option(all.groups.as_ref())
            .iter()
            .filter_map(|name| self.group("groups", name))
            .collect();
        let found = Privileges {
            user,
            group,
            groups,
            keep: resolve_option(all.keep_cap.as_ref())
                .into_iter()
                .fold(Capabilities::NONE, Capabilities::and),
            no_new_privileges: given(all.no_new_privileges.as_ref()),
            core_dumps: CoreDumps::On,
            supervisor_user,
        };
        let preset = if found.change_identity() {
            CoreDumps::Abort
        } else {
            CoreDumps::On
        };
        Privileges {
            core_dumps: given(all.core_dumps.as_ref()).unwrap_or(preset),
            ..found
        }
    }

    /// Looks up a user, whose group must be known unless another one is set.
    fn account(&mut self, name: &str, user: Option<String>, has_group: bool) -> Option<Account> {
        let found = Account::find(&user?).and_then(|account| {
            if account.gid.is_none() && !has_group {
                let remedy = if name == "user" {
                    "set group, too"
                } else {
                    "name another"
                };
                let user = account.uid.to_string();
                return Err(LookupError::NoGroupOf { user, remedy });
            }
            Ok(account)
        });
        found
            .map_err(|error| self.refuse(name, error.to_string()))
            .ok()
    }

    fn group(&mut self, name: &str, group: &str) -> Option<NamedGroup> {
        NamedGroup::find(group)
            .map_err(|error| self.refuse(name, error.to_string()))
            .ok()
    }

    /// Refuses a readiness that cannot be seen in an external program.
    fn check_ready(&mut self, program: &Program, privileges: &Privileges) {
        if !matches!(program, Program::Command(_)) {
            return;
        }
        let uid = |account: &Option<Account>| account.as_ref().map(|account| account.uid);
        let (user, own) = (uid(&privileges.user), uid(&privileges.supervisor_user));
        match resolve_option(self.all.ready.as_ref()) {
            Ready::Channel => self.refuse("ready", NO_CHANNEL),
            Ready::Listen if user.is_some() && own.is_some() && user != own => {
                self.refuse("ready", NO_SIGHT);
            }
            Ready::Listen | Ready::Auto | Ready::Notify | Ready::After(_) => {}
        }
    }

    /// Warns of options that are set without the one that they belong to.
    fn warn_of_missing_companions(&mut self) {
        for (name, others) in COMPANIONS {
            let is_typed =
                |name: &str| setting(name).is_some_and(|setting| self.typed(setting).is_some());
            if is_typed(name) && !others.iter().any(|other| is_typed(other)) {
                let place = self.place(name);
                let others = others.join(" or ");
                self.warnings.push(format!(
                    "{place}: has no effect without {others} (set that, too)"
                ));
            }
        }
    }

    /// Warns of options that are set and do not apply to these workers.
    fn warn_of_unused(&mut self, program: &Program, range: bool) {
        for setting in SETTINGS {
            let Some(place) = self
                .typed(setting)
                .map(|layer| layer.place(&setting.name()))
            else {
                continue;
            };
            // How Rust workers get ready in any case.
            let natural = setting.name() == "ready"
                && matches!(
                    resolve_option(self.all.ready.as_ref()),
                    Ready::Auto | Ready::Channel
                );
            let class = resolve_option(self.all.class.as_ref());
            if let Some(reason) = unused(setting.applies, program, class, range)
                && !natural
            {
                self.warnings.push(format!("{place}: {reason}"));
            }
        }
    }
}

/// Options that have no effect unless one of the others is set.
const COMPANIONS: [(&str, &[&str]); 4] = [
    ("access-log-format", &["access-log"]),
    ("admin-user", &["admin", "agent"]),
    ("on-event-kinds", &["on-event"]),
    ("on-event-timeout", &["on-event"]),
];

/// Returns why an option has no effect on these workers, if it has none.
fn unused(applies: Applies, program: &Program, class: ClassName, range: bool) -> Option<String> {
    let external = matches!(program, Program::Command(_));
    let other_class = |wanted: ClassName| {
        (class != wanted)
            .then(|| format!("has no effect in class {class} (it is for class {wanted})"))
    };
    match applies {
        Applies::Rust | Applies::Threads | Applies::Async if external => Some(
            "has no effect on an external program (it is for apps and Rust services)".to_owned(),
        ),
        Applies::External if !external => Some(
            "has no effect on an app or a Rust service (it is for external programs)".to_owned(),
        ),
        Applies::Range if !range => Some(
            "has no effect with a fixed number of workers (give a range, like --workers 2..16)"
                .to_owned(),
        ),
        Applies::Threads => other_class(ClassName::Threads),
        Applies::Async => other_class(ClassName::Async),
        // An app beside something else to serve is an error, and has been refused.
        Applies::All | Applies::Stock | Applies::Rust | Applies::External | Applies::Range => None,
    }
}

/// Returns whether two binds would take the same address. Port 0 is another one each time.
fn same_address(one: &Bind, other: &Bind) -> bool {
    match (one.address(), other.address()) {
        (Bind::Unix { path: one, .. }, Bind::Unix { path: other, .. }) => one == other,
        (Bind::Tcp { port: 0, .. }, Bind::Tcp { .. }) => false,
        (one, other) => one == other,
    }
}
