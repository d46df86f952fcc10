//! Performs the actions of the core, and returns the events that come of them.

use super::upgrade::Preparation;
use super::{Server, clock};
use crate::api::report;
use crate::config::KillMode;
use crate::control::Answer;
use crate::generation::Generation;
use crate::generation::steering;
use crate::process::poll::{Interest, Token};
use crate::workers::handle::{Line, WorkerHandle};
use crate::workers::launch::{Role, launch};
use log::{info, warn};
use nix::sys::signal::Signal;
use prefork_core::{Action, Cause, Done, Event, Fact, ProcessEnd, RequestId, WorkerRef};
use prefork_protocol::{GenerationId, Slot, WorkerId};
use std::collections::VecDeque;
use std::os::fd::AsFd;

impl Server {
    /// Passes an event to the core and performs its actions, until no further event comes of them.
    pub(crate) fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.core.step(self.now, event) {
                events.extend(self.perform(action));
            }
        }
        self.steer_between_generations();
    }

    pub(crate) fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Prepare(generation) => match self.upgrade_before(generation) {
                Preparation::Now => self.prepare(generation),
                Preparation::Pending => None,
                Preparation::Refused(reason) => Some(Event::Refused(generation, reason)),
            },
            Action::Steer(rotation) => {
                self.steering.rotation = rotation;
                self.steer();
                None
            }
            Action::Spawn {
                worker,
                slot,
                generation,
            } => {
                self.systemd.store.schedule_sync(self.now);
                self.spawn(worker, slot, generation)
            }
            Action::Drain {
                worker,
                grace,
                empty_queue,
            } => {
                // Steer away first, or a connection could still arrive when it has left.
                self.steer_between_generations();
                let orphaned = !self.keeps_all_addresses(worker);
                let handle = self.workers.handles.get_mut(&worker)?;
                let mode = self.generations.get(handle.generation);
                let mode = mode.map_or(KillMode::Mixed, |generation| generation.config.kill_mode);
                handle.drain(self.now, grace, empty_queue || orphaned, mode)
            }
            Action::Abort(worker) => {
                self.workers.handles.get(&worker)?.signal(Signal::SIGABRT);
                None
            }
            Action::Kill(worker) => {
                let handle = self.workers.handles.get_mut(&worker)?;
                handle.kill_group();
                // Those that have outlived it do not for long now.
                handle.outlived = handle.outlived.map(|_| self.now);
                if let Some(groups) = &self.workers.cgroups {
                    groups.kill(worker);
                }
                None
            }
            Action::Commit(generation) => {
                self.generations.accepted = generation;
                self.steer_between_generations();
                if let Some(generation) = self.generations.get(generation) {
                    log::set_max_level(generation.config.log.level);
                }
                None
            }
            Action::Forget(generation) => {
                self.generations.held.remove(&generation);
                self.steer();
                self.systemd.store.schedule_sync(self.now);
                None
            }
            Action::Report(fact) => {
                self.report(&fact);
                if let Fact::WorkerReady(who, _) = fact {
                    self.check_readiness(who.worker);
                }
                None
            }
            Action::Reply(RequestId(client), verdict) => {
                self.operators.waiting.remove(&client);
                let answer = match verdict {
                    Ok(Done::Reloaded(generation)) => Answer {
                        generation: Some(generation.0),
                        ..Answer::done()
                    },
                    Ok(Done::Scaled { from, to }) => Answer {
                        scaled: Some((from, to)),
                        ..Answer::done()
                    },
                    Ok(Done::Restarted { slot, worker }) => Answer {
                        slot: Some(slot.0),
                        worker: Some(worker.0),
                        ..Answer::done()
                    },
                    Ok(Done::Drained { slot }) => Answer {
                        slot: Some(slot.0),
                        ..Answer::done()
                    },
                    Err(reason) => Answer::failed(reason),
                };
                self.answer(client, &answer);
                None
            }
            Action::Exit(status) => {
                self.exit = Some(status);
                None
            }
        }
    }

    /// Loads a generation, and begins its preflight; returns the event if that is all there is to do.
    pub(crate) fn prepare(&mut self, id: GenerationId) -> Option<Event> {
        let loaded = self
            .generations
            .loader
            .load(&mut self.generations.listeners, false);
        // Looking up a host name may have taken its time.
        self.now = clock();
        match loaded {
            Ok(generation) => {
                let in_vain = self.generations.changed_in_vain(&generation.config);
                for warning in generation.config.warnings.iter().chain(&in_vain) {
                    warn!("{warning}");
                }
                let before = self
                    .generations
                    .accepted()
                    .map(|old| old.sockets.describe());
                for address in generation.sockets.describe() {
                    if before
                        .as_ref()
                        .is_none_or(|before| !before.contains(&address))
                    {
                        info!("listening on {address}");
                    }
                }
                self.begin_preflight(id, Some(generation))
            }
            Err(error) => Some(Event::Refused(id, error.to_string())),
        }
    }

    /// A failure leaves connections to the kernel's own spreading, which knows of no rotation. Said
    /// once.
    pub(crate) fn steer(&mut self) {
        let workers = self.core.view().workers;
        if let Err(error) = steering::steer(
            &self.generations.held,
            self.generations.accepted,
            &self.steering.rotation,
            &workers,
        ) && !std::mem::replace(&mut self.steering.failed, true)
        {
            warn!("{error}; new connections are spread over all slots");
        }
    }

    /// While a reload adds or removes addresses, not only the rotation tells who serves them.
    pub(crate) fn steer_between_generations(&mut self) {
        if self.generations.held.len() > 1 {
            self.steer();
        }
    }

    pub(crate) fn spawn(
        &mut self,
        worker: WorkerId,
        slot: Slot,
        id: GenerationId,
    ) -> Option<Event> {
        self.mend_sockets(slot);
        self.set_blocking_for(worker, slot, id);
        let role = Role {
            worker,
            slot,
            generation: id,
            name: &self.name,
            notify: self.workers.notify.address(),
        };
        let launched = match self.generations.held.get_mut(&id) {
            Some(generation) => launch(self.now, generation, self.workers.cgroups.as_mut(), role)
                .map_err(|error| error.to_string()),
            None => Err(format!("generation {id} is not held any more")),
        };
        let watched = launched.and_then(|handle| match self.watch(&handle) {
            Ok(()) => Ok(handle),
            Err(error) => {
                handle.kill_group();
                Err(format!("cannot watch worker {worker}: {error}"))
            }
        });
        match watched {
            Ok(handle) => {
                let who = WorkerRef {
                    worker,
                    slot,
                    generation: id,
                };
                let pid = handle.pid;
                self.workers.handles.insert(worker, handle);
                let text = format_args!("starts");
                self.announce(report::of_worker(
                    "starting",
                    log::Level::Info,
                    who,
                    Some(pid),
                    text,
                ));
                self.probe_readiness(worker)
            }
            Err(reason) => Some(Event::Died(
                worker,
                ProcessEnd::unclean(reason, Cause::Spawn),
            )),
        }
    }

    /// Replaces listening sockets that were shut down, if this slot's is one of them.
    fn mend_sockets(&mut self, slot: Slot) {
        let is_shut =
            |generation: &Generation| generation.sockets.is_shut(generation.queue_of(slot));
        if !self.generations.held.values().any(is_shut) {
            return;
        }
        for generation in self.generations.held.values_mut() {
            if let Err(error) = generation.sockets.rebind_shut_down() {
                warn!("cannot replace a listening socket that was shut down: {error}");
            }
        }
        self.systemd.store.schedule_sync(self.now);
        self.steer();
    }

    pub(crate) fn watch(&self, handle: &WorkerHandle) -> std::io::Result<()> {
        self.poll
            .add(&handle.pidfd, Token::Death(handle.id), Interest::Read)?;
        match &handle.line {
            Line::Channel { channel, .. } => {
                self.poll
                    .add(channel.as_fd(), Token::Channel(handle.id), Interest::Read)?;
            }
            Line::Notify { .. } | Line::Closed => {}
        }
        self.watch_stderr(handle)
    }

    /// Whether everything that a worker listens on is listened on by every generation: by the one
    /// that follows it, that is, be it accepted already or on trial.
    pub(crate) fn keeps_all_addresses(&self, worker: WorkerId) -> bool {
        let own = self
            .workers
            .handles
            .get(&worker)
            .and_then(|handle| self.generations.get(handle.generation));
        own.is_none_or(|own| {
            let kept = |address| {
                self.generations
                    .held
                    .values()
                    .all(|other| other.sockets.addresses().any(|kept| kept == address))
            };
            own.sockets.addresses().all(kept)
        })
    }
}
