//! A generation, as the shell holds it: a valid configuration, its sockets, and the program that it runs.

pub(crate) mod steering;

use crate::config::{
    AccessTarget, Bind, Config, ConfigError, Explained, Program, Ready, Source, Surge, Surroundings,
};
use crate::helpers::hooks;
use crate::listen::{ListenSet, Listeners};
use crate::logging::access_log::AccessLog;
use crate::process::spawn::Executable;
use crate::sandbox::Confinement;
use prefork_core::{Autoscale, Limits, Plan, ReadinessSignal};
use prefork_protocol::Slot;
use prefork_protocol::settings::Accept;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Connections that may wait for the admin child.
const ADMIN_BACKLOG: u32 = 128;

/// Everything needed to start workers of a generation, now or after a rollback.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) config: Config,
    pub(crate) sockets: ListenSet,
    /// The sockets of the admin child.
    pub(crate) desk: Desk,
    pub(crate) executable: Executable,
    /// What its workers give up.
    pub(crate) confinement: Confinement,
    /// Slots whose sockets listen, as far as this generation has asked for.
    pub(crate) opened: u16,
    /// Where its workers write a line for each request.
    pub(crate) access: Option<AccessLog>,
    /// What the configuration was made of.
    pub(crate) origin: Origin,
}

/// Sockets that the admin child serves.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) http: ListenSet,
    /// For HAProxy's agent checks.
    pub(crate) agent: ListenSet,
}

/// What makes the same configuration again, together with the command line and the environment.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// The text of its file.
    pub(crate) file: Option<String>,
    /// CPUs that could be used.
    pub(crate) cpus: usize,
}

/// What loading needs to know besides the configuration itself.
#[derive(Debug)]
pub(crate) struct Loader {
    /// The command line and the environment; they name the file.
    pub source: Source,
    /// Where this program was started from: a reload opens whatever is there by then.
    pub own_path: PathBuf,
    /// Names of the inherited sockets.
    pub inherited: Vec<String>,
}

impl Loader {
    /// The configuration as it is now.
    ///
    /// # Errors
    /// Every problem of it.
    pub(crate) fn config(&self) -> Result<Config, ConfigError> {
        let around = Surroundings::of_process(&self.inherited, &prefork_worker::apps::check);
        self.source.load(&around)
    }

    /// Opens the program that a configuration runs. `first`: this very program is meant, not what has replaced it
    /// on disk since it started.
    ///
    /// # Errors
    /// When there is no such program.
    pub(crate) fn executable(&self, config: &Config, first: bool) -> Result<Executable, String> {
        let found = match &config.program {
            Program::App(_) | Program::Linked if first => Executable::current(),
            Program::App(_) | Program::Linked => Executable::open(&self.own_path),
            Program::Command(words) => {
                let path = std::env::var_os("PATH");
                let here = config.directory.as_deref().unwrap_or(Path::new("."));
                Executable::find(
                    words.first().map_or(OsStr::new(""), OsString::as_os_str),
                    path.as_deref(),
                    here,
                )
            }
        };
        found.map_err(|error| error.to_string())
    }

    /// Loads the configuration, opens its program and binds what is new in it. All or nothing.
    ///
    /// # Errors
    /// Why nothing has changed.
    pub(crate) fn load(
        &self,
        listeners: &mut Listeners,
        first: bool,
    ) -> Result<Generation, String> {
        let source = self.source.frozen();
        let around = Surroundings::of_process(&self.inherited, &prefork_worker::apps::check);
        let mut config = source.load(&around).map_err(|error| error.brief())?;
        let origin = Origin {
            file: source.text().map(str::to_owned),
            cpus: around.cpus,
        };
        let mut confinement = Confinement::prepare(&config)?;
        let executable = confinement.program(&config, || self.executable(&config, first))?;
        hooks::open(&config, &confinement)?;
        confinement.add_sandbox(&mut config, &executable)?;
        let sockets = listeners
            .prepare(
                &config.binds,
                config.backlog,
                config.max_workers.max(config.workers),
            )
            .map_err(|error| error.to_string())?;
        let mut alone = |purpose: &str, binds: &[Bind]| {
            listeners
                .prepare_exclusive(purpose, binds, ADMIN_BACKLOG)
                .map_err(|error| error.to_string())
        };
        let desk = Desk {
            http: alone("admin", &config.admin.http)?,
            agent: alone("agent", &config.admin.agent)?,
        };
        let mut generation = Generation {
            config,
            sockets,
            desk,
            executable,
            confinement,
            opened: 0,
            access: None,
            origin,
        };
        generation.access = generation
            .access_target()
            .map(AccessLog::open)
            .transpose()?;
        Ok(generation)
    }

    /// The settings of a generation, and where each came from.
    pub(crate) fn explain(&self, generation: &Generation) -> Vec<Explained> {
        self.source
            .with_text(generation.origin.file.clone())
            .explain(&generation.config)
    }

    /// The configuration that an origin makes.
    ///
    /// # Errors
    /// When it makes none in this version of the program.
    pub(crate) fn config_of(&self, origin: &Origin) -> Result<Config, ConfigError> {
        let around = Surroundings {
            cpus: origin.cpus,
            inherited: &self.inherited,
            check_app: &prefork_worker::apps::check,
        };
        self.source.with_text(origin.file.clone()).load(&around)
    }
}

impl Generation {
    /// Where its access log goes, if its workers write one.
    pub(crate) fn access_target(&self) -> Option<&AccessTarget> {
        self.config
            .access_log
            .as_ref()
            .filter(|_| self.has_channel())
    }

    /// A directory in which workers can reach a socket of ours: the runtime directory, if they can go there.
    pub(crate) fn meeting_place(&self) -> Option<PathBuf> {
        self.confinement.meeting_place()
    }

    /// Has the sockets of the first `slots` slots listen; more never do less.
    ///
    /// # Errors
    /// The address whose socket cannot, and why.
    pub(crate) fn listen(&mut self, slots: u16) -> Result<(), String> {
        let slots = slots.max(self.opened);
        self.sockets
            .open(slots)
            .map_err(|error| error.to_string())?;
        self.opened = slots;
        Ok(())
    }

    /// Whose queue a slot's worker accepts from: that slot's.
    pub(crate) fn queue_of(&self, slot: Slot) -> u16 {
        if self.config.accept == Accept::Shared {
            0
        } else {
            slot.0
        }
    }

    /// The queues for connections to the slots in `rotation`.
    pub(crate) fn queues(&self, rotation: &[Slot]) -> Vec<u16> {
        match self.config.accept {
            Accept::Own | Accept::Steal => rotation
                .iter()
                .map(|slot| slot.0)
                .filter(|slot| *slot < self.opened)
                .collect(),
            Accept::Shared => vec![0],
        }
    }

    /// What the core needs to know of it.
    pub(crate) fn plan(&self) -> Plan {
        let config = &self.config;
        Plan {
            workers: config.workers,
            max_workers: config.max_workers,
            surge: match config.surge {
                Surge::All => u16::MAX,
                Surge::Count(count) => count.get(),
            },
            start_timeout: config.start_timeout,
            // A program that feeds the watchdog does so as it likes: it is late only when it hangs.
            heartbeat: if self.has_channel() {
                config.heartbeat()
            } else {
                config.hang_timeout.unwrap_or_default()
            },
            hang_timeout: config.hang_timeout,
            request_timeout: config.request_timeout.filter(|_| self.has_channel()),
            graceful_timeout: config.graceful_timeout,
            min_ready: config.min_ready,
            steals: self.has_channel() && config.accept != Accept::Own,
            readiness: match config.ready {
                _ if self.has_channel() => ReadinessSignal::Message,
                Ready::Auto | Ready::After(_) | Ready::Channel => ReadinessSignal::Message,
                Ready::Notify => ReadinessSignal::Notify,
                Ready::Listen => ReadinessSignal::Probe,
            },
            max_unavailable: config.max_unavailable,
            recycle: Limits {
                requests: config.max_requests.filter(|_| self.has_channel()),
                age: config.max_age,
                memory: config.max_memory,
            },
            pre_stop_delay: config.pre_stop_delay,
            autoscale: config.range.then(|| Autoscale {
                down_after: config.scale_down_after,
                memory: config.scale_up_memory,
                requests_per_worker: config.requests_per_worker(),
            }),
        }
    }

    /// Whether a worker takes from its own slot's queue. Programs that share one queue get no other.
    pub(crate) fn serves_each_queue(&self) -> bool {
        self.has_channel() || self.config.accept != Accept::Shared
    }

    /// The workers are Rust workers: they have a channel.
    pub(crate) fn has_channel(&self) -> bool {
        match self.config.program {
            Program::App(_) | Program::Linked => true,
            Program::Command(_) => false,
        }
    }

    /// A foreign program's words; none for a Rust worker, which needs none.
    pub(crate) fn words(&self) -> Vec<CString> {
        match &self.config.program {
            Program::App(_) | Program::Linked => Vec::new(),
            // Words came from a command line or a checked file: there is no NUL in them.
            Program::Command(words) => words
                .iter()
                .filter_map(|word| CString::new(word.as_bytes()).ok())
                .collect(),
        }
    }
}
