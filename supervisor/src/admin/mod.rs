//! Metrics, health, events and the dashboard over HTTP, and HAProxy's agent checks: served by a
//! child, never by the supervisor.
//!
//! The child is this program in another role: another user, no capability, no file but the
//! libraries that it is made of, few system calls, last in line for a processor. It inherits the
//! admin sockets, which the supervisor keeps, so that a dead child refuses no client, and two
//! connections to the control server with the role *read*: one on which it asks for the status, one
//! on which it is told of events. What it knows it knows by them. When they end it finishes what it
//! has in flight and exits.
//!
//! * this file – the supervisor's side: starting one, letting go of one;
//! * `child` – the child's life; `budget` – how much of a processor it takes; `limiter` –
//!   how many connections there are; `connection` – one HTTP connection, and what it may cost;
//! * `source` – what the child is told; `http` – what is served where; `metrics` – the status as
//!   metrics; `agent_check` – as a line for HAProxy.

mod agent_check;
mod budget;
mod child;
mod connection;
mod http;
mod limiter;
mod metrics;
mod source;

pub(crate) use child::task;

use crate::config::{Config, Limit, Program, Sandbox, SandboxMode, Seccomp};
use crate::generation::{AdminSockets, Generation};
use crate::helpers::{HelperExit, HelperId, HelperProcesses, Kind, role};
use crate::listen::{AddressId, ListenSet};
use crate::process::poll::Poll;
use crate::process::spawn::{Directory, Executable, Order};
use crate::sandbox::Confinement;
use crate::upgrade::{ChildState, Unpacking, environment_without};
use nix::sys::resource::Resource;
use prefork_core::Time;
use prefork_protocol::environment::ALL;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The first argument of a process that plays this role.
const ROLE: &str = "admin";
/// The child's niceness. Not the lowest priority: metrics are needed most when the machine is busy,
/// and the child uses little in any case.
const NICE: i32 = 10;
/// How long a retired child has for its active requests before it is killed.
const RETIRE_TIMEOUT: Duration = Duration::from_secs(8);
/// The uptime after which an exit does not count as a failure.
const MIN_UPTIME: Duration = Duration::from_secs(30);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// The child's limit of descriptors: its clients, and a few of its own.
const MAX_DESCRIPTORS: u64 = 1024;

/// The child that serves, and when the next one is started. Children that were told to leave are
/// only helper processes with a deadline.
#[derive(Debug, Default)]
pub(crate) struct Admin {
    serving: Option<Serving>,
    failures: u32,
    not_before: Time,
}

#[derive(Debug)]
struct Serving {
    helper: HelperId,
    /// What it was started for.
    task: ChildTask,
    since: Time,
}

/// What a child is wanted for: as long as that is the same, it is the same child.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ChildTask {
    http: Vec<AddressId>,
    agent: Vec<AddressId>,
    user: Option<u32>,
}

impl ChildTask {
    fn of(generation: &Generation) -> Option<Self> {
        let AdminSockets { http, agent } = &generation.admin;
        let user = generation.config.admin.user.as_ref().map(|user| user.uid);
        let wanted = Self {
            http: http.addresses().collect(),
            agent: agent.addresses().collect(),
            user,
        };
        (!wanted.http.is_empty() || !wanted.agent.is_empty()).then_some(wanted)
    }
}

/// How a child ended that was to serve.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) how: String,
    /// How long until the next one is started.
    pub(crate) wait: Duration,
}

impl Admin {
    /// Takes over the children of another version: their connections ended with it, so they leave.
    pub(crate) fn adopt_leaving(
        state: Vec<ChildState>,
        now: Time,
        processes: &mut HelperProcesses,
        unpacking: &mut Unpacking,
        check: bool,
    ) {
        for child in state {
            let spawned = child.adopted(unpacking, check, "the admin child");
            processes.adopt(Kind::Admin, spawned, Some(now + RETIRE_TIMEOUT));
        }
    }

    /// Whether the child that serves is not, or no longer, what this generation wants. It is then
    /// to be retired.
    pub(crate) fn is_outdated(&self, generation: &Generation) -> bool {
        self.serving
            .as_ref()
            .is_some_and(|serving| Some(&serving.task) != ChildTask::of(generation).as_ref())
    }

    /// Lets the child that serves leave: its connections have been closed.
    pub(crate) fn retire(&mut self, now: Time, processes: &mut HelperProcesses) {
        self.leave_until(now + RETIRE_TIMEOUT, processes);
    }

    /// As [`retire`](Self::retire), with this deadline: the server exits.
    pub(crate) fn leave_until(&mut self, deadline: Time, processes: &mut HelperProcesses) {
        if let Some(serving) = self.serving.take() {
            processes.set_deadline(serving.helper, deadline);
        }
    }

    /// As [`retire`](Self::retire), of one that could not serve: the next one waits.
    pub(crate) fn retire_failed(&mut self, now: Time, processes: &mut HelperProcesses) {
        self.retire(now, processes);
        self.fail(now);
    }

    /// Starts a child for a generation, if it wants one and none serves. Returns the supervisor's
    /// ends of its connections: for the status and for events.
    ///
    /// # Errors
    /// Why there is none; the next attempt waits.
    pub(crate) fn start(
        &mut self,
        now: Time,
        poll: &Poll,
        processes: &mut HelperProcesses,
        name: &str,
        generation: &Generation,
    ) -> Result<Option<[UnixStream; 2]>, StartError> {
        let Some(task) =
            ChildTask::of(generation).filter(|_| self.serving.is_none() && self.not_before <= now)
        else {
            return Ok(None);
        };
        match launch(poll, processes, name, generation) {
            Ok((helper, ends)) => {
                self.serving = Some(Serving {
                    helper,
                    task,
                    since: now,
                });
                Ok(Some(ends))
            }
            Err(reason) => {
                self.fail(now);
                Err(reason)
            }
        }
    }

    /// A child has exited; returns how, if it was to serve.
    pub(crate) fn finish(
        &mut self,
        now: Time,
        helper: HelperId,
        exit: &HelperExit,
    ) -> Option<Ended> {
        let serving = self.serving.take_if(|serving| serving.helper == helper)?;
        let how = match &exit.failure {
            Some(failure) => failure.to_string(),
            None => exit.death.to_string(),
        };
        if now - serving.since >= MIN_UPTIME {
            self.failures = 0;
        }
        Some(Ended {
            how,
            wait: self.fail(now),
        })
    }

    fn fail(&mut self, now: Time) -> Duration {
        let wait = match self.failures {
            0 => Duration::ZERO,
            n => Duration::from_millis(250)
                .saturating_mul(1 << n.min(10))
                .min(MAX_BACKOFF),
        };
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + wait;
        wait
    }

    /// Returns when a child can be started for a generation that wants one.
    pub(crate) fn deadline(&self, generation: Option<&Generation>) -> Option<Time> {
        let wanted =
            self.serving.is_none() && generation.is_some_and(|one| ChildTask::of(one).is_some());
        wanted.then_some(self.not_before)
    }
}

/// The admin child cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the admin child: {0}")]
pub(crate) struct StartError(Box<dyn std::error::Error>);

impl StartError {
    fn new(error: impl Into<Box<dyn std::error::Error>>) -> Self {
        Self(error.into())
    }
}

fn launch(
    poll: &Poll,
    processes: &mut HelperProcesses,
    name: &str,
    generation: &Generation,
) -> Result<(HelperId, [UnixStream; 2]), StartError> {
    let executable = Executable::current().map_err(StartError::new)?;
    let confinement = confinement(&generation.config, &executable)?;
    let socket = |set: &ListenSet| -> Vec<_> {
        // Sockets that stand alone are slot 0's.
        set.for_slot(0)
            .into_iter()
            .map(|(_, socket)| socket.try_clone_to_owned())
            .collect()
    };
    let own =
        |sockets: Vec<std::io::Result<_>>| sockets.into_iter().collect::<std::io::Result<Vec<_>>>();
    let http = own(socket(&generation.admin.http)).map_err(StartError::new)?;
    let agent = own(socket(&generation.admin.agent)).map_err(StartError::new)?;
    let pair = || UnixStream::pair().map_err(StartError::new);
    let ((our_status, status), (our_events, events)) = (pair()?, pair()?);
    let listeners: Vec<BorrowedFd<'_>> = http.iter().chain(&agent).map(AsFd::as_fd).collect();
    let argv = [format!("{name}: admin")];
    let argv = argv.map(|word| CString::new(word.replace('\0', "")).unwrap_or_default());
    let root = Directory::open(None, Path::new("/"));
    let root = root.map_err(|errno| StartError::new(std::io::Error::from(errno)))?;
    let mut env = environment_without(&ALL);
    env.push(role(
        ROLE,
        &[http.len().to_string(), agent.len().to_string()],
    ));
    let order = Order {
        listeners: &listeners,
        extras: &[status.as_fd(), events.as_fd()],
        directory: Some(&root),
        confinement: &confinement,
        ..Order::own(&executable, &argv, env)
    };
    let helper = processes
        .start(poll, Kind::Admin, order, None)
        .map_err(StartError::new)?;
    if let Some(pid) = processes.pid(helper) {
        // If it fails, the child has the priority of workers.
        let _ = prefork_os::process::set_nice(pid, NICE);
    }
    Ok((helper, [our_status, our_events]))
}

/// What the child gives up: what the worker of a stock app that serves no file gives up, and its
/// user.
fn confinement(config: &Config, executable: &Executable) -> Result<Confinement, StartError> {
    let mut own = config.clone();
    own.program = Program::App("hello".to_owned());
    own.sandbox = Sandbox {
        mode: SandboxMode::BestEffort,
        read_only: Vec::new(),
        writable: Vec::new(),
        tcp_bind: false,
        seccomp: Seccomp::Enforce,
        private_tmp: false,
    };
    let most = |resource, most| Limit {
        resource,
        soft: Some(most),
        hard: Some(most),
    };
    own.limits = vec![most(Resource::RLIMIT_NOFILE, MAX_DESCRIPTORS)];
    own.log.file = None;
    own.privileges = own.privileges.of_admin(own.admin.user.clone());
    let mut confinement = Confinement::prepare(&own).map_err(StartError::new)?;
    confinement
        .add_sandbox(&mut own, executable)
        .map_err(StartError::new)?;
    Ok(confinement)
}
