//! The loop of a load: when to open a connection, when to ask again, when to give up.

use super::connection::{Connection, Marks, Script, Step};
use super::report::{Failure, Latency, Report};
use super::{Live, Pace, Plan, Talk};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often deadlines and the wish to stop are looked at.
const TICK: Duration = Duration::from_millis(20);
/// How long a closed-loop client rests after a failure, so that a dead server is not asked a
/// million times.
const REST: Duration = Duration::from_millis(10);
/// How many answers a connection gets before it is the others' turn: a server on the same processor
/// could go on with one for ever.
const TURN: usize = 16;
/// The event of the timer, which no connection can have.
const TIMER: u64 = u64::MAX;

pub(super) struct Engine<'a> {
    plan: &'a Plan,
    live: Arc<Live>,
    script: Script,
    epoll: Epoll,
    timer: TimerFd,
    /// Connections by number; numbers are used again.
    slots: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// Those who have had their turn, to go on with whatever the kernel says.
    ready: Vec<usize>,
    open: usize,
    began: Instant,
    /// Open loop: how many connections were due so far. Closed loop: unused.
    due: u64,
    /// Closed loop: until when nothing is opened, after a failure.
    rest: Instant,
    micros: Vec<u32>,
    /// Of the other path of a mix.
    other_micros: Vec<u32>,
    report: Report,
}

impl<'a> Engine<'a> {
    pub(super) fn new(plan: &'a Plan, live: Arc<Live>) -> Self {
        if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        }
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll instance");
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).expect("a timer");
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, TIMER);
        epoll.add(&timer, event).expect("a timer can be waited for");
        let now = Instant::now();
        Self {
            plan,
            live,
            script: Script::new(plan),
            epoll,
            timer,
            slots: Vec::new(),
            free: Vec::new(),
            ready: Vec::new(),
            open: 0,
            began: now,
            due: 0,
            rest: now,
            micros: Vec::new(),
            other_micros: Vec::new(),
            report: Report::default(),
        }
    }

    pub(super) fn run(mut self) -> Report {
        let mut events = [EpollEvent::empty(); 256];
        let mut tick = self.began + TICK;
        loop {
            let going = self.going();
            if going {
                self.begin();
            }
            if !going && self.open == 0 {
                break;
            }
            for number in std::mem::take(&mut self.ready) {
                self.drive(number, TURN);
            }
            let tick_ms = u8::try_from(TICK.as_millis()).unwrap_or(u8::MAX);
            let pause = if self.ready.is_empty() { tick_ms } else { 0 };
            let ready = match self.epoll.wait(&mut events, EpollTimeout::from(pause)) {
                Ok(ready) => ready,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => panic!("epoll_wait: {error}"),
            };
            for event in &events[..ready] {
                if event.data() != TIMER {
                    let number =
                        usize::try_from(event.data()).expect("a number that was given out here");
                    self.drive(number, TURN);
                }
            }
            if Instant::now() >= tick {
                tick = Instant::now() + TICK;
                self.expire();
            }
        }
        self.report.elapsed = self.began.elapsed();
        if let (Some((other, _)), Talk::Http { path, .. }) = (&self.plan.mix, &self.plan.talk) {
            for (path, micros) in [(path, &self.micros), (other, &self.other_micros)] {
                self.report.paths.insert(
                    path.clone(),
                    (micros.len() as u64, Latency::of(micros.clone())),
                );
            }
        }
        self.micros.append(&mut self.other_micros);
        self.report.latency = Latency::of(self.micros);
        self.report
    }

    /// Whether more requests are to be begun.
    fn going(&self) -> bool {
        !self.live.stop.load(Ordering::Relaxed)
            && self
                .plan
                .count
                .is_none_or(|count| self.report.requests < count)
            && self
                .plan
                .lasting
                .is_none_or(|time| self.began.elapsed() < time)
    }

    /// Opens the connections that are due.
    fn begin(&mut self) {
        match self.plan.pace {
            Pace::Rate(per_second) => {
                let due = |number: u64| {
                    #[allow(clippy::cast_precision_loss)]
                    Duration::from_secs_f64(number as f64 / per_second)
                };
                // At most a few at once, so that answers are read in between when we are behind.
                for _ in 0..64 {
                    let at = self.began + due(self.due);
                    if at > Instant::now() {
                        let left = at
                            .saturating_duration_since(Instant::now())
                            .max(Duration::from_micros(1));
                        let expiration = Expiration::OneShot(TimeSpec::from_duration(left));
                        let _ = self.timer.set(expiration, TimerSetTimeFlags::empty());
                        break;
                    }
                    if !self.going() {
                        break;
                    }
                    self.due += 1;
                    self.open(at);
                }
            }
            Pace::KeptAlive(clients) | Pace::Fresh(clients) => {
                while self.open < clients && Instant::now() >= self.rest && self.going() {
                    self.open(Instant::now());
                }
            }
        }
    }

    fn open(&mut self, due: Instant) {
        self.report.requests += 1;
        let mut connection =
            match Connection::open(&self.script, due, Instant::now() + self.plan.timeout) {
                Ok(connection) => connection,
                Err((failure, why)) => return self.failed(failure, &why),
            };
        self.report.connections += 1;
        connection.other = self.asks_other();
        let number = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        // Edge-triggered and registered once: a connection is always driven until the kernel has no
        // more.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        if let Err(error) = self
            .epoll
            .add(&connection.socket, EpollEvent::new(flags, number as u64))
        {
            self.free.push(number);
            return self.failed(Failure::Local, &error.to_string());
        }
        self.slots[number] = Some(connection);
        self.open += 1;
        // It asks at once, like every new connection. What follows has to wait until all have
        // asked.
        self.drive(number, 1);
    }

    /// Whether the request that was just counted is for the other path of the mix.
    fn asks_other(&self) -> bool {
        let Some((_, share)) = self.plan.mix else {
            return false;
        };
        // Splitmix64: evenly spread, and the same for each server that is compared.
        let mut z = self.report.requests.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        #[allow(clippy::cast_precision_loss)]
        let chance = (z >> 11) as f64 / (1_u64 << 53) as f64;
        chance < share
    }

    /// Goes on with a connection until the kernel has no more, or until it has had this many
    /// answers.
    fn drive(&mut self, number: usize, turn: usize) {
        for _ in 0..turn {
            // An event may be left over from a connection that ended in this round.
            let Some(connection) = &mut self.slots[number] else {
                return;
            };
            match connection.drive(&self.script) {
                Step::Waiting => return,
                Step::Answered(marks) => {
                    self.answered(number, marks);
                    if !self.going() {
                        return self.close(number);
                    }
                    self.report.requests += 1;
                    let now = Instant::now();
                    let other = self.asks_other();
                    if let Some(connection) = &mut self.slots[number] {
                        connection.again(now, now + self.plan.timeout);
                        connection.other = other;
                    }
                }
                Step::Over { marks, announced } => {
                    self.report.announced += u64::from(announced);
                    self.answered(number, marks);
                    return self.close(number);
                }
                Step::Failed(failure, why) => {
                    self.close(number);
                    return self.failed(failure, &why);
                }
            }
        }
        self.ready.push(number);
    }

    fn answered(&mut self, number: usize, marks: Marks) {
        self.report.answered += 1;
        self.live.answered.fetch_add(1, Ordering::Relaxed);
        if let Some(connection) = &self.slots[number] {
            let micros = if connection.other {
                &mut self.other_micros
            } else {
                &mut self.micros
            };
            micros.push(u32::try_from(connection.due.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
        if let Some(generation) = marks.generation {
            *self.report.generations.entry(generation).or_default() += 1;
        }
        if let Some(pid) = marks.pid {
            *self.report.pids.entry(pid).or_default() += 1;
        }
    }

    fn failed(&mut self, failure: Failure, why: &str) {
        *self.report.failures.entry(failure).or_default() += 1;
        self.live.failed.fetch_add(1, Ordering::Relaxed);
        self.rest = Instant::now() + REST;
        if self.report.samples.len() < 20 {
            let at = self.began.elapsed().as_secs_f64();
            self.report
                .samples
                .push(format!("at {at:.3} s: {}: {why}", failure.as_str()));
        }
    }

    fn close(&mut self, number: usize) {
        if self.slots[number].take().is_some() {
            self.free.push(number);
            self.open -= 1;
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        for number in 0..self.slots.len() {
            let late = self.slots[number]
                .as_ref()
                .filter(|connection| connection.deadline <= now);
            if let Some(failure) = late.map(Connection::timed_out) {
                self.close(number);
                self.failed(failure, &format!("after {:?}", self.plan.timeout));
            }
        }
    }
}
