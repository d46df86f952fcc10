//! What the main thread and the serving threads of a worker share.
//!
//! The main thread watches the channel and the signals; serving threads serve. The main thread sets the
//! [`Phase`], serving threads send [`Report`]s and ring the bell.

use nix::sys::eventfd::{EfdFlags, EventFd};
use prefork::scoreboard::{Row, SharedRow};
use prefork::settings::WorkerSettings;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
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
    row: SharedRow,
    oldest: Vec<AtomicU64>,
    bell: EventFd,
}

impl Control {
    pub(crate) fn new(settings: WorkerSettings, row: SharedRow) -> io::Result<Self> {
        let oldest = (0..settings.class.threads.max(1)).map(|_| AtomicU64::new(u64::MAX)).collect();
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let (phase, _) = watch::channel(Phase::Start);
        Ok(Self { settings: Arc::new(settings), draining: Arc::default(), phase, row, oldest, bell })
    }

    /// The worker's row of the scoreboard.
    pub(crate) fn row(&self) -> &Row {
        &self.row
    }

    /// Notes the start of a thread's oldest handler; `u64::MAX` for none.
    pub(crate) fn set_oldest(&self, thread: usize, started_ms: u64) {
        self.oldest[thread].store(started_ms, Relaxed);
    }

    /// The start of a thread's oldest handler; `u64::MAX` for none.
    pub(crate) fn oldest(&self, thread: usize) -> u64 {
        self.oldest[thread].load(Relaxed)
    }

    /// Tells the supervisor of the oldest handler. The row's own idea is the first request since the worker was last
    /// idle, which may be long gone.
    pub(crate) fn publish_oldest(&self) {
        let oldest = self.oldest.iter().map(|oldest| oldest.load(Relaxed)).min().unwrap_or(u64::MAX);
        self.row().set_oldest(if oldest == u64::MAX { 0 } else { oldest });
    }

    /// A sign of life from a serving thread.
    pub(crate) fn beat(&self) {
        self.row().beat();
        self.publish_oldest();
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
        Self { control, reports, done: false }
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
