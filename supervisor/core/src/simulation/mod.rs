//! The core against a random world: thousands of seeds, minutes of operations and failures in each,
//! and the invariants checked after every step.
//!
//! * `dice`, `plans` – chance, random configurations, and what their programs do;
//! * `world` – the state of a world;
//! * `mechanics` – processes and time: carries out what the core asks for, and lets happen what is
//!   due;
//! * `life` – how workers send heartbeats, accept connections, stall and recover;
//! * `operations` – what operators request, and what befalls workers;
//! * `upgrades` – the core encoded and decoded;
//! * `invariants` – what must hold.
//!
//! `SIM_SEED=n` replays one seed and prints what happened; `SIM_SEEDS=n` and `SIM_STEPS=n` set how
//! much is swept. A seed that finds a bug becomes a scenario. By default 1,000 seeds are swept, in
//! about 20 s of one CPU.

macro_rules! invariant {
    ($world:expr, $holds:expr, $($text:tt)+) => {
        assert!($holds, "INVARIANT {} (SIM_SEED={}, at {:?})", format!($($text)+), $world.seed, $world.now.0);
    };
}

mod dice;
mod invariants;
mod life;
mod mechanics;
mod operations;
mod plans;
mod upgrades;
mod world;

use world::*;

impl World {
    fn run(&mut self, steps: u32) {
        self.step(Event::Tick);
        let mut next_operation = self.now + self.dice.millis(2000);
        for _ in 0..steps {
            if self.exited {
                return;
            }
            self.advance(next_operation);
            if self.now >= next_operation {
                self.operate();
                let pause = if self.dice.percent(30) { 40 } else { 5000 };
                next_operation = self.now + self.dice.millis(pause);
            }
        }
        if self.seed.is_multiple_of(3) {
            self.stop();
            self.advance_by(Duration::from_mins(5));
            invariant!(self, self.exited, "a stop ends");
            invariant!(
                self,
                self.unanswered.is_empty(),
                "every request gets an answer"
            );
        } else {
            self.settle();
        }
    }

    fn advance_by(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end && !self.exited {
            self.advance(end);
        }
    }

    /// Checks that once nothing fails any more, the last requested reload is done and the server is
    /// uniform.
    fn settle(&mut self) {
        self.calm = true;
        self.calm_since = Some(self.now);
        for (fate, _) in self.fates.values_mut() {
            *fate = Fate::Good;
        }
        self.advance_by(Duration::from_mins(10));
        for slot in self.core.view().held {
            self.step(Event::Command(Command::Restart(slot, None)));
        }
        self.advance_by(Duration::from_mins(1));
        if self.core.view().state == State::Draining {
            self.reload();
            self.advance_by(Duration::from_mins(10));
        }
        if self.exited {
            // The first start was given up before the calm.
            return;
        }
        let view = self.core.view();
        invariant!(
            self,
            view.state == State::Serving,
            "calm means serving: {view:?}"
        );
        invariant!(
            self,
            view.reload.is_none(),
            "calm means no reload under way: {view:?}"
        );
        invariant!(
            self,
            self.asked == self.asked_at_last_prepare,
            "the last reload asked for is honoured"
        );
        invariant!(
            self,
            self.unanswered.is_empty(),
            "every request gets an answer: {:?}",
            self.unanswered
        );
        invariant!(
            self,
            self.slots(Process::serves).count() == usize::from(view.open),
            "calm means that every slot is served: {view:?}"
        );
        // Workers are recycled now and then.
        let recycles = self
            .fates
            .values()
            .any(|(_, plan)| plan.recycle != Limits::default());
        let most = if recycles { self.core.permits().1 } else { 0 };
        invariant!(
            self,
            self.processes.len() <= usize::from(view.open + most),
            "calm means as many workers as slots: {view:?}"
        );
        let one = |process: &Process| {
            process.generation == view.generation && (process.ready || recycles)
        };
        invariant!(
            self,
            self.processes.values().all(one),
            "calm means one generation: {view:?}"
        );
        let all: Vec<Slot> = (0..view.open).map(Slot).collect();
        invariant!(
            self,
            self.rotation == all,
            "calm means that every slot is in rotation: {:?}",
            self.rotation
        );
        invariant!(
            self,
            self.fates.len() == 1,
            "calm means that other generations are forgotten: {:?}",
            self.fates
        );
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number"))
    })
}

#[test]
fn no_seed_breaks_an_invariant() {
    let steps = u32::try_from(number("SIM_STEPS").unwrap_or(2000)).expect("SIM_STEPS is small");
    if let Some(seed) = number("SIM_SEED") {
        return World::new(seed, true).run(steps);
    }
    for seed in 0..number("SIM_SEEDS").unwrap_or(1000) {
        World::new(seed, false).run(steps);
    }
}
