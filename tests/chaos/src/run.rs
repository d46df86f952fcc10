//! Carries out a plan on a subject while clients are at work.

use crate::client::{Clients, Name};
use crate::held;
use crate::plan::{Operation, Step};
use crate::subject::{Subject, Verdict};
use nix::sys::signal::Signal;
use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use testkit::process::Process;

/// How long the server may take to be settled after a step. Slow clients and stopped workers are
/// what it waits for.
const SETTLE: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(20);

/// One operation, as it went.
#[derive(Debug, Clone)]
pub struct Event {
    /// When it began, since the load did.
    pub at: Duration,
    /// How long it took.
    pub took: Duration,
    /// The step of the plan that it belongs to.
    pub step: u64,
    /// Its kind.
    pub kind: &'static str,
    /// What was done.
    pub what: String,
    /// How it ended.
    pub verdict: Verdict,
}

/// A worker that was killed, and what it had in its hands.
#[derive(Debug, Clone)]
pub struct Kill {
    /// When, since the load's beginning.
    pub at: Duration,
    /// Whom.
    pub process: Process,
    /// By which signal.
    pub signal: &'static str,
    /// How many connections it held, idle ones too.
    pub held: usize,
    /// How many of those were still open at the client's end.
    pub open: usize,
}

/// What happened in a run so far.
#[derive(Debug, Default)]
pub struct Journal {
    /// Operations, by their end.
    pub events: Vec<Event>,
    /// Workers killed, by number.
    pub kills: Vec<Kill>,
}

/// Carries out steps.
pub struct Runner<'a> {
    subject: &'a dyn Subject,
    clients: &'a Clients,
    workers: usize,
    journal: Mutex<Journal>,
    /// Held while a worker is stopped to be killed: nothing may continue it meanwhile.
    stopped: Mutex<()>,
    /// Workers that were asked to drain, each with its start.
    drained: Mutex<HashSet<(Process, u64)>>,
}

impl std::fmt::Debug for Runner<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut runner = formatter.debug_struct("Runner");
        runner.field("workers", &self.workers);
        runner.finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Runner<'a> {
    /// For a subject with this many workers.
    pub fn new(subject: &'a dyn Subject, clients: &'a Clients, workers: usize) -> Self {
        Self {
            subject,
            clients,
            workers,
            journal: Mutex::default(),
            stopped: Mutex::default(),
            drained: Mutex::default(),
        }
    }

    /// What happened.
    pub fn into_journal(self) -> Journal {
        self.journal
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, step: u64, began: Instant, kind: &'static str, what: String, verdict: Verdict) {
        let at = began.saturating_duration_since(self.clients.began());
        let event = Event {
            at,
            took: began.elapsed(),
            step,
            kind,
            what,
            verdict,
        };
        lock(&self.journal).events.push(event);
    }

    /// Does what a step says, and waits until the server is as it was before. False when it does
    /// not become so.
    pub fn carry_out(&self, number: u64, step: &Step) -> bool {
        let (began, alone) = (Instant::now(), step.is_alone());
        std::thread::scope(|scope| {
            for (offset, operation) in &step.operations {
                scope.spawn(move || {
                    std::thread::sleep((began + *offset).saturating_duration_since(Instant::now()));
                    let began = Instant::now();
                    let verdict = self.perform(operation, alone);
                    self.note(
                        number,
                        began,
                        operation.kind(),
                        operation.to_string(),
                        verdict,
                    );
                });
            }
        });
        let calm = self.calm(number);
        std::thread::sleep(step.pause);
        calm
    }

    /// Waits until the server is settled with as many workers as it had at first.
    fn calm(&self, step: u64) -> bool {
        let began = Instant::now();
        if !self.settle() {
            let wrong = Verdict::Wrong(format!("the server has not settled within {SETTLE:?}"));
            self.note(step, began, "settle", "settle".to_owned(), wrong);
            return false;
        }
        match self.subject.workers().map(|workers| workers.len()) {
            Ok(count) if count == self.subject.processes(self.workers) => true,
            Ok(count) => {
                // Operations that overlapped have left another number, which is right.
                let verdict = self.subject.scale(self.workers, true);
                let right = verdict == Verdict::Done && self.settle();
                let what = format!("scale from {count} back to {}", self.workers);
                self.note(step, began, "settle", what, verdict);
                right
            }
            Err(reason) => {
                self.note(
                    step,
                    began,
                    "settle",
                    "settle".to_owned(),
                    Verdict::Wrong(reason),
                );
                false
            }
        }
    }

    /// Waits until it is settled, and still so a moment later: a signal may be on its way.
    fn settle(&self) -> bool {
        let end = Instant::now() + SETTLE;
        let mut seen = 0;
        while seen < 2 {
            seen = if self.subject.settled() { seen + 1 } else { 0 };
            if Instant::now() > end || self.clients.is_gone() || !self.subject.supervisor().runs() {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }

    fn perform(&self, operation: &Operation, alone: bool) -> Verdict {
        match *operation {
            Operation::Reload(asked) => self.subject.reload(asked, alone),
            Operation::Break(how) => self
                .subject
                .broken_reload(how, alone, &|worker| drop(self.kill(&[worker], false))),
            Operation::Upgrade => self.subject.upgrade(alone),
            Operation::Scale { to, settle } => self.scale(to, settle, alone),
            Operation::Kill { worker, count } => {
                self.on_workers(worker, count, |victims| self.kill(victims, alone))
            }
            Operation::Abort { worker } => {
                self.on_workers(worker, 1, |victims| self.abort(victims))
            }
            Operation::Stall {
                worker,
                count,
                time,
            } => self.on_workers(worker, count, |victims| self.stall(victims, time, alone)),
            Operation::StallSupervisor { time } => self.stall_supervisor(time),
            Operation::Recycle { worker } => {
                self.on_workers(worker, 1, |them| self.left(them, self.drain(them[0])))
            }
            Operation::Burst { count, address } => {
                self.clients
                    .burst(count, usize::try_from(address).unwrap_or(0));
                Verdict::Done
            }
        }
    }

    /// The workers that a number names, of those there are now.
    fn on_workers(
        &self,
        first: u64,
        count: u64,
        act: impl FnOnce(&[Process]) -> Verdict,
    ) -> Verdict {
        match self.subject.workers() {
            Err(reason) => Verdict::Wrong(reason),
            Ok(workers) if workers.is_empty() => {
                Verdict::Refused("there is no worker now".to_owned())
            }
            Ok(mut workers) => {
                let length = workers.len();
                workers.rotate_left(usize::try_from(first).unwrap_or(0) % length);
                workers.truncate(usize::try_from(count).unwrap_or(1).min(length));
                act(&workers)
            }
        }
    }

    /// Waits until the server itself knows these workers no more, unless the verdict is that they
    /// stay.
    fn left(&self, workers: &[Process], verdict: Verdict) -> Verdict {
        if verdict != Verdict::Done {
            return verdict;
        }
        let end = Instant::now() + SETTLE;
        loop {
            match self.subject.workers() {
                Ok(there) if !workers.iter().any(|worker| there.contains(worker)) => {
                    return verdict;
                }
                Ok(_) if Instant::now() > end => {
                    return Verdict::Wrong(format!(
                        "{workers:?} had to leave and are there after {SETTLE:?}"
                    ));
                }
                Ok(_) => std::thread::sleep(POLL),
                Err(reason) => return Verdict::Wrong(reason),
            }
        }
    }

    /// Asks a worker to leave, once: a second request means that it is to leave immediately.
    fn drain(&self, worker: Process) -> Verdict {
        if lock(&self.drained).insert((worker, worker.started())) {
            self.subject.drain_worker(worker)
        } else {
            Verdict::Refused(format!("worker {} was asked before", worker.0))
        }
    }

    fn scale(&self, to: usize, settle: bool, alone: bool) -> Verdict {
        let few = self.subject.scale(to, alone);
        if few != Verdict::Done {
            return few;
        }
        if settle && !self.settle() {
            return Verdict::Wrong(format!("not settled with {to} workers within {SETTLE:?}"));
        }
        self.subject.scale(self.workers, alone)
    }

    /// Stops a worker, and marks what it holds as lost with it.
    fn doom(&self, worker: Process, signal: &'static str) -> Result<(), Verdict> {
        let names: HashSet<Name> = match held::hold(worker) {
            Ok(names) => names,
            Err(_) if !worker.runs() => {
                return Err(Verdict::Refused(format!(
                    "worker {} had left by itself",
                    worker.0
                )));
            }
            Err(reason) => {
                worker.signal(Signal::SIGCONT);
                return Err(Verdict::Wrong(reason));
            }
        };
        // Its number must be known before a client can fail because of it.
        let mut journal = lock(&self.journal);
        let (kill, at) = (journal.kills.len(), self.clients.began().elapsed());
        let held = names.len();
        let open = self.clients.doom(names, kill);
        journal.kills.push(Kill {
            at,
            process: worker,
            signal,
            held,
            open,
        });
        Ok(())
    }

    fn kill(&self, victims: &[Process], alone: bool) -> Verdict {
        if !self.subject.heals() {
            return Verdict::Unsupported("a dead worker is not replaced".to_owned());
        }
        let held = lock(&self.stopped);
        let before = self.subject.workers();
        let mut verdict = Verdict::Done;
        for victim in victims {
            match self.doom(*victim, "SIGKILL") {
                Ok(()) => victim.signal(Signal::SIGKILL),
                Err(other) => verdict = other,
            }
        }
        drop(held);
        let verdict = self.left(victims, verdict);
        if !alone || verdict != Verdict::Done {
            return verdict;
        }
        if !self.settle() {
            return Verdict::Wrong(format!("not replaced within {SETTLE:?}"));
        }
        match (before, self.subject.workers()) {
            (Ok(before), Ok(after)) => {
                let new = after
                    .iter()
                    .filter(|worker| !before.contains(worker))
                    .count();
                let dead = victims.iter().all(|victim| !after.contains(victim));
                if dead && new == victims.len() {
                    Verdict::Done
                } else {
                    Verdict::Wrong(format!("workers {before:?} became {after:?}"))
                }
            }
            (Err(reason), _) | (_, Err(reason)) => Verdict::Wrong(reason),
        }
    }

    fn abort(&self, victims: &[Process]) -> Verdict {
        if !self.subject.heals() {
            return Verdict::Unsupported("a dead worker is not replaced".to_owned());
        }
        let Some(victim) = victims.first() else {
            return Verdict::Done;
        };
        let held = lock(&self.stopped);
        if let Err(other) = self.doom(*victim, "SIGABRT") {
            return other;
        }
        // It is stopped: the signal waits for it, and is what it meets first.
        victim.signal(Signal::SIGABRT);
        victim.signal(Signal::SIGCONT);
        drop(held);
        self.left(victims, Verdict::Done)
    }

    fn stall(&self, victims: &[Process], time: Duration, alone: bool) -> Verdict {
        let known: Vec<_> = victims
            .iter()
            .map(|victim| (*victim, victim.started()))
            .collect();
        let is_same =
            |(victim, started): &(Process, u64)| *started != 0 && victim.started() == *started;
        let guard = lock(&self.stopped);
        known
            .iter()
            .filter(|known| is_same(known))
            .for_each(|(victim, _)| victim.signal(Signal::SIGSTOP));
        drop(guard);
        std::thread::sleep(time);
        let guard = lock(&self.stopped);
        let gone = known.iter().find(|known| !is_same(known));
        known
            .iter()
            .filter(|known| is_same(known))
            .for_each(|(victim, _)| victim.signal(Signal::SIGCONT));
        drop(guard);
        match gone {
            Some((victim, _)) if alone => Verdict::Wrong(format!(
                "worker {} was gone after {time:?} of SIGSTOP",
                victim.0
            )),
            _ => Verdict::Done,
        }
    }

    fn stall_supervisor(&self, time: Duration) -> Verdict {
        let supervisor = self.subject.supervisor();
        supervisor.signal(Signal::SIGSTOP);
        std::thread::sleep(time);
        supervisor.signal(Signal::SIGCONT);
        Verdict::Done
    }
}
