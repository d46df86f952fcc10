//! What the main thread and the serving threads of a worker share.
//!
//! The main thread watches the channel and the signals; serving threads serve. The main thread sets
//! the [`WorkerPhase`], serving threads send [`ThreadReport`]s and wake it up.

use crate::access_log::AccessLog;
use crate::error::StartError;
use crate::slow_log::SlowLog;
use nix::sys::eventfd::{EfdFlags, EventFd};
use prefork_protocol::scoreboard::{Row, SharedRows};
use prefork_protocol::settings::WorkerSettings;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use tokio::sync::watch;

/// What the serving threads are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerPhase {
    /// Make the service, then wait.
    Start,
    /// Accept and serve.
    Serve,
    /// Finish.
    Drain {
        /// First accept what already waits.
        empty_queue: bool,
    },
}

impl WorkerPhase {
    /// Returns whether the worker drains.
    pub(crate) fn is_drain(self) -> bool {
        matches!(self, Self::Drain { .. })
    }
}

/// What a serving thread reports.
#[derive(Debug)]
pub(crate) enum ThreadReport {
    /// Its service is made, or why not.
    Started(Result<(), StartError>),
    /// It has stopped accepting.
    Stopped,
    /// Its last connection is closed, or it has panicked (`true`).
    Done {
        /// It panicked.
        panicked: bool,
    },
}

/// Shared by all threads of the worker.
pub(crate) struct Control {
    /// How to serve.
    pub(crate) settings: Arc<WorkerSettings>,
    /// Set before [`WorkerPhase::Drain`] is announced, for code that does not await announcements.
    pub(crate) draining: Arc<AtomicBool>,
    /// The phase, to be awaited.
    pub(crate) phase: watch::Sender<WorkerPhase>,
    /// A line for each request.
    pub(crate) access: Option<AccessLog>,
    /// A warning for each slow one.
    pub(crate) slow: Option<SlowLog>,
    rows: SharedRows,
    wakeup: EventFd,
}

impl Control {
    pub(crate) fn new(
        settings: WorkerSettings,
        rows: SharedRows,
        access: Option<AccessLog>,
        slow: Option<SlowLog>,
    ) -> io::Result<Self> {
        let wakeup = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let (phase, _) = watch::channel(WorkerPhase::Start);
        Ok(Self {
            settings: Arc::new(settings),
            draining: Arc::default(),
            phase,
            access,
            slow,
            rows,
            wakeup,
        })
    }

    /// A serving thread's row of the scoreboard, for that thread alone.
    pub(crate) fn row(&self, thread: usize) -> &Row {
        self.rows.row(thread)
    }

    /// Announces the drain.
    pub(crate) fn drain(&self, empty_queue: bool) {
        self.draining.store(true, Relaxed);
        self.phase.send_replace(WorkerPhase::Drain { empty_queue });
    }

    /// Readable when a report was sent.
    pub(crate) fn wakeup(&self) -> BorrowedFd<'_> {
        self.wakeup.as_fd()
    }

    /// Clears the wake-up.
    pub(crate) fn clear_wakeup(&self) {
        let _ = self.wakeup.read();
    }
}

/// A serving thread's way to report. When the thread dies, that is reported too.
pub(crate) struct Reporter {
    control: Arc<Control>,
    reports: mpsc::Sender<ThreadReport>,
    done: bool,
}

impl Reporter {
    pub(crate) fn new(control: Arc<Control>, reports: mpsc::Sender<ThreadReport>) -> Self {
        Self {
            control,
            reports,
            done: false,
        }
    }

    pub(crate) fn send(&mut self, report: ThreadReport) {
        self.done |= matches!(report, ThreadReport::Done { .. });
        let _ = self.reports.send(report);
        let _ = self.control.wakeup.write(1);
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if !self.done {
            self.send(ThreadReport::Done { panicked: true });
        }
    }
}
