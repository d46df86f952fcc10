//! A serving thread: its runtime, its accept loop, its heartbeat.
//!
//! Every class is this loop with other numbers. See [`crate::thread`] for when it accepts.

use crate::accept::{Acceptor, Listeners};
use crate::control::{Control, Phase, Report, Reporter};
use crate::link::Link;
use crate::service::{Context, Serve, Service};
use crate::thread::{Room, Thread};
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, task};
use tokio::runtime::LocalOptions;
use tokio::sync::watch;

/// How long to wait after the system has refused a connection for want of descriptors or memory.
const BREATHER: Duration = Duration::from_millis(100);

/// How long after its start a thread begins to take its siblings' connections: they have all begun to take their own.
const SETTLING: Duration = Duration::from_millis(100);

/// The whole life of a serving thread.
pub(crate) fn thread(
    control: Arc<Control>,
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
            reporter.send(Report::Started(Err(format!(
                "cannot start an event loop: {error}"
            ))));
            return;
        }
    };
    runtime.block_on(async {
        let thread = Rc::new(Thread::new(Arc::clone(&control), index));
        let mut phase = control.phase.subscribe();
        let served = service.start(context, &thread).await;
        let acceptor = Acceptor::new(listeners)
            .map_err(|error| format!("cannot watch the listeners: {error}"));
        let (served, acceptor) = match (served, acceptor) {
            (Ok(served), Ok(acceptor)) => (served, Rc::new(acceptor)),
            (Err(reason), _) | (_, Err(reason)) => {
                reporter.send(Report::Started(Err(reason)));
                reporter.send(Report::Done { died: false });
                return;
            }
        };
        let queue = Rc::clone(&acceptor);
        thread.set_queue_peek(Box::new(move || queue.somebody_waits()));
        reporter.send(Report::Started(Ok(())));
        tokio::task::spawn_local(tick(
            Rc::clone(&thread),
            Rc::downgrade(&acceptor),
            control.phase.subscribe(),
        ));
        if phase
            .wait_for(|phase| *phase != Phase::Start)
            .await
            .is_err()
        {
            return;
        }
        let take = |socket| take(&thread, &*served, socket);
        if *phase.borrow() == Phase::Serve {
            tokio::task::spawn_local(settle(Rc::downgrade(&acceptor)));
            tokio::select! {
                biased;
                _ = phase.wait_for(|phase| *phase != Phase::Serve) => (),
                () = accept(&thread, &acceptor, take) => (),
            }
        }
        thread.begin_drain();
        let empty_queue = *phase.borrow() == Phase::Drain { empty_queue: true };
        if empty_queue {
            // Nobody follows: they would wait for ever. The limits do not hold for the last ones.
            while let Ok(Some(socket)) = acceptor.take_own() {
                take(socket);
            }
            // These may still have an owner, or are left by one who died.
            while thread.room() == Room::Yes
                && let Ok(Some(socket)) = acceptor.take_siblings()
            {
                take(socket);
            }
        }
        thread.set_queue_peek(Box::new(|| false));
        drop(acceptor);
        reporter.send(Report::Stopped);
        while !thread.is_empty() {
            thread.changed.notified().await;
        }
        thread.flush_logs();
        reporter.send(Report::Done { died: false });
    });
}

async fn settle(acceptor: Weak<Acceptor>) {
    tokio::time::sleep(SETTLING).await;
    if let Some(acceptor) = acceptor.upgrade() {
        acceptor.settle();
    }
}

/// Accepts while there is room, until it is dropped.
async fn accept(thread: &Rc<Thread>, acceptor: &Acceptor, take: impl Fn(OwnedFd)) {
    let mut refused = false;
    loop {
        if let Some(wait) = no_room(thread).await {
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
                // Let it be served before the next one is taken.
                tokio::task::yield_now().await;
            }
            Ok(None) if thread.draining() => std::future::pending().await,
            Ok(None) => (),
            Err(error) => {
                if !refused {
                    log::warn!(
                        "cannot accept connections: {error}; trying again every {BREATHER:?}"
                    );
                    refused = true;
                }
                acceptor.pause();
                tokio::time::sleep(BREATHER).await;
            }
        }
    }
}

/// How long there will be no room, unless something changes; `Some(None)`: for ever.
async fn no_room(thread: &Thread) -> Option<Option<Duration>> {
    if thread.room() == Room::Yes {
        return None;
    }
    // Often there is room again as soon as everything that can go on has done so.
    tokio::task::yield_now().await;
    match thread.room() {
        Room::Yes => None,
        Room::Later(ms) => Some(Some(Duration::from_millis(ms))),
        Room::No => Some(None),
    }
}

/// A connection, or `None` when there is no room for one any more.
fn poll_accept(
    thread: &Thread,
    acceptor: &Acceptor,
    cx: &mut task::Context<'_>,
) -> task::Poll<io::Result<Option<OwnedFd>>> {
    // Asked again at each wake-up: by now a silent connection may have sent its request.
    if thread.draining() || thread.room() != Room::Yes {
        return task::Poll::Ready(Ok(None));
    }
    acceptor.poll_accept(cx).map_ok(Some)
}

/// Serves an accepted connection.
fn take(thread: &Rc<Thread>, served: &dyn Serve, socket: OwnedFd) {
    served.serve(thread, Arc::new(Link::new(socket)));
}

/// Beats and sweeps, for ever.
async fn tick(
    thread: Rc<Thread>,
    acceptor: Weak<Acceptor>,
    mut phase: watch::Receiver<Phase>,
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
                _ = phase.wait_for(|phase| matches!(phase, Phase::Drain { .. })) => thread.begin_drain(),
            }
        }
    }
}
