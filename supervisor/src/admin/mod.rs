//! Metrics, health, events and the dashboard over HTTP, and HAProxy's agent checks: served by a child, never by the
//! supervisor.
//!
//! The child is this program in another role: another user, no capability, no file but the libraries that it is made of,
//! few system calls, last in line for a processor. It inherits the admin sockets, which the supervisor keeps, so that a
//! dead child refuses nobody, and two connections to the control server with the role *read*: one on which it asks for
//! the status, one on which it is told of events. What it knows it knows by them. When they end it finishes what it has
//! in hand and leaves.
//!
//! * this file – the supervisor's side: starting one, letting go of one;
//! * `child` – the child's life; `budget` – how much of a processor it takes; `connection` – one HTTP connection, and what it
//!   may cost;
//! * `source` – what the child is told; `http` – what is served where; `metrics` – the status as metrics; `agent` – as a line for HAProxy.

mod agent;
mod budget;
mod child;
mod connection;
mod http;
mod metrics;
mod source;

pub(crate) use child::task;

use crate::config::{Config, Limit, Program, Sandbox, SandboxMode, Seccomp};
use crate::generation::{AdminSockets, Generation};
use crate::helpers::terminating::Terminating;
use crate::listen::{AddressId, ListenSet};
use crate::process::poll::{Interest, Poll, Token};
use crate::process::reap::{Death, reap};
use crate::process::spawn::{Executable, Order, Spawned, spawn};
use crate::sandbox::Confinement;
use crate::upgrade::{ChildState, Packing, Unpacking, environment_without};
use nix::sys::resource::Resource;
use nix::unistd::Pid;
use prefork_core::Time;
use prefork_protocol::environment::ALL;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The first argument of a process that plays this role.
const ROLE: &str = "--admin-child";
/// How long one may take to finish what it has in hand.
const FAREWELL: Duration = Duration::from_secs(8);
/// One that has lived so long has not failed.
const STEADY: Duration = Duration::from_secs(30);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Descriptors of the child: its clients, and a few of its own.
const DESCRIPTORS: u64 = 1024;

/// The child that serves, those that leave, and when the next one is started.
#[derive(Debug, Default)]
pub(crate) struct Admin {
    serving: Option<Running>,
    leaving: Vec<Running>,
    /// Counts those that were started.
    last: u64,
    failures: u32,
    not_before: Time,
}

#[derive(Debug)]
struct Running {
    id: u64,
    spawned: Spawned,
    /// What it was started for.
    task: Wanted,
    since: Time,
    /// When it is killed, if it is to leave.
    until: Option<Time>,
}

/// What a child is wanted for: as long as that is the same, it is the same child.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    http: Vec<AddressId>,
    agent: Vec<AddressId>,
    user: Option<u32>,
}

impl Wanted {
    fn by(generation: &Generation) -> Option<Self> {
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
    pub(crate) wait: Duration,
}

/// A child that was started, and the supervisor's ends of its connections.
#[derive(Debug)]
pub(crate) struct Started<'a> {
    pub(crate) id: u64,
    pub(crate) pid: Pid,
    pub(crate) pidfd: BorrowedFd<'a>,
    pub(crate) ends: [UnixStream; 2],
}

impl Admin {
    /// For the next version of this program: all of them, since its connections, which end with this version, tell the one
    /// that serves to leave, too.
    pub(crate) fn state(&self, packing: &mut Packing) -> Vec<ChildState> {
        let all = self.serving.iter().chain(&self.leaving);
        all.map(|running| ChildState::of(&running.spawned, packing))
            .collect()
    }

    /// Goes on where another version was.
    pub(crate) fn adopted(
        state: Vec<ChildState>,
        now: Time,
        unpacking: &mut Unpacking,
        check: bool,
    ) -> Self {
        let leave = |(id, child): (u64, ChildState)| Running {
            id,
            spawned: child.adopted(unpacking, check, "the admin child"),
            task: Wanted {
                http: Vec::new(),
                agent: Vec::new(),
                user: None,
            },
            since: now,
            until: Some(now + FAREWELL),
        };
        let leaving: Vec<Running> = (1..).zip(state).map(leave).collect();
        Self {
            last: leaving.len() as u64,
            leaving,
            ..Self::default()
        }
    }

    /// Watches those that leave.
    pub(crate) fn watch_all(&self, poll: &Poll) -> std::io::Result<()> {
        self.leaving.iter().try_for_each(|running| {
            poll.add(
                &running.spawned.pidfd,
                Token::Admin(running.id),
                Interest::Read,
            )
        })
    }

    /// Whether the child that serves is not, or not any more, what this generation wants. It is then to be let go of.
    pub(crate) fn is_outdated(&self, generation: &Generation) -> bool {
        self.serving
            .as_ref()
            .is_some_and(|running| Some(&running.task) != Wanted::by(generation).as_ref())
    }

    /// The child that serves is to leave: its connections have been closed.
    pub(crate) fn retire(&mut self, now: Time) {
        if let Some(running) = self.serving.take() {
            self.leaving.push(Running {
                until: Some(now + FAREWELL),
                ..running
            });
        }
    }

    /// As [`retire`](Self::retire), of one that could not serve: the next one waits.
    pub(crate) fn retire_failed(&mut self, now: Time) {
        self.retire(now);
        self.fail(now);
    }

    /// Starts a child for a generation, if it wants one and none serves. Whoever is told of its end calls
    /// [`end`](Self::end).
    ///
    /// # Errors
    /// Why there is none, in the words for the operator.
    pub(crate) fn start(
        &mut self,
        now: Time,
        name: &str,
        generation: &Generation,
    ) -> Result<Option<Started<'_>>, String> {
        let Some(task) =
            Wanted::by(generation).filter(|_| self.serving.is_none() && self.not_before <= now)
        else {
            return Ok(None);
        };
        match launch(name, generation) {
            Ok((spawned, ends)) => {
                self.last += 1;
                let id = self.last;
                let running = Running {
                    id,
                    spawned,
                    task,
                    since: now,
                    until: None,
                };
                let spawned = &self.serving.insert(running).spawned;
                Ok(Some(Started {
                    id,
                    pid: spawned.pid,
                    pidfd: spawned.pidfd.as_fd(),
                    ends,
                }))
            }
            Err(reason) => {
                self.fail(now);
                Err(reason)
            }
        }
    }

    /// A child is dead, perhaps; tells how it has ended, if it was to serve.
    pub(crate) fn end(&mut self, now: Time, id: u64) -> Option<Ended> {
        let serves = self
            .serving
            .as_ref()
            .is_some_and(|running| running.id == id);
        if !serves {
            self.leaving.retain(|running| {
                running.id != id || matches!(reap(&running.spawned.pidfd), Ok(None))
            });
            return None;
        }
        let running = self.serving.as_ref()?;
        let death = match reap(&running.spawned.pidfd) {
            Ok(None) => return None,
            Ok(Some(death)) => death,
            Err(_) => Death::Unknown,
        };
        let Running { spawned, since, .. } = self.serving.take()?;
        let how = spawned
            .exec_errors
            .failure()
            .map_or_else(|| death.to_string(), |failure| failure.to_string());
        if now - since >= STEADY {
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
                .min(LONGEST_WAIT),
        };
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + wait;
        wait
    }

    /// Kills those that were to leave and have not.
    pub(crate) fn expire(&mut self, now: Time, doomed: &mut Terminating) {
        let late = |running: &mut Running| running.until.is_some_and(|until| until <= now);
        self.leaving
            .extract_if(.., late)
            .for_each(|running| doomed.kill(running.spawned));
    }

    /// When one is to be killed, or one can be started for a generation that wants it.
    pub(crate) fn due(&self, generation: Option<&Generation>) -> Option<Time> {
        let wanted =
            self.serving.is_none() && generation.is_some_and(|one| Wanted::by(one).is_some());
        let leaving = self.leaving.iter().filter_map(|running| running.until);
        leaving.chain(wanted.then_some(self.not_before)).min()
    }

    /// By whom a child's end is told.
    pub(crate) fn pidfd(&self, id: u64) -> Option<BorrowedFd<'_>> {
        let all = self.serving.iter().chain(&self.leaving);
        all.into_iter()
            .find(|running| running.id == id)
            .map(|running| running.spawned.pidfd.as_fd())
    }

    /// Their processes, which are no orphans.
    pub(crate) fn pids(&self) -> impl Iterator<Item = Pid> {
        self.serving
            .iter()
            .chain(&self.leaving)
            .map(|running| running.spawned.pid)
    }
}

fn launch(name: &str, generation: &Generation) -> Result<(Spawned, [UnixStream; 2]), String> {
    let failed = |why: &dyn std::fmt::Display| format!("cannot start the admin child: {why}");
    let executable = Executable::current().map_err(|error| failed(&error))?;
    let confinement =
        confinement(&generation.config, &executable).map_err(|reason| failed(&reason))?;
    let socket = |set: &ListenSet| -> Vec<_> {
        // Sockets that stand alone are slot 0's.
        set.for_slot(0)
            .into_iter()
            .map(|(_, socket)| socket.try_clone_to_owned())
            .collect()
    };
    let own =
        |sockets: Vec<std::io::Result<_>>| sockets.into_iter().collect::<std::io::Result<Vec<_>>>();
    let http = own(socket(&generation.admin.http)).map_err(|error| failed(&error))?;
    let agent = own(socket(&generation.admin.agent)).map_err(|error| failed(&error))?;
    let pair = || UnixStream::pair().map_err(|error| failed(&error));
    let ((our_status, status), (our_events, events)) = (pair()?, pair()?);
    let listeners: Vec<BorrowedFd<'_>> = http.iter().chain(&agent).map(AsFd::as_fd).collect();
    let argv = [
        format!("{name}: admin"),
        ROLE.to_owned(),
        http.len().to_string(),
        agent.len().to_string(),
    ];
    let argv = argv.map(|word| CString::new(word.replace('\0', "")).unwrap_or_default());
    let order = Order {
        listeners: &listeners,
        extras: &[status.as_fd(), events.as_fd()],
        directory: Some(c"/"),
        confinement: &confinement,
        ..Order::own(&executable, &argv, environment_without(&ALL))
    };
    let spawned = spawn(order).map_err(|error| failed(&error))?;
    be_modest(spawned.pid);
    Ok((spawned, [our_status, our_events]))
}

/// What the child gives up: what the worker of a stock app that serves no file gives up, and its user.
fn confinement(config: &Config, executable: &Executable) -> Result<Confinement, String> {
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
    own.limits = vec![most(Resource::RLIMIT_NOFILE, DESCRIPTORS)];
    own.log.file = None;
    own.privileges = own.privileges.of_admin(own.admin.user.clone());
    let mut confinement = Confinement::prepare(&own)?;
    confinement.add_sandbox(&mut own, executable)?;
    Ok(confinement)
}

/// Workers come first, also where the kernel shares the processors among sessions.
#[allow(unsafe_code)]
fn be_modest(pid: Pid) {
    let id = libc::id_t::try_from(pid.as_raw()).unwrap_or_default();
    // SAFETY: a plain system call on integers.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, id, 19) };
    // Takes no lock of the child's.
    let _ = std::fs::write(format!("/proc/{pid}/autogroup"), "19");
}
