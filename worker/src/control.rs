//! What the main thread and the serving threads of a worker share.
//!
//! The main thread watches the channel and the signals; serving threads serve. The main thread sets the
//! [`Phase`], serving threads send [`Report`]s and ring the bell.

use crate::access::AccessLog;
use crate::slow::SlowLog;
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
pub(crate) enum Phase {
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

/// What a serving thread tells.
#[derive(Debug)]
pub(crate) enum Report {
    /// Its service is made, or why not.
    Started(Result<(), String>),
    /// It has stopped accepting.
    Stopped,
    /// Its last connection is closed, or it has died (`true`).
    Done {
        /// It panicked.
        died: bool,
    },
}

/// Shared by all threads of the worker.
pub(crate) struct Control {
    /// How to serve.
    pub(crate) settings: Arc<WorkerSettings>,
    /// Set before [`Phase::Drain`] is announced, for those who do not wait for announcements.
    pub(crate) draining: Arc<AtomicBool>,
    /// The phase, to be awaited.
    pub(crate) phase: watch::Sender<Phase>,
    /// A line for each request.
    pub(crate) access: Option<AccessLog>,
    /// A warning for each slow one.
    pub(crate) slow: Option<SlowLog>,
    rows: SharedRows,
    bell: EventFd,
}

impl Control {
    pub(crate) fn new(
        settings: WorkerSettings,
        rows: SharedRows,
        access: Option<AccessLog>,
        slow: Option<SlowLog>,
    ) -> io::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let (phase, _) = watch::channel(Phase::Start);
        Ok(Self {
            settings: Arc::new(settings),
            draining: Arc::default(),
            phase,
            access,
            slow,
            rows,
            bell,
        })
    }

    /// A serving thread's row of the scoreboard, for that thread alone.
    pub(crate) fn row(&self, thread: usize) -> &Row {
        self.rows.row(thread)
    }

    /// Announces the drain.
    pub(crate) fn drain(&self, empty_queue: bool) {
        self.draining.store(true, Relaxed);
        self.phase.send_replace(Phase::Drain { empty_queue });
    }

    /// Readable when a report was sent.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Makes the bell silent again.
    pub(crate) fn answer_bell(&self) {
        let _ = self.bell.read();
    }
}

/// A serving thread's way to report. When the thread dies, that is reported too.
pub(crate) struct Reporter {
    control: Arc<Control>,
    reports: mpsc::Sender<Report>,
    done: bool,
}

impl Reporter {
    pub(crate) fn new(control: Arc<Control>, reports: mpsc::Sender<Report>) -> Self {
        Self {
            control,
            reports,
            done: false,
        }
    }

    pub(crate) fn send(&mut self, report: Report) {
        self.done |= matches!(report, Report::Done { .. });
        let _ = self.reports.send(report);
        let _ = self.control.bell.write(1);
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if !self.done {
            self.send(Report::Done { died: true });
        }
    }
}
