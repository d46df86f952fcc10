//! What follows from a [`Config`] without another decision.

use super::options::Config;
use super::types::Program;
use prefork_protocol::settings::{Class, WorkerSettings};
use std::time::Duration;

impl Config {
    /// Returns a Rust worker's two numbers.
    pub fn class(&self) -> Class {
        Class::new(self.class, self.threads, self.max_connections)
    }

    /// Returns what a Rust worker is told.
    pub fn worker_settings(&self) -> WorkerSettings {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        WorkerSettings {
            class: self.class(),
            app: self.program.app().unwrap_or_default().to_owned(),
            heartbeat_ms: millis(self.heartbeat()),
            drain_idle_ms: millis(self.drain_idle),
            keep_alive_ms: millis(self.keep_alive),
            header_timeout_ms: millis(self.header_timeout),
            request_timeout_ms: self.request_timeout.map_or(0, millis),
            max_head_bytes: u32::try_from(self.max_head).unwrap_or(u32::MAX),
            max_body_bytes: self.max_body.unwrap_or(0),
            log_level: self.log.level as u8,
        }
    }

    /// Returns how many slots there are before anyone scales.
    pub fn slots(&self) -> u16 {
        if self.range {
            self.max_workers
        } else {
            self.workers
        }
    }

    /// Returns how many requests one worker serves at a time; `None` where that does not measure
    /// how busy it is: in class async, whose handlers wait more than they work, and for an external
    /// program, which does not report.
    pub fn requests_per_worker(&self) -> Option<u32> {
        let class = self.class();
        match self.program {
            Program::App(_) | Program::Linked if class.connections <= 1 => {
                Some(u32::from(class.threads))
            }
            Program::App(_) | Program::Linked | Program::Command(_) => None,
        }
    }

    /// Returns how often a Rust worker sends a heartbeat: four times within the timeout, so that a
    /// single late one is no hang.
    pub fn heartbeat(&self) -> Duration {
        let most = Duration::from_secs(1);
        self.hang_timeout.map_or(most, |timeout| {
            (timeout / 4).clamp(Duration::from_millis(100), most)
        })
    }

    /// Returns `WATCHDOG_USEC` for external programs: one that has answered the watchdog once must
    /// go on doing so.
    pub fn worker_watchdog(&self) -> Option<Duration> {
        self.hang_timeout
    }
}
