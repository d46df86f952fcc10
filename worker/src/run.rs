//! A worker process from its first instruction until its threads serve.
//!
//! [`crate::main_thread`] is what the main thread does after that.

use crate::accept::Listeners;
use crate::accept_loop;
use crate::access_log::AccessLog;
use crate::context::Context;
use crate::control::{Control, Reporter};
use crate::error::{BoxError, StartError};
use crate::main_thread::{self, MainThread};
use crate::service::Service;
use crate::slow_log::SlowLog;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal::{SIGPIPE, SIGXFSZ};
use prefork_protocol::access_log::Format;
use prefork_protocol::channel::{Received, WorkerEnd};
use prefork_protocol::environment::{PREFORK_CORE_DUMPS, WorkerEnvironment};
use prefork_protocol::message::{PROTOCOL, ToSupervisor, ToWorker, Welcome, clip};
use prefork_protocol::scoreboard::{Layout, SharedRows};
use prefork_protocol::settings::WorkerSettings;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// How long the welcome may take; it was sent before this process began.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs this process as a worker, to its end.
///
/// Call it first thing in `main`, before anything else opens a descriptor, when
/// [`is_worker`](crate::is_worker) returns true. The caller sets the logger up.
///
/// `service` is called once, with the settings that the supervisor sent. An error ends the worker,
/// and the operator reads its text as the reason.
pub fn run<E: Into<BoxError>>(
    service: impl FnOnce(&WorkerSettings) -> Result<Service, E>,
) -> ExitCode {
    let (channel, start) = match Start::begin() {
        Ok(begun) => begun,
        Err(error) => {
            log::error!("this worker cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = start.threads(&channel, service).and_then(MainThread::run);
    ended.unwrap_or_else(|error| {
        let reason = error.to_string();
        log::error!("this worker cannot start: {reason}");
        let _ = channel.send(&ToSupervisor::Failed {
            reason: clip(&reason),
        });
        ExitCode::FAILURE
    })
}

/// A process that has received its welcome.
struct Start {
    welcome: Welcome,
    scoreboard: OwnedFd,
    listeners: Listeners,
    signals: UnixStream,
    access: Option<(OwnedFd, Format)>,
    slow_ms: Option<u64>,
}

impl Start {
    /// Takes over what the supervisor left in the environment, and waits for the welcome.
    fn begin() -> Result<(WorkerEnd, Self), StartError> {
        let environment = WorkerEnvironment::take()?.ok_or(StartError::NotAWorker)?;
        // A closed socket, or a file that reaches the limit of its size, is an error of write(2) to
        // a server, not a reason to die.
        for signal in [SIGPIPE, SIGXFSZ] {
            let _ = prefork_os::signal::ignore(signal);
        }
        match std::env::var(PREFORK_CORE_DUMPS).as_deref() {
            Ok("abort") => prefork_os::process::forbid_inspection(true),
            Ok("off") => prefork_os::process::forbid_inspection(false),
            _ => {}
        }
        let signals = main_thread::register_signals().map_err(StartError::Signals)?;
        let channel = environment.channel;
        let welcome = receive_welcome(&channel)?;
        let own = environment
            .listeners
            .into_iter()
            .map(|inherited| inherited.socket)
            .collect();
        let listeners = Listeners::new(
            own,
            environment.watched,
            environment.polled,
            environment.accept,
        );
        let start = Self {
            welcome,
            scoreboard: environment.scoreboard,
            listeners,
            signals,
            access: environment.access,
            slow_ms: environment.slow_ms,
        };
        Ok((channel, start))
    }

    /// Makes the service and starts the serving threads.
    fn threads<E: Into<BoxError>>(
        self,
        channel: &WorkerEnd,
        service: impl FnOnce(&WorkerSettings) -> Result<Service, E>,
    ) -> Result<MainThread<'_>, StartError> {
        let Welcome {
            protocol,
            worker,
            slot,
            generation,
            workers,
            settings,
        } = self.welcome;
        let context = Context {
            slot,
            generation,
            worker,
            workers,
        };
        log::set_max_level(level_filter(settings.log_level));
        let _ = channel.send(&ToSupervisor::Hello { protocol: PROTOCOL });
        if protocol < PROTOCOL {
            return Err(StartError::Protocol(protocol));
        }
        let service = service(&settings).map_err(|error| StartError::Service(error.into()))?;
        let service = Arc::new(service);
        let rows = SharedRows::open(self.scoreboard, Layout::of(settings.class.threads))
            .map_err(StartError::Scoreboard)?;
        let threads = usize::from(settings.class.threads.max(1));
        let access = self
            .access
            .map(|(fd, format)| AccessLog::start(fd, &format, context, threads))
            .transpose()
            .map_err(StartError::SetUp)?;
        let slow = self.slow_ms.map(SlowLog::new);
        let control = Control::new(settings, rows, access, slow).map_err(StartError::SetUp)?;
        let control = Arc::new(control);
        let (sender, reports) = mpsc::channel();
        let listeners = Arc::new(self.listeners);
        for index in 0..threads {
            let (control, service) = (Arc::clone(&control), Arc::clone(&service));
            let listeners = Arc::clone(&listeners);
            let reporter = Reporter::new(Arc::clone(&control), sender.clone());
            let body = move || {
                accept_loop::thread(&control, index, context, &service, listeners, reporter);
            };
            thread::Builder::new()
                .name(format!("serve-{index}"))
                .spawn(body)
                .map_err(|error| StartError::Thread {
                    number: index + 1,
                    threads,
                    error,
                })?;
        }
        Ok(MainThread::new(
            channel,
            self.signals,
            control,
            reports,
            threads,
        ))
    }
}

/// Waits for the supervisor's first message.
fn receive_welcome(channel: &WorkerEnd) -> Result<Welcome, StartError> {
    let deadline = Instant::now() + WELCOME_TIMEOUT;
    loop {
        match channel.receive()? {
            Received::Message(ToWorker::Welcome(welcome)) => return Ok(welcome),
            Received::Message(other) => return Err(StartError::NoWelcome(other)),
            Received::Closed => return Err(StartError::SupervisorGone),
            Received::Nothing => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(StartError::WelcomeTimeout(WELCOME_TIMEOUT));
                }
                let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
                main_thread::wait(&mut fds, Some(left));
            }
        }
    }
}

fn level_filter(number: u8) -> log::LevelFilter {
    match number {
        0 => log::LevelFilter::Off,
        1 => log::LevelFilter::Error,
        2 => log::LevelFilter::Warn,
        3 => log::LevelFilter::Info,
        4 => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    }
}
