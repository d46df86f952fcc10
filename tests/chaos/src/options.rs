//! The command line.

use crate::client::Shape;
use clap::Parser;
use std::path::PathBuf;
use std::time::Duration;

/// Breaks a running server in every way it must survive, under load in which every byte is
/// verified.
///
/// Ends with 0 when nothing failed but what was in the hands of a worker that the suite killed.
#[derive(Debug, Clone, Parser)]
#[command(name = "chaos", version)]
pub struct Options {
    /// What follows from chance follows from this number; a random one if it is missing. It is
    /// printed
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// How long to go on. With --requests: at most so long (then 60 unless said)
    #[arg(long, value_name = "M")]
    pub minutes: Option<f64>,
    /// Go on until this many answers are verified
    #[arg(long, value_name = "N")]
    pub requests: Option<u64>,
    /// Go on for this many steps of the plan at most
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Only operations whose kind begins with one of these words, as in: scale,upgrade,kill
    #[arg(long, value_name = "KINDS", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Only clients of these shapes, as in: new,kept,slow
    #[arg(long, value_name = "SHAPES", value_delimiter = ',')]
    pub shapes: Vec<String>,
    /// Workers of the server
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub workers: usize,
    /// Class of the workers: sync, threads or async
    #[arg(long, value_name = "CLASS", default_value = "async")]
    pub class: String,
    /// How much load, as a multiple of the usual
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub load: f64,
    /// Seconds that the server may take to connect or to answer
    #[arg(long, value_name = "SECONDS", default_value_t = 15.0)]
    pub timeout: f64,
    /// Milliseconds after which an answer counts as late, which is told and is no failure
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pub late: u64,
    /// Where the server listens: HOST:PORT (port 0 finds a free one), or unix. May be given several
    /// times
    #[arg(long, value_name = "ADDRESS", default_values = ["127.0.0.1:0", "[::1]:0", "unix"])]
    pub bind: Vec<String>,
    /// Break another server instead of ours: see scripts/chaos --against help
    #[arg(long, value_name = "PEER")]
    pub against: Option<String>,
    /// Hold every packet for so long in each direction, in a network namespace of its own; 0 makes
    /// the namespace only
    #[arg(long, value_name = "MS")]
    pub delay: Option<u64>,
    /// With --delay: a setting of that namespace, as in: net.ipv4.tcp_migrate_req=1. May be given
    /// several times
    #[arg(long, value_name = "NAME=VALUE", requires = "delay")]
    pub sysctl: Vec<String>,
    /// Further words for the server's command line
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub word: Vec<String>,
    /// File for the server's log; it is written in any case when the run fails
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Print the report as one JSON object
    #[arg(long)]
    pub json: bool,
}

impl Options {
    /// The end by the clock.
    pub fn limit(&self) -> Duration {
        let bounded = self.requests.is_some() || self.steps.is_some();
        let minutes = self.minutes.unwrap_or(if bounded { 60.0 } else { 1.0 });
        Duration::from_secs_f64(minutes.clamp(0.0, 10_000.0) * 60.0)
    }

    /// Says what cannot be.
    ///
    /// # Errors
    /// What is wrong, and what can be said instead.
    pub fn check(&self) -> Result<(), String> {
        let known = |word: &String| Shape::ALL.iter().any(|shape| shape.as_str() == word);
        if let Some(word) = self.shapes.iter().find(|word| !known(word)) {
            let all: Vec<_> = Shape::ALL.iter().map(|shape| shape.as_str()).collect();
            return Err(format!(
                "--shapes: there is no shape {word} (there are {})",
                all.join(", ")
            ));
        }
        if !(1..=64).contains(&self.workers) {
            return Err("--workers: 1 to 64".to_owned());
        }
        if self.bind.is_empty() {
            return Err("--bind: at least one address".to_owned());
        }
        Ok(())
    }
}
