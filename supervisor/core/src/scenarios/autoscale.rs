//! The number of workers follows the load.

use crate::fixtures::*;

const AUTOSCALE: Autoscale = Autoscale {
    down_after: Duration::from_mins(1),
    memory: None,
    requests_per_worker: Some(1),
};
const PLAN: Plan = Plan {
    workers: 2,
    max_workers: 8,
    autoscale: Some(AUTOSCALE),
    ..crate::fixtures::PLAN
};
const SECOND: Duration = Duration::from_secs(1);

fn millis(time: Time) -> u64 {
    u64::try_from(time.0.as_millis()).unwrap_or(u64::MAX)
}

/// The load of all workers from now on.
#[derive(Clone, Copy, Default)]
struct Work {
    /// How much of their time they are busy, from 0 to 1.
    share: f64,
    /// Requests in flight at each worker; `None` when unknown.
    in_flight: Option<u32>,
    /// Connections in each queue.
    queue: u32,
    /// Bytes in use by each worker.
    memory: Option<u64>,
}

const IDLE: Work = Work {
    share: 0.0,
    in_flight: Some(0),
    queue: 0,
    memory: None,
};
const BUSY: Work = Work {
    share: 1.0,
    in_flight: Some(1),
    queue: 0,
    memory: None,
};
const OVERLOADED: Work = Work { queue: 3, ..BUSY };

impl Stage {
    /// Lets time pass under this load, with workers ready shortly after they were started. Returns
    /// each number that was scaled to.
    fn work(&mut self, span: Duration, work: Work) -> Vec<u16> {
        let end = self.now + span;
        let mut all = Vec::new();
        while let Some(due) = self.core.next_deadline().filter(|due| *due <= end) {
            self.now = due;
            let view = self.core.view();
            let ready: Vec<_> = view
                .workers
                .iter()
                .filter(|one| one.state == WorkerState::Ready || one.state == WorkerState::Stalled)
                .collect();
            let spent = |born: Time| {
                born.0.mul_f64(0.0) + Duration::from_secs(1000) + due.0.mul_f64(work.share)
            };
            let loads = ready.iter().map(|one| {
                let load = WorkerLoad {
                    spent: spent(one.born),
                    in_flight: work.in_flight,
                    filled: 0.0,
                    memory: work.memory,
                };
                (one.worker, load)
            });
            let queues = ready.iter().map(|one| (one.slot, work.queue)).collect();
            let alive: Vec<_> = ready
                .iter()
                .map(|one| (one.worker.0, due, millis(due)))
                .collect();
            let observation = if self.core.wants_queues(due) {
                Observation {
                    queues: Some(queues),
                    loads: loads.collect(),
                    ..beats(&alive)
                }
            } else {
                beats(&alive)
            };
            self.tell(Event::Observation(observation));
            all.append(&mut self.last.clone());
            let (spawned, drained) = (self.spawned(), self.drained());
            self.get_ready(spawned.into_iter().map(|(worker, ..)| worker));
            for worker in drained {
                self.leave(worker);
            }
        }
        self.now = end;
        self.last = all;
        self.sizes()
    }

    fn leave(&mut self, worker: u64) {
        self.tell(Event::Died(
            WorkerId(worker),
            ProcessEnd {
                manner: Manner::Clean,
                ..ProcessEnd::unclean("left", Cause::Exit)
            },
        ));
    }

    fn sizes(&self) -> Vec<u16> {
        let size = |fact: &Fact| match fact {
            Fact::Scaled { to, .. } => Some(*to),
            _ => None,
        };
        self.facts().filter_map(size).collect()
    }

    fn open(&self) -> u16 {
        self.core.view().open
    }
}

#[test]
fn a_queue_without_idle_workers_brings_more_within_half_a_second() {
    let mut stage = Stage::serving(PLAN);
    stage.work(SECOND * 3, IDLE);
    stage.work(SECOND * 3 / 2, OVERLOADED);
    assert_eq!(
        (stage.sizes(), stage.open()),
        (vec![4, 8], 8),
        "twice as many each time, and no more than the range"
    );
    let why = stage.facts().find_map(|fact| match fact {
        Fact::Scaled { from, reason, .. } => Some((*from, *reason)),
        _ => None,
    });
    assert_eq!(why, Some((2, ScaleReason::Backlog(6))));
}

#[test]
fn a_queue_with_an_idle_worker_brings_no_more() {
    let mut stage = Stage::serving(PLAN);
    let sizes = stage.work(
        SECOND * 20,
        Work {
            in_flight: Some(0),
            queue: 1,
            ..IDLE
        },
    );
    assert_eq!(sizes, [] as [u16; 0]);
}

#[test]
fn busy_workers_get_help_before_any_request_waits() {
    let mut stage = Stage::serving(PLAN);
    let sizes = stage.work(SECOND * 5, Work { share: 0.9, ..BUSY });
    assert_eq!(sizes.first(), Some(&3));
    assert!(stage.facts().any(|fact| matches!(
        fact,
        Fact::Scaled {
            from: 2,
            to: 3,
            reason: ScaleReason::Busy(60..)
        }
    )));
}

#[test]
fn idle_workers_go_one_by_one_when_they_were_not_needed_for_long_enough() {
    let mut stage = Stage::serving(PLAN);
    stage.work(SECOND * 5, OVERLOADED);
    assert_eq!(stage.open(), 8);
    assert_eq!(stage.work(SECOND * 55, IDLE), [] as [u16; 0]);
    assert_eq!(stage.work(SECOND * 20, IDLE), [7, 6, 5, 4, 3, 2]);
    assert_eq!(
        stage.work(SECOND * 600, IDLE),
        [] as [u16; 0],
        "two are the least"
    );
    let deaths = stage
        .facts()
        .filter(|fact| matches!(fact, Fact::Draining(_, DrainReason::Retired)))
        .count();
    assert_eq!(deaths, 0);
}

#[test]
fn a_worker_with_a_request_in_flight_is_not_drained() {
    let mut stage = Stage::serving(PLAN);
    stage.work(SECOND * 5, OVERLOADED);
    let hardly = Work {
        share: 0.01,
        ..BUSY
    };
    assert_eq!(
        stage.work(SECOND * 600, hardly),
        [] as [u16; 0],
        "a request that lasts"
    );
    assert_eq!(stage.work(SECOND, IDLE).first(), Some(&7), "it has ended");
}

#[test]
fn a_number_set_by_hand_is_the_minimum_until_the_next_reload() {
    let mut stage = Stage::serving(PLAN);
    stage.command(Command::Scale(5, None));
    assert_eq!((stage.open(), stage.core.view().bounds), (5, (5, 8)));
    let new = stage.spawned();
    stage.get_ready(new.into_iter().map(|(worker, ..)| worker));
    assert_eq!(stage.work(SECOND * 300, IDLE), [] as [u16; 0]);
    stage.command(Command::Resize(-1));
    assert_eq!((stage.open(), stage.core.view().bounds), (4, (4, 8)));
    for worker in stage.drained() {
        stage.leave(worker);
    }
    stage.reload(PLAN);
    let new: Vec<_> = stage
        .spawned()
        .into_iter()
        .map(|(worker, ..)| worker)
        .collect();
    assert_eq!(new.len(), 4, "a reload keeps the size");
    stage.get_ready(new);
    stage.pass(2.5);
    for worker in stage.drained() {
        stage.leave(worker);
    }
    assert_eq!(
        stage.core.view().bounds,
        (2, 8),
        "and forgets the manual minimum"
    );
    assert_eq!(stage.work(SECOND * 70, IDLE), [3, 2]);
    stage.command(Command::Scale(1, Some(RequestId(7))));
    let why =
        "there can be 2 to 8 workers, not 1 (the range of workers is part of the configuration)";
    assert_eq!(stage.failure().as_deref(), Some(why));
}

#[test]
fn a_reload_to_another_range_keeps_the_size_as_far_as_that_allows() {
    let mut stage = Stage::serving(PLAN);
    stage.work(SECOND * 5, OVERLOADED);
    stage.reload(Plan {
        workers: 1,
        max_workers: 3,
        ..PLAN
    });
    assert_eq!(stage.spawned().len(), 3);
    let mut stage = Stage::serving(PLAN);
    stage.reload(Plan {
        workers: 4,
        max_workers: 9,
        ..PLAN
    });
    assert_eq!(stage.spawned().len(), 4);
    let mut stage = Stage::serving(PLAN);
    stage.work(SECOND * 5, OVERLOADED);
    stage.reload(super::PLAN);
    assert_eq!(stage.spawned().len(), 2, "a fixed number is what it says");
}

#[test]
fn the_load_changes_nothing_during_a_reload_nor_when_all_are_to_leave() {
    let mut stage = Stage::serving(PLAN);
    stage.reload(PLAN);
    assert_eq!(stage.work(SECOND / 2, OVERLOADED), [] as [u16; 0]);
    assert_eq!(stage.open(), 2);
    let mut stage = Stage::serving(PLAN);
    stage.command(Command::DrainAll);
    assert_eq!(stage.work(SECOND * 5, OVERLOADED), [] as [u16; 0]);
}

#[test]
fn workers_that_cannot_start_do_not_make_it_grow() {
    let mut stage = Stage::serving(PLAN);
    for _ in 0..3 {
        let in_slot_1 = stage
            .core
            .view()
            .workers
            .into_iter()
            .find(|worker| worker.slot == Slot(1));
        if let Some(worker) = in_slot_1 {
            stage.die(worker.worker.0);
        }
    }
    let mut sizes = Vec::new();
    for _ in 0..40 {
        // The remaining worker is overloaded, and those meant to help it die.
        stage.now += Duration::from_millis(100);
        let view = stage.core.view();
        let ready = view
            .workers
            .iter()
            .find(|worker| worker.state == WorkerState::Ready)
            .expect("one serves");
        let load = WorkerLoad {
            spent: stage.now.0,
            in_flight: Some(1),
            ..WorkerLoad::default()
        };
        let observation = Observation {
            queues: Some(vec![(Slot(0), 9)]),
            loads: vec![(ready.worker, load)],
            ..beats(&[(ready.worker.0, stage.now, millis(stage.now))])
        };
        stage.tell(Event::Observation(observation));
        sizes.extend(stage.sizes());
        for (worker, ..) in stage.spawned() {
            stage.die(worker);
        }
    }
    assert_eq!(sizes, [] as [u16; 0]);
}

#[test]
fn no_worker_is_started_beyond_the_memory_limit() {
    let autoscale = Autoscale {
        memory: Some(1000),
        ..AUTOSCALE
    };
    let mut stage = Stage::serving(Plan {
        autoscale: Some(autoscale),
        ..PLAN
    });
    let sizes = stage.work(
        SECOND * 20,
        Work {
            memory: Some(300),
            ..OVERLOADED
        },
    );
    assert_eq!(sizes, [3], "a fourth one would use 1200 bytes");
    let reported: Vec<_> = stage
        .facts()
        .filter(|fact| matches!(fact, Fact::NoMemory { .. }))
        .collect();
    assert_eq!(
        reported,
        [&Fact::NoMemory {
            workers: 3,
            used: 900
        }],
        "said once"
    );
    let sizes = stage.work(
        SECOND * 20,
        Work {
            memory: Some(100),
            ..OVERLOADED
        },
    );
    assert_eq!(sizes, [6, 8]);
}

#[test]
fn a_slot_that_is_held_empty_stays_so() {
    let mut stage = Stage::serving(PLAN);
    stage.work(SECOND * 5, OVERLOADED);
    stage.command(Command::Drain(Slot(4), Some(RequestId(7))));
    for worker in stage.drained() {
        stage.leave(worker);
    }
    assert_eq!(stage.work(SECOND * 600, IDLE), [7, 6, 5]);
    assert_eq!(stage.core.view().held, [Slot(4)]);
}

#[test]
fn a_program_that_counts_nothing_grows_by_its_queues_and_by_the_time_that_it_uses() {
    let plan = Plan {
        autoscale: Some(Autoscale {
            requests_per_worker: None,
            ..AUTOSCALE
        }),
        steals: false,
        ..PLAN
    };
    let mut stage = Stage::serving(plan);
    let blind = Work {
        share: 0.0,
        in_flight: None,
        ..OVERLOADED
    };
    assert_eq!(stage.work(SECOND * 5, blind), [4, 8]);
    let mut stage = Stage::serving(plan);
    let sizes = stage.work(
        SECOND * 5,
        Work {
            share: 0.9,
            in_flight: None,
            ..IDLE
        },
    );
    assert_eq!(sizes.first(), Some(&3));
}

#[test]
fn a_supervisor_that_was_stopped_retires_no_worker() {
    let mut stage = Stage::serving(PLAN);
    stage.work(SECOND * 5, OVERLOADED);
    stage.work(SECOND, IDLE);
    stage.now += SECOND * 3600;
    stage.tell(Event::Observation(Observation {
        queues: Some(Vec::new()),
        ..Observation::default()
    }));
    assert_eq!(stage.work(SECOND * 50, IDLE), [] as [u16; 0]);
    assert_eq!(stage.work(SECOND * 20, IDLE).len(), 6);
}

#[test]
fn a_range_wakes_an_idle_server_once_a_second() {
    let mut stage = Stage::serving(Plan {
        hang_timeout: None,
        ..PLAN
    });
    stage.work(SECOND * 5, IDLE);
    let mut wakes = 0;
    let end = stage.now + SECOND * 60;
    while let Some(due) = stage.core.next_deadline().filter(|due| *due <= end) {
        stage.now = due;
        wakes += 1;
        let queues = stage.core.wants_queues(due).then(Vec::new);
        stage.tell(Event::Observation(Observation {
            queues,
            ..beats(&[(1, due, 0), (2, due, 0)])
        }));
    }
    assert!(wakes <= 61, "{wakes} times in a minute");
}
