//! A worker process from its first instruction to its exit status.
//!
//! The main thread only watches: the channel, the signals, and the reports of the serving threads. So a drain
//! is heard even while every handler blocks.

use crate::accept::Listeners;
use crate::access::AccessLog;
use crate::control::{Control, Report, Reporter};
use crate::service::{Context, Service};
use crate::slow::SlowLog;
use crate::{serve, sys};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prefork_protocol::access::Format;
use prefork_protocol::channel::{Received, WorkerEnd};
use prefork_protocol::environment::{PREFORK_CORE_DUMPS, WorkerEnvironment};
use prefork_protocol::message::{PROTOCOL, ToSupervisor, ToWorker, Welcome, clip};
use prefork_protocol::scoreboard::{Layout, SharedRows};
use prefork_protocol::settings::WorkerSettings;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// How long the welcome may take; it was sent before this process began.
const WELCOME: Duration = Duration::from_secs(10);
/// How long to finish after a signal that did not come through the supervisor.
const BY_SIGNAL: Duration = Duration::from_secs(30);
/// How long to finish when the supervisor is gone: somebody may want to start a new one on the same addresses.
const ORPHANED: Duration = Duration::from_secs(1);
/// How long a thread may take to say that it has stopped accepting. One that is held up by its handler cannot
/// accept either.
const STOPPING: Duration = Duration::from_millis(500);
/// How long a worker that leaves waits for whoever reads its access log.
const WRITE_DOWN: Duration = Duration::from_millis(500);

/// Runs this process as a worker, to its end. To be called first thing in `main`, before anything else opens
/// a descriptor, when [`is_worker`](crate::is_worker) says so; the logger is set up by the caller.
///
/// `service` is called once, with the settings that the supervisor sent. An error ends the worker, and its text is shown to
/// the operator as the reason.
pub fn run(service: impl FnOnce(&WorkerSettings) -> Result<Service, String>) -> ExitCode {
    match Worker::begin() {
        Ok((worker, welcome)) => match worker.start(welcome, service) {
            Ok(code) => code,
            Err((channel, reason)) => {
                log::error!("this worker cannot start: {reason}");
                let _ = channel.send(&ToSupervisor::Failed {
                    reason: clip(&reason),
                });
                ExitCode::FAILURE
            }
        },
        Err(reason) => {
            log::error!("this worker cannot start: {reason}");
            ExitCode::FAILURE
        }
    }
}

struct Worker {
    channel: WorkerEnd,
    scoreboard: OwnedFd,
    listeners: Listeners,
    signals: UnixStream,
    access: Option<(OwnedFd, Format)>,
    slow_ms: Option<u64>,
}

/// What the main thread has heard.
#[derive(Debug, PartialEq)]
enum Heard {
    Drain { empty_queue: bool },
    Signal,
    SupervisorGone,
    Nonsense(String),
    Bell,
    Time,
}

impl Worker {
    fn begin() -> Result<(Self, Welcome), String> {
        #[allow(unsafe_code)]
        // SAFETY: `run` asks its caller to call it before anything else owns descriptors.
        let environment = unsafe { WorkerEnvironment::take() }
            .map_err(|error| error.to_string())?
            .ok_or("it was not started by a supervisor (PREFORK_CHANNEL is not set)")?;
        sys::ignore_sigpipe();
        match std::env::var(PREFORK_CORE_DUMPS).as_deref() {
            Ok("abort") => sys::hide(true),
            Ok("off") => sys::hide(false),
            _ => {}
        }
        let signals =
            register_signals().map_err(|error| format!("cannot handle signals: {error}"))?;
        let channel = environment.channel;
        let deadline = Instant::now() + WELCOME;
        let welcome = loop {
            match channel.receive() {
                Ok(Received::Message(ToWorker::Welcome(welcome))) => break welcome,
                Ok(Received::Message(other)) => {
                    return Err(format!("a welcome was expected, and {other:?} came"));
                }
                Ok(Received::Closed) => return Err("the supervisor is gone".to_owned()),
                Err(error) => return Err(format!("cannot understand the supervisor: {error}")),
                Ok(Received::Nothing) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(format!(
                            "the supervisor has sent no welcome for {WELCOME:?}"
                        ));
                    }
                    let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
                    wait(&mut fds, Some(left));
                }
            }
        };
        let own = environment
            .listeners
            .into_iter()
            .map(|inherited| inherited.socket)
            .collect();
        let listeners = Listeners::new(own, environment.near, environment.far, environment.accept);
        let (access, slow_ms) = (environment.access, environment.slow_ms);
        Ok((
            Self {
                channel,
                scoreboard: environment.scoreboard,
                listeners,
                signals,
                access,
                slow_ms,
            },
            welcome,
        ))
    }

    /// From the welcome to the exit status, or to the reason why it cannot start.
    fn start(
        self,
        welcome: Welcome,
        service: impl FnOnce(&WorkerSettings) -> Result<Service, String>,
    ) -> Result<ExitCode, (WorkerEnd, String)> {
        let Self {
            channel,
            scoreboard,
            listeners,
            mut signals,
            access,
            slow_ms,
        } = self;
        let Welcome { slot, settings, .. } = welcome;
        let context = Context {
            slot,
            generation: welcome.generation,
            worker: welcome.worker,
            workers: welcome.workers,
        };
        log::set_max_level(level(settings.log_level));
        let _ = channel.send(&ToSupervisor::Hello { protocol: PROTOCOL });
        if welcome.protocol < PROTOCOL {
            let reason = format!(
                "the supervisor speaks protocol {}, this worker {PROTOCOL}",
                welcome.protocol
            );
            return Err((channel, reason));
        }
        let prepared = (|| {
            let service = service(&settings)?;
            let rows = SharedRows::open(scoreboard, Layout::of(settings.class.threads)).map_err(
                |error| format!("cannot map this worker's rows of the scoreboard: {error}"),
            )?;
            let threads = usize::from(settings.class.threads.max(1));
            let failed = |error| format!("cannot set up the worker: {error}");
            let start =
                |(fd, format): (OwnedFd, Format)| AccessLog::start(fd, &format, context, threads);
            let access = access.map(start).transpose().map_err(failed)?;
            let slow = slow_ms.map(SlowLog::new);
            let control = Control::new(settings, rows, access, slow).map_err(failed)?;
            Ok((Arc::new(service), Arc::new(control)))
        })();
        let (service, control) = match prepared {
            Ok(prepared) => prepared,
            Err(reason) => return Err((channel, reason)),
        };
        let (sender, reports) = mpsc::channel();
        let listeners = Arc::new(listeners);
        let threads = usize::from(control.settings.class.threads.max(1));
        for index in 0..threads {
            let (control, service) = (Arc::clone(&control), Arc::clone(&service));
            let (listeners, reporter) = (
                Arc::clone(&listeners),
                Reporter::new(Arc::clone(&control), sender.clone()),
            );
            let body =
                move || serve::thread(control, index, context, &service, listeners, reporter);
            if let Err(error) = thread::Builder::new()
                .name(format!("serve-{index}"))
                .spawn(body)
            {
                return Err((
                    channel,
                    format!("cannot start thread {} of {threads}: {error}", index + 1),
                ));
            }
        }
        drop(listeners);
        let mut main = Main {
            channel,
            control,
            reports,
            threads,
            started: 0,
            stopped: 0,
            done: 0,
            died: false,
        };
        match main.wait_for_start(&mut signals) {
            Ok(None) => (),
            Ok(Some(code)) => return Ok(code),
            Err(reason) => return Err((main.channel, reason)),
        }
        main.control
            .phase
            .send_replace(crate::control::Phase::Serve);
        let _ = main.channel.send(&ToSupervisor::Ready);
        log::debug!("worker {} is ready", context.worker);
        let code = main.serve(&mut signals);
        if let Some(access) = &main.control.access {
            access.finish(WRITE_DOWN);
        }
        Ok(code)
    }
}

/// The main thread's view.
struct Main {
    channel: WorkerEnd,
    control: Arc<Control>,
    reports: mpsc::Receiver<Report>,
    threads: usize,
    started: usize,
    stopped: usize,
    done: usize,
    died: bool,
}

impl Main {
    /// Waits until every thread has its service. An exit code when the worker is to leave before that.
    fn wait_for_start(&mut self, signals: &mut UnixStream) -> Result<Option<ExitCode>, String> {
        while self.started < self.threads {
            match self.hear(signals, None) {
                Heard::Bell => self.take_reports()?,
                // Nothing was accepted yet, so nothing is lost by leaving at once.
                Heard::Drain { .. } | Heard::Signal | Heard::SupervisorGone => {
                    return Ok(Some(ExitCode::SUCCESS));
                }
                Heard::Nonsense(error) => {
                    log::error!("cannot understand the supervisor: {error}");
                    return Ok(Some(ExitCode::FAILURE));
                }
                Heard::Time => (),
            }
        }
        Ok(None)
    }

    /// Serves, drains, and tells with which status to exit.
    fn serve(&mut self, signals: &mut UnixStream) -> ExitCode {
        loop {
            let (reason, limit, code) = match self.hear(signals, None) {
                Heard::Bell => {
                    let _ = self.take_reports();
                    if self.died {
                        log::error!(
                            "a serving thread has panicked; this worker leaves to be replaced"
                        );
                        (Heard::Signal, Some(BY_SIGNAL), ExitCode::FAILURE)
                    } else {
                        continue;
                    }
                }
                Heard::Time => continue,
                heard @ Heard::Drain { .. } => (heard, None, ExitCode::SUCCESS),
                heard @ Heard::Signal => (heard, Some(BY_SIGNAL), ExitCode::SUCCESS),
                heard @ Heard::SupervisorGone => {
                    log::warn!("the supervisor is gone; this worker leaves within {ORPHANED:?}");
                    (heard, Some(ORPHANED), ExitCode::SUCCESS)
                }
                Heard::Nonsense(error) => {
                    log::error!(
                        "cannot understand the supervisor: {error}; this worker drains and leaves"
                    );
                    (Heard::Signal, Some(BY_SIGNAL), ExitCode::FAILURE)
                }
            };
            return self.drain(signals, &reason, limit, code);
        }
    }

    fn drain(
        &mut self,
        signals: &mut UnixStream,
        reason: &Heard,
        limit: Option<Duration>,
        code: ExitCode,
    ) -> ExitCode {
        let empty_queue = matches!(reason, Heard::Drain { empty_queue: true });
        self.control.drain(empty_queue);
        let began = Instant::now();
        let mut limit = limit.map(|limit| began + limit);
        let mut listening = *reason != Heard::SupervisorGone && code == ExitCode::SUCCESS;
        let mut told = false;
        // Whoever sends the first signal to a worker that the supervisor drains already asks for no more than that.
        let mut asked = *reason == Heard::Signal;
        while self.done < self.threads {
            let stopping = (!told && !empty_queue).then_some(began + STOPPING);
            // A queue is empty once anybody has seen it empty; without that, all must have let go of it.
            let stopped = if empty_queue {
                self.stopped > 0
            } else {
                self.stopped + self.done >= self.threads
            };
            if !told && (stopped || stopping.is_some_and(|at| at <= Instant::now())) {
                told = true;
                let _ = self.channel.send(&ToSupervisor::Draining);
            }
            let next = [limit, stopping.filter(|_| !told)]
                .into_iter()
                .flatten()
                .min();
            match self.hear_if(listening, signals, next) {
                Heard::Bell => drop(self.take_reports()),
                Heard::Time => {
                    if limit.is_some_and(|at| at <= Instant::now()) {
                        log::warn!(
                            "connections are still open after {:?}; leaving",
                            began.elapsed()
                        );
                        return code;
                    }
                }
                Heard::Drain { .. } => (),
                Heard::Signal if !asked => asked = true,
                Heard::Signal => {
                    log::warn!("a second signal while draining: leaving at once");
                    return code;
                }
                Heard::SupervisorGone => {
                    listening = false;
                    limit = Some(limit.map_or(Instant::now() + ORPHANED, |at| {
                        at.min(Instant::now() + ORPHANED)
                    }));
                }
                Heard::Nonsense(_) => listening = false,
            }
        }
        if !told {
            let _ = self.channel.send(&ToSupervisor::Draining);
        }
        if self.died { ExitCode::FAILURE } else { code }
    }

    fn take_reports(&mut self) -> Result<(), String> {
        self.control.answer_bell();
        while let Ok(report) = self.reports.try_recv() {
            match report {
                Report::Started(Ok(())) => self.started += 1,
                Report::Started(Err(reason)) => return Err(reason),
                Report::Stopped => self.stopped += 1,
                Report::Done { died } => {
                    self.done += 1;
                    self.died |= died;
                    if died && self.started < self.threads {
                        return Err("a serving thread panicked".to_owned());
                    }
                }
            }
        }
        Ok(())
    }

    fn hear(&self, signals: &mut UnixStream, until: Option<Instant>) -> Heard {
        self.hear_if(true, signals, until)
    }

    /// Waits for the next thing to happen; without `listening`, not for the channel.
    fn hear_if(&self, listening: bool, signals: &mut UnixStream, until: Option<Instant>) -> Heard {
        let left = until.map(|at| at.saturating_duration_since(Instant::now()));
        let mut fds = vec![
            PollFd::new(self.control.bell(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        if listening {
            fds.push(PollFd::new(self.channel.as_fd(), PollFlags::POLLIN));
        }
        wait(&mut fds, left);
        let happened = |index: usize| fds.get(index).is_some_and(|fd| fd.any().unwrap_or(false));
        let (bell, signal, channel) = (happened(0), happened(1), happened(2));
        if signal {
            let mut numbers = [0; 16];
            let _ = signals.read(&mut numbers);
            return Heard::Signal;
        }
        if channel {
            match self.channel.receive_with() {
                Ok((Received::Message(ToWorker::Drain(drain)), _)) => {
                    return Heard::Drain {
                        empty_queue: drain.empty_queue,
                    };
                }
                Ok((Received::Message(ToWorker::Reopen), descriptor)) => {
                    match (&self.control.access, descriptor) {
                        (Some(access), Some(descriptor)) => access.reopen(descriptor),
                        (None, _) => {
                            log::warn!("told to reopen an access log that this worker has not got")
                        }
                        (_, None) => log::warn!(
                            "no descriptor is left for the new access log; the old one goes on (raise the limit of open files)"
                        ),
                    }
                }
                Ok((Received::Message(ToWorker::Welcome(_)), _)) => {
                    return Heard::Nonsense("a second welcome".to_owned());
                }
                Ok((Received::Nothing, _)) => (),
                Ok((Received::Closed, _)) => return Heard::SupervisorGone,
                Err(error) => return Heard::Nonsense(error.to_string()),
            }
        }
        if bell { Heard::Bell } else { Heard::Time }
    }
}

/// Waits by poll(2).
fn wait(fds: &mut [PollFd<'_>], left: Option<Duration>) {
    let timeout = match left {
        None => PollTimeout::NONE,
        // Rounded up, or the last millisecond would be a busy loop.
        Some(left) => {
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        }
    };
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => (),
        Err(error) => log::error!("poll: {error}"),
    }
}

/// Whoever signals a worker directly wants it to drain. SIGABRT keeps its meaning: a core for the operator.
fn register_signals() -> std::io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    for signal in [libc::SIGTERM, libc::SIGQUIT, libc::SIGINT] {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}

fn level(number: u8) -> log::LevelFilter {
    match number {
        0 => log::LevelFilter::Off,
        1 => log::LevelFilter::Error,
        2 => log::LevelFilter::Warn,
        3 => log::LevelFilter::Info,
        4 => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    }
}
