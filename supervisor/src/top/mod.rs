//! `supervisor top`: the server on a terminal.
//!
//! It is a client of the control socket that polls the status. A status becomes a
//! [`snapshot`](snapshot::Snapshot), which with the one before gives rates; [`table`] sorts it,
//! [`view`] lays it out, [`screen`] renders it: all of them are pure. [`client`] sends requests and
//! never waits for an answer; [`terminal`] takes the terminal and restores it; [`app`] holds what
//! is known and handles keys.
//!
//! *Invariants*: no text from the server reaches the terminal but through `printable`, as workers
//! have a say in it; no command is sent without a confirmation.

mod app;
mod batch;
mod client;
mod screen;
mod snapshot;
mod table;
mod terminal;
mod text;
mod view;

use app::{App, Effect};
use client::{Client, News};
use std::io;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use terminal::{Input, Terminal};

/// How it is to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    /// From one snapshot to the next.
    pub(crate) interval: Duration,
    /// Print frames, instead of taking the terminal.
    pub(crate) batch: bool,
    /// Print frames as JSON.
    pub(crate) json: bool,
    /// End after this many snapshots.
    pub(crate) count: Option<u32>,
}

/// Why `top` has ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TopError {
    /// There is no server, or it cannot be reached.
    #[error(
        "cannot reach the server at {}: {error} (is the server running? --control or --name names \
         another one)", path.display()
    )]
    Unreachable { path: PathBuf, error: io::Error },
    /// It has stopped to answer.
    #[error("the server does not answer: {0}")]
    Silent(String),
    /// There is no terminal.
    #[error("top needs a terminal (--batch prints frames to anything, --json prints JSON)")]
    NoTerminal,
    /// The terminal cannot be taken.
    #[error("cannot set up the terminal: {0}")]
    Setup(io::Error),
    /// The terminal cannot be read.
    #[error("cannot read from the terminal: {0}")]
    Read(io::Error),
    /// A frame cannot be written.
    #[error("cannot write: {0}")]
    Write(io::Error),
}

/// Shows the server until the user quits.
///
/// # Errors
/// When there is no server at the beginning, or no terminal to show it on.
pub(crate) fn run(path: &Path, options: Options) -> Result<(), TopError> {
    if options.batch || options.json {
        return batch::run(path, options);
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(TopError::NoTerminal);
    }
    let mut client = Client::new(path.to_owned());
    client.check()?;
    let mut terminal = Terminal::enter().map_err(TopError::Setup)?;
    let mut app = App::new(path);
    let mut next = Instant::now();
    let mut snapshots = 0;
    loop {
        let now = Instant::now();
        if now >= next {
            client.poll_status(now);
            client.follow();
            next = now + options.interval;
        }
        terminal
            .show(&app.frame(terminal.size()))
            .map_err(TopError::Write)?;
        let soonest = client
            .deadline()
            .map_or(next, |deadline| deadline.min(next));
        let input = terminal.wait(
            &client.descriptors(),
            soonest.saturating_duration_since(Instant::now()),
        );
        for news in client.receive(Instant::now()) {
            if matches!(news, News::Status(_)) {
                snapshots += 1;
            }
            app.update(news);
        }
        for input in input.map_err(TopError::Read)? {
            match input {
                Input::End => return Ok(()),
                Input::Resized => {}
                Input::Key(key) => match app.press(key) {
                    Effect::Nothing => {}
                    Effect::Leave => return Ok(()),
                    Effect::Ask(request) => client.command(request),
                },
            }
        }
        if options.count.is_some_and(|count| snapshots >= count) {
            return Ok(());
        }
    }
}
