//! The main thread of a worker: it watches the channel, the signals, and the reports of the
//! serving threads.
//!
//! It serves nothing itself, so a request to drain is heard even while every handler blocks.

use crate::control::{Control, ThreadReport, WorkerPhase};
use crate::error::StartError;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prefork_protocol::channel::{ChannelError, Received, WorkerEnd};
use prefork_protocol::message::{ToSupervisor, ToWorker};
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use thiserror::Error;

/// How long to finish after a signal that did not come through the supervisor.
const SIGNAL_DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to finish when the supervisor is gone: a new one may be about to start on the same
/// addresses.
const ORPHAN_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a thread may take to report that it has stopped accepting. One that is held up by its
/// handler cannot accept either.
const STOP_ACCEPTING_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a worker that exits waits for the reader of its access log.
const ACCESS_LOG_TIMEOUT: Duration = Duration::from_millis(500);

/// What the main thread waits for.
#[derive(Debug)]
enum MainEvent {
    /// The supervisor asks for a drain.
    Drain { empty_queue: bool },
    /// A signal was sent to this process directly.
    Signal,
    /// The supervisor has closed the channel.
    SupervisorGone,
    /// The supervisor sent something that makes no sense.
    ProtocolError(ProtocolError),
    /// Serving threads have reported.
    Reports,
    /// The time is up, or the wait was interrupted.
    Timeout,
}

/// What is wrong with a message from the supervisor.
#[derive(Debug, Error)]
enum ProtocolError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("a second welcome")]
    SecondWelcome,
}

/// The main thread's view of the worker.
pub(crate) struct MainThread<'c> {
    channel: &'c WorkerEnd,
    signals: UnixStream,
    control: Arc<Control>,
    reports: mpsc::Receiver<ThreadReport>,
    /// How many serving threads there are, and how many have got how far.
    threads: usize,
    started: usize,
    stopped: usize,
    done: usize,
    /// Whether one has panicked.
    panicked: bool,
}

impl<'c> MainThread<'c> {
    /// Watches over serving threads that have just been started.
    pub(crate) fn new(
        channel: &'c WorkerEnd,
        signals: UnixStream,
        control: Arc<Control>,
        reports: mpsc::Receiver<ThreadReport>,
        threads: usize,
    ) -> Self {
        Self {
            channel,
            signals,
            control,
            reports,
            threads,
            started: 0,
            stopped: 0,
            done: 0,
            panicked: false,
        }
    }

    /// Runs the worker to its end, and returns its exit status.
    pub(crate) fn run(mut self) -> Result<ExitCode, StartError> {
        if let Some(code) = self.wait_for_start()? {
            return Ok(code);
        }
        self.control.phase.send_replace(WorkerPhase::Serve);
        let _ = self.channel.send(&ToSupervisor::Ready);
        log::debug!("this worker is ready");
        let code = self.serve();
        if let Some(access) = &self.control.access {
            access.finish(ACCESS_LOG_TIMEOUT);
        }
        Ok(code)
    }

    /// Waits until every thread has its service. Returns an exit code when the worker is to leave
    /// before that.
    fn wait_for_start(&mut self) -> Result<Option<ExitCode>, StartError> {
        while self.started < self.threads {
            match self.next_event(true, None) {
                MainEvent::Reports => self.take_reports()?,
                // Nothing was accepted yet, so nothing is lost by leaving at once.
                MainEvent::Drain { .. } | MainEvent::Signal | MainEvent::SupervisorGone => {
                    return Ok(Some(ExitCode::SUCCESS));
                }
                MainEvent::ProtocolError(error) => {
                    log::error!("cannot understand the supervisor: {error}");
                    return Ok(Some(ExitCode::FAILURE));
                }
                MainEvent::Timeout => (),
            }
        }
        Ok(None)
    }

    /// Serves, drains, and returns the exit status.
    fn serve(&mut self) -> ExitCode {
        let (reason, limit, code) = loop {
            match self.next_event(true, None) {
                MainEvent::Reports => {
                    let _ = self.take_reports();
                    if self.panicked {
                        log::error!(
                            "a serving thread has panicked; this worker leaves to be replaced"
                        );
                        let limit = Some(SIGNAL_DRAIN_TIMEOUT);
                        break (MainEvent::Signal, limit, ExitCode::FAILURE);
                    }
                }
                MainEvent::Timeout => (),
                event @ MainEvent::Drain { .. } => break (event, None, ExitCode::SUCCESS),
                MainEvent::Signal => {
                    let limit = Some(SIGNAL_DRAIN_TIMEOUT);
                    break (MainEvent::Signal, limit, ExitCode::SUCCESS);
                }
                MainEvent::SupervisorGone => {
                    log::warn!(
                        "the supervisor is gone; this worker leaves within \
                         {ORPHAN_DRAIN_TIMEOUT:?}"
                    );
                    let limit = Some(ORPHAN_DRAIN_TIMEOUT);
                    break (MainEvent::SupervisorGone, limit, ExitCode::SUCCESS);
                }
                MainEvent::ProtocolError(error) => {
                    log::error!(
                        "cannot understand the supervisor: {error}; this worker drains and leaves"
                    );
                    let limit = Some(SIGNAL_DRAIN_TIMEOUT);
                    break (MainEvent::Signal, limit, ExitCode::FAILURE);
                }
            }
        };
        self.drain(&reason, limit, code)
    }

    /// Drains within `limit`, and returns the exit status: `code`, unless a thread panics.
    fn drain(&mut self, reason: &MainEvent, limit: Option<Duration>, code: ExitCode) -> ExitCode {
        let empty_queue = matches!(reason, MainEvent::Drain { empty_queue: true });
        self.control.drain(empty_queue);
        let began = Instant::now();
        let mut limit = limit.map(|limit| began + limit);
        let gone = matches!(reason, MainEvent::SupervisorGone);
        let mut channel_open = !gone && code == ExitCode::SUCCESS;
        let mut drain_reported = false;
        // A first signal to a worker that the supervisor already drains asks for no more than that.
        let mut signalled = matches!(reason, MainEvent::Signal);
        while self.done < self.threads {
            let stop_by =
                (!drain_reported && !empty_queue).then_some(began + STOP_ACCEPTING_TIMEOUT);
            // A queue is empty once any thread has seen it empty; without that, all must have
            // stopped accepting from it.
            let stopped = if empty_queue {
                self.stopped > 0
            } else {
                self.stopped + self.done >= self.threads
            };
            if !drain_reported && (stopped || stop_by.is_some_and(|at| at <= Instant::now())) {
                drain_reported = true;
                let _ = self.channel.send(&ToSupervisor::Draining);
            }
            let next = [limit, stop_by.filter(|_| !drain_reported)]
                .into_iter()
                .flatten()
                .min();
            match self.next_event(channel_open, next) {
                MainEvent::Reports => drop(self.take_reports()),
                MainEvent::Timeout => {
                    if limit.is_some_and(|at| at <= Instant::now()) {
                        log::warn!(
                            "connections are still open after {:?}; leaving",
                            began.elapsed()
                        );
                        return code;
                    }
                }
                MainEvent::Drain { .. } => (),
                MainEvent::Signal if !signalled => signalled = true,
                MainEvent::Signal => {
                    log::warn!("a second signal while draining: leaving at once");
                    return code;
                }
                MainEvent::SupervisorGone => {
                    channel_open = false;
                    let orphaned = Instant::now() + ORPHAN_DRAIN_TIMEOUT;
                    limit = Some(limit.map_or(orphaned, |at| at.min(orphaned)));
                }
                MainEvent::ProtocolError(_) => channel_open = false,
            }
        }
        if !drain_reported {
            let _ = self.channel.send(&ToSupervisor::Draining);
        }
        if self.panicked {
            ExitCode::FAILURE
        } else {
            code
        }
    }

    fn take_reports(&mut self) -> Result<(), StartError> {
        self.control.clear_wakeup();
        while let Ok(report) = self.reports.try_recv() {
            match report {
                ThreadReport::Started(Ok(())) => self.started += 1,
                ThreadReport::Started(Err(error)) => return Err(error),
                ThreadReport::Stopped => self.stopped += 1,
                ThreadReport::Done { panicked } => {
                    self.done += 1;
                    self.panicked |= panicked;
                    if panicked && self.started < self.threads {
                        return Err(StartError::ThreadPanicked);
                    }
                }
            }
        }
        Ok(())
    }

    /// Waits for the next event until a time; for one on the channel only while that is open.
    fn next_event(&mut self, channel_open: bool, until: Option<Instant>) -> MainEvent {
        let left = until.map(|at| at.saturating_duration_since(Instant::now()));
        let mut fds = vec![
            PollFd::new(self.control.wakeup(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        if channel_open {
            fds.push(PollFd::new(self.channel.as_fd(), PollFlags::POLLIN));
        }
        wait(&mut fds, left);
        let happened = |index: usize| fds.get(index).is_some_and(|fd| fd.any().unwrap_or(false));
        let (reports, signal, channel) = (happened(0), happened(1), happened(2));
        if signal {
            let mut numbers = [0; 16];
            let _ = self.signals.read(&mut numbers);
            return MainEvent::Signal;
        }
        if channel && let Some(event) = self.receive() {
            return event;
        }
        if reports {
            MainEvent::Reports
        } else {
            MainEvent::Timeout
        }
    }

    /// Receives a message from the supervisor, and handles those that the caller need not know.
    fn receive(&self) -> Option<MainEvent> {
        match self.channel.receive_with() {
            Ok((Received::Message(ToWorker::Drain(drain)), _)) => Some(MainEvent::Drain {
                empty_queue: drain.empty_queue,
            }),
            Ok((Received::Message(ToWorker::Reopen), descriptor)) => {
                self.reopen(descriptor);
                None
            }
            Ok((Received::Message(ToWorker::Welcome(_)), _)) => {
                Some(MainEvent::ProtocolError(ProtocolError::SecondWelcome))
            }
            Ok((Received::Nothing, _)) => None,
            Ok((Received::Closed, _)) => Some(MainEvent::SupervisorGone),
            Err(error) => Some(MainEvent::ProtocolError(error.into())),
        }
    }

    fn reopen(&self, descriptor: Option<OwnedFd>) {
        match (&self.control.access, descriptor) {
            (Some(access), Some(descriptor)) => access.reopen(descriptor),
            (None, _) => {
                log::warn!("cannot reopen the access log: this worker was started without one");
            }
            (_, None) => log::warn!(
                "cannot reopen the access log, keeping the old file: no descriptor is left for \
                 the new one (raise the limit of open files)"
            ),
        }
    }
}

/// Waits by poll(2).
pub(crate) fn wait(fds: &mut [PollFd<'_>], left: Option<Duration>) {
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

/// Turns the signals that ask a process to end into bytes on a socket. SIGABRT keeps its meaning: a
/// core dump for the operator.
pub(crate) fn register_signals() -> std::io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    for signal in [libc::SIGTERM, libc::SIGQUIT, libc::SIGINT] {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}
