//! `supervisor top`: the server on a terminal.
//!
//! It is a client of the control socket that goes on looking. What it gets becomes a [`picture`](picture::Picture), which with
//! the one before gives rates; [`table`] sorts it, [`view`] lays it out, [`screen`] writes it: all of them are pure.
//! [`session`] asks and never waits for an answer; [`terminal`] makes the terminal ours and gives it back as it was.
//!
//! *Invariants*: nothing that comes from the server reaches the terminal but through [`words::harmless`], as workers have
//! a say in it; no command is sent without a confirmation.

mod batch;
mod control;
mod picture;
mod screen;
mod session;
mod table;
mod terminal;
mod view;
pub(crate) mod words;

use control::{Desk, Do};
use session::{News, Session};
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};
use terminal::{Input, Terminal};

/// How it is to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    /// From one look to the next.
    pub(crate) interval: Duration,
    /// Print frames, instead of having the terminal.
    pub(crate) batch: bool,
    /// Print frames as JSON.
    pub(crate) json: bool,
    /// So many looks; `None`: until it is ended.
    pub(crate) count: Option<u32>,
}

/// Shows the server until somebody has seen enough.
///
/// # Errors
/// When there is no server in the beginning, or no terminal to show it on: the reason.
pub(crate) fn run(path: &Path, options: Options) -> Result<(), String> {
    if options.batch || options.json {
        return batch::run(path, options);
    }
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(
            "top needs a terminal (--batch prints frames to anything, --json prints JSON)"
                .to_owned(),
        );
    }
    let mut session = Session::new(path.to_owned());
    session.check()?;
    let mut terminal =
        Terminal::enter().map_err(|error| format!("cannot have the terminal: {error}"))?;
    let mut desk = Desk::new(path);
    let mut next = Instant::now();
    let mut looks = 0;
    loop {
        let now = Instant::now();
        if now >= next {
            session.look(now);
            session.follow();
            next = now + options.interval;
        }
        terminal
            .show(&desk.frame(terminal.size()))
            .map_err(|error| format!("cannot write to the terminal: {error}"))?;
        let soonest = session
            .deadline()
            .map_or(next, |deadline| deadline.min(next));
        let input = terminal.wait(
            &session.descriptors(),
            soonest.saturating_duration_since(Instant::now()),
        );
        for news in session.hear(Instant::now()) {
            if matches!(news, News::Picture(_)) {
                looks += 1;
            }
            desk.hear(news);
        }
        for input in input.map_err(|error| format!("cannot read from the terminal: {error}"))? {
            match input {
                Input::End => return Ok(()),
                Input::Resized => {}
                Input::Key(key) => match desk.press(key) {
                    Do::Nothing => {}
                    Do::Leave => return Ok(()),
                    Do::Ask(request) => session.command(request),
                },
            }
        }
        if options.count.is_some_and(|count| looks >= count) {
            return Ok(());
        }
    }
}
