//! What the core says is done here: each [`Action`], and the events that come of it.

use super::{Server, clock};
use crate::api::report;
use crate::control::Answer;
use crate::generation::Generation;
use crate::generation::steering;
use crate::process::poll::{Interest, Token};
use crate::workers::handle::{Line, WorkerHandle};
use crate::workers::launch::{Role, launch};
use log::{info, warn};
use nix::sys::signal::Signal;
use prefork_core::{Action, Cause, Done, Event, ProcessEnd, RequestId, WorkerRef};
use prefork_protocol::{GenerationId, Slot, WorkerId};
use std::collections::VecDeque;
use std::os::fd::AsFd;

impl Server {
    /// Tells the core, and does what it says, until there is nothing left to tell.
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
                Some(event) => event,
                None => Some(self.prepare(generation)),
            },
            Action::Steer(rotation) => {
                self.rotation = rotation;
                self.steer();
                None
            }
            Action::Spawn {
                worker,
                slot,
                generation,
            } => {
                self.store.schedule_sync(self.now);
                self.spawn(worker, slot, generation)
            }
            Action::Drain {
                worker,
                grace,
                empty_queue,
            } => {
                // Away from it first, or somebody could still come when it has left.
                self.steer_between_generations();
                let orphaned = !self.keeps_all_addresses(worker);
                self.hands
                    .get_mut(&worker)
                    .and_then(|hand| hand.drain(grace, empty_queue || orphaned))
            }
            Action::Abort(worker) => {
                self.hands.get(&worker)?.signal(Signal::SIGABRT);
                None
            }
            Action::Kill(worker) => {
                let hand = self.hands.get(&worker)?;
                hand.kill_group();
                if let Some(groups) = &self.groups {
                    groups.kill(worker);
                }
                None
            }
            Action::Commit(generation) => {
                self.accepted = generation;
                self.steer_between_generations();
                if let Some(generation) = self.generations.get(&generation) {
                    log::set_max_level(generation.config.log.level);
                }
                None
            }
            Action::Forget(generation) => {
                self.generations.remove(&generation);
                self.steer();
                self.store.schedule_sync(self.now);
                None
            }
            Action::Report(fact) => {
                self.report(&fact);
                None
            }
            Action::Reply(RequestId(client), verdict) => {
                self.waiting.remove(&client);
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
                self.answer_settled(client, answer);
                None
            }
            Action::Exit(status) => {
                self.exit = Some(status);
                None
            }
        }
    }

    pub(crate) fn prepare(&mut self, id: GenerationId) -> Event {
        let loaded = self.loader.load(&mut self.listeners, false);
        // Looking up a host name may have taken its time.
        self.now = clock();
        match loaded {
            Ok(generation) => {
                for warning in &generation.config.warnings {
                    warn!("{warning}");
                }
                let before = self
                    .generations
                    .get(&self.accepted)
                    .map(|old| old.sockets.describe());
                for address in generation.sockets.describe() {
                    if before
                        .as_ref()
                        .is_none_or(|before| !before.contains(&address))
                    {
                        info!("listening on {address}");
                    }
                }
                let plan = generation.plan();
                self.generations.insert(id, generation);
                Event::Prepared(id, plan)
            }
            Err(error) => Event::Refused(id, error.to_string()),
        }
    }

    /// A failure leaves connections to the kernel's own spreading, which knows of no rotation. Said once.
    pub(crate) fn steer(&mut self) {
        let workers = self.core.view().workers;
        if let Err(error) =
            steering::steer(&self.generations, self.accepted, &self.rotation, &workers)
            && !std::mem::replace(&mut self.steering_failed, true)
        {
            warn!("{error}; new connections are spread over all slots");
        }
    }

    /// While a reload adds or removes addresses, not only the rotation tells who serves them.
    pub(crate) fn steer_between_generations(&mut self) {
        if self.generations.len() > 1 {
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
        let role = Role {
            worker,
            slot,
            generation: id,
            name: &self.name,
            notify: &self.notify_address,
        };
        let launched = match self.generations.get_mut(&id) {
            Some(generation) => launch(self.now, generation, self.groups.as_mut(), role)
                .map_err(|error| error.to_string()),
            None => Err(format!("generation {id} is not held any more")),
        };
        let watched = launched.and_then(|hand| match self.watch(&hand) {
            Ok(()) => Ok(hand),
            Err(error) => {
                hand.kill_group();
                Err(format!("cannot watch worker {worker}: {error}"))
            }
        });
        match watched {
            Ok(hand) => {
                let who = WorkerRef {
                    worker,
                    slot,
                    generation: id,
                };
                let pid = hand.pid;
                self.hands.insert(worker, hand);
                let text = format_args!("starts");
                self.announce(report::of_worker(
                    "starting",
                    log::Level::Info,
                    who,
                    Some(pid),
                    text,
                ));
                self.look_out(worker)
            }
            Err(reason) => Some(Event::Died(
                worker,
                ProcessEnd::unclean(reason, Cause::Spawn),
            )),
        }
    }

    /// Replaces listening sockets that somebody has shut down, if this slot's is one of them.
    fn mend_sockets(&mut self, slot: Slot) {
        let is_shut =
            |generation: &Generation| generation.sockets.is_shut(generation.queue_of(slot));
        if !self.generations.values().any(is_shut) {
            return;
        }
        for generation in self.generations.values_mut() {
            if let Err(error) = generation.sockets.rebind_shut_down() {
                warn!("cannot replace a listening socket that was shut down: {error}");
            }
        }
        self.store.schedule_sync(self.now);
        self.steer();
    }

    pub(crate) fn watch(&self, hand: &WorkerHandle) -> std::io::Result<()> {
        self.poll
            .add(&hand.pidfd, Token::Death(hand.id), Interest::Read)?;
        match &hand.line {
            Line::Channel { channel, .. } => {
                self.poll
                    .add(channel.as_fd(), Token::Channel(hand.id), Interest::Read)?;
            }
            Line::Notify { .. } | Line::Closed => {}
        }
        self.watch_stderr(hand)
    }

    /// Whether everything that a worker listens on is listened on by every generation: by whoever follows it, that is,
    /// be it accepted already or on trial.
    pub(crate) fn keeps_all_addresses(&self, worker: WorkerId) -> bool {
        let own = self
            .hands
            .get(&worker)
            .and_then(|hand| self.generations.get(&hand.generation));
        own.is_none_or(|own| {
            let kept = |address| {
                self.generations
                    .values()
                    .all(|other| other.sockets.addresses().any(|kept| kept == address))
            };
            own.sockets.addresses().all(kept)
        })
    }
}
