//! A serving thread: its runtime, its accept loop, its heartbeat.
//!
//! Every class is this loop with other numbers. [`crate::serving_thread`] decides when it accepts.

use crate::accept::{Acceptor, Listeners};
use crate::connection::Connection;
use crate::context::Context;
use crate::control::{Control, Reporter, ThreadReport, WorkerPhase};
use crate::error::StartError;
use crate::service::{Serve, Service};
use crate::serving_thread::{Capacity, ServingThread};
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, task};
use tokio::runtime::LocalOptions;
use tokio::sync::watch;

/// How long to wait after accepting has failed for lack of descriptors or memory.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// How long after its start a thread begins to accept from its siblings' queues: by then they
/// accept from their own.
const SIBLING_DELAY: Duration = Duration::from_millis(100);

/// The most connections that a draining thread accepts because it may have been woken for them.
/// Where there are more, others come, and wake the processes that wait.
const MAX_LEFT_BEHIND: usize = 64;

/// Runs a serving thread, from its start to its end.
pub(crate) fn thread(
    control: &Arc<Control>,
    index: usize,
    context: Context,
    service: &Service,
    listeners: Arc<Listeners>,
    mut reporter: Reporter,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
    {
        Ok(runtime) => runtime,
        Err(error) => {
            reporter.send(ThreadReport::Started(Err(StartError::EventLoop(error))));
            return;
        }
    };
    runtime.block_on(async {
        let thread = Rc::new(ServingThread::new(Arc::clone(control), index));
        let mut phase = control.phase.subscribe();
        let served = service.start(context, &thread).await;
        let acceptor = Acceptor::new(listeners).map_err(StartError::Listeners);
        let (served, acceptor) = match (served, acceptor) {
            (Ok(served), Ok(acceptor)) => (served, Rc::new(acceptor)),
            (Err(reason), _) | (_, Err(reason)) => {
                reporter.send(ThreadReport::Started(Err(reason)));
                reporter.send(ThreadReport::Done { panicked: false });
                return;
            }
        };
        let queue = Rc::clone(&acceptor);
        thread.set_queue_probe(Box::new(move || queue.has_waiting()));
        reporter.send(ThreadReport::Started(Ok(())));
        tokio::task::spawn_local(tick(
            Rc::clone(&thread),
            Rc::downgrade(&acceptor),
            control.phase.subscribe(),
        ));
        if phase
            .wait_for(|phase| *phase != WorkerPhase::Start)
            .await
            .is_err()
        {
            return;
        }
        let take = |socket| take(&thread, &*served, socket);
        if *phase.borrow() == WorkerPhase::Serve {
            tokio::task::spawn_local(watch_siblings(Rc::downgrade(&acceptor)));
            tokio::select! {
                biased;
                _ = phase.wait_for(|phase| *phase != WorkerPhase::Serve) => (),
                () = accept(&thread, &acceptor, take) => (),
            }
        }
        thread.begin_drain();
        let empty_queue = *phase.borrow() == WorkerPhase::Drain { empty_queue: true };
        if empty_queue {
            // No worker follows in this slot, so what is left in its queue would wait forever: the
            // limits do not hold for it.
            while let Ok(Some(socket)) = acceptor.take_own() {
                take(socket);
            }
            // These queues may still have an owner, or have lost theirs.
            while thread.capacity() == Capacity::Available
                && let Ok(Some(socket)) = acceptor.take_siblings()
            {
                take(socket);
            }
        }
        acceptor.pause();
        for _ in 0..MAX_LEFT_BEHIND {
            match acceptor.take_from_blocking() {
                Ok(Some(socket)) => take(socket),
                Ok(None) | Err(_) => break,
            }
        }
        thread.set_queue_probe(Box::new(|| false));
        drop(acceptor);
        reporter.send(ThreadReport::Stopped);
        while !thread.is_empty() {
            thread.changed.notified().await;
        }
        thread.flush_logs();
        reporter.send(ThreadReport::Done { panicked: false });
    });
}

async fn watch_siblings(acceptor: Weak<Acceptor>) {
    tokio::time::sleep(SIBLING_DELAY).await;
    if let Some(acceptor) = acceptor.upgrade() {
        acceptor.watch_siblings();
    }
}

/// Accepts while there is room, until it is dropped.
async fn accept(thread: &Rc<ServingThread>, acceptor: &Acceptor, take: impl Fn(OwnedFd)) {
    let mut refused = false;
    loop {
        if let Some(wait) = wait_for_capacity(thread).await {
            acceptor.pause();
            match wait {
                None => thread.changed.notified().await,
                Some(time) => drop(tokio::time::timeout(time, thread.changed.notified()).await),
            }
            continue;
        }
        let accepted = match acceptor.resume() {
            Ok(()) => poll_fn(|cx| poll_accept(thread, acceptor, cx)).await,
            Err(error) => Err(error),
        };
        match accepted {
            Ok(Some(socket)) => {
                refused = false;
                take(socket);
                // Serve it before the next one is accepted.
                tokio::task::yield_now().await;
            }
            Ok(None) if thread.draining() => std::future::pending().await,
            Ok(None) => (),
            Err(error) => {
                if !refused {
                    log::warn!(
                        "cannot accept connections: {error}; trying again every \
                         {ACCEPT_RETRY_DELAY:?}"
                    );
                    refused = true;
                }
                acceptor.pause();
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

/// Returns how long there will be no capacity unless something changes; `Some(None)` means
/// indefinitely, `None` that there is capacity.
async fn wait_for_capacity(thread: &ServingThread) -> Option<Option<Duration>> {
    if thread.capacity() == Capacity::Available {
        return None;
    }
    // Often there is capacity again as soon as every task that can run has run.
    tokio::task::yield_now().await;
    match thread.capacity() {
        Capacity::Available => None,
        Capacity::AvailableIn(ms) => Some(Some(Duration::from_millis(ms))),
        Capacity::Full => Some(None),
    }
}

/// Polls for a connection; `None` when there is no capacity for one any more.
fn poll_accept(
    thread: &ServingThread,
    acceptor: &Acceptor,
    cx: &mut task::Context<'_>,
) -> task::Poll<io::Result<Option<OwnedFd>>> {
    // Checked again at each wake-up: by now a silent connection may have sent its request.
    if thread.draining() || thread.capacity() != Capacity::Available {
        return task::Poll::Ready(Ok(None));
    }
    acceptor.poll_accept(cx).map_ok(Some)
}

/// Serves an accepted connection.
fn take(thread: &Rc<ServingThread>, served: &dyn Serve, socket: OwnedFd) {
    served.serve(thread, Arc::new(Connection::new(socket)));
}

/// Beats and sweeps until the thread ends.
async fn tick(
    thread: Rc<ServingThread>,
    acceptor: Weak<Acceptor>,
    mut phase: watch::Receiver<WorkerPhase>,
) -> io::Result<()> {
    let heartbeat = Duration::from_millis(thread.settings.heartbeat_ms.max(10));
    let mut next_beat = Instant::now();
    loop {
        let now = Instant::now();
        if now >= next_beat {
            thread.beat();
            thread.flush_logs();
            if let Some(acceptor) = acceptor.upgrade() {
                acceptor.beat();
            }
            next_beat = now + heartbeat;
        }
        thread.sweep();
        let period = thread.period();
        if thread.draining() {
            tokio::time::sleep(period).await;
        } else {
            tokio::select! {
                () = tokio::time::sleep(period) => (),
                _ = phase.wait_for(|phase| phase.is_drain()) => thread.begin_drain(),
            }
        }
    }
}
