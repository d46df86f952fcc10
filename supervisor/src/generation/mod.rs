//! A generation: a valid configuration, its sockets, and the program that it runs.
//!
//! It is everything needed to start a worker, and knows no worker. *Which* generation serves is
//! decided by the core (`prefork-core`).

mod admin_sockets;
pub(crate) mod command;
mod error;
pub(crate) mod loader;
pub(crate) mod steering;

pub(crate) use admin_sockets::AdminSockets;
pub(crate) use error::LoadError;

use crate::config::{AccessTarget, Config, Program, Ready, Surge};
use crate::listen::{ListenError, ListenSet};
use crate::logging::access_log::AccessLog;
use crate::process::spawn::{Directory, Executable};
use crate::sandbox::Confinement;
use prefork_core::{Autoscale, Limits, Plan, ReadinessSignal};
use prefork_protocol::Slot;
use prefork_protocol::settings::Accept;
use std::ffi::CString;
use std::path::PathBuf;

/// Everything needed to start workers of a generation, now or after a rollback.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) config: Config,
    pub(crate) sockets: ListenSet,
    pub(crate) admin: AdminSockets,
    /// Where its workers run, if that is not where the supervisor runs.
    pub(crate) directory: Option<Directory>,
    pub(crate) executable: Executable,
    /// The command line of an external program, or the name of a stock app; none for a linked
    /// service.
    pub(crate) command: Vec<CString>,
    /// What its workers give up.
    pub(crate) confinement: Confinement,
    /// Slots whose sockets listen, as far as this generation has asked for.
    pub(crate) opened: u16,
    /// Where its workers write a line for each request.
    pub(crate) access: Option<AccessLog>,
    /// What the configuration was made of.
    pub(crate) origin: Origin,
}

/// What makes the same configuration again, together with the command line and the environment.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// The text of its file.
    pub(crate) file: Option<String>,
    /// CPUs that could be used.
    pub(crate) cpus: usize,
}

impl Generation {
    /// Returns where its access log goes, if its workers write one.
    pub(crate) fn access_target(&self) -> Option<&AccessTarget> {
        self.config
            .access_log
            .as_ref()
            .filter(|_| self.has_channel())
    }

    /// Returns a directory in which workers can reach a socket of ours: the runtime directory, if
    /// they can enter it.
    pub(crate) fn socket_directory(&self) -> Option<PathBuf> {
        self.confinement.socket_directory()
    }

    /// Makes the sockets of the first `slots` slots listen. None ever stops listening.
    ///
    /// # Errors
    /// The address whose socket cannot listen, and why.
    pub(crate) fn listen(&mut self, slots: u16) -> Result<(), ListenError> {
        let slots = slots.max(self.opened);
        self.sockets.open(slots)?;
        self.opened = slots;
        Ok(())
    }

    /// Returns the slot whose queue a slot's worker accepts from first: its own, unless all share
    /// one.
    pub(crate) fn queue_of(&self, slot: Slot) -> u16 {
        if self.config.accept == Accept::Shared {
            0
        } else {
            slot.0
        }
    }

    /// Returns the queues for connections to the slots in `rotation`.
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

    /// Returns what the core needs to know.
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
            // A program feeds the watchdog at its own pace: it is late only when it hangs.
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

    /// Whether each worker accepts from its own slot's queue. Programs that share one queue get no
    /// other.
    pub(crate) fn serves_each_queue(&self) -> bool {
        self.has_channel() || self.config.accept != Accept::Shared
    }

    /// Whether the workers are Rust workers, which have a channel.
    pub(crate) fn has_channel(&self) -> bool {
        match self.config.program {
            Program::App(_) | Program::Linked => true,
            Program::Command(_) => false,
        }
    }
}
