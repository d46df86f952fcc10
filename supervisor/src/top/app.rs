//! The state of the screen: what is known of the server, what is selected, and what keys do.

use super::client::News;
use super::snapshot::{Rates, Snapshot};
use super::table::{Column, Order, rows};
use super::terminal::Key;
use super::view::{Line, LogLine, Scene, Style, frame};
use crate::api::request::Request;
use crate::control::client::printable::printable;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

/// Events kept for the screen.
const MAX_EVENTS: usize = 100;
/// Rows per PgUp and PgDn.
const PAGE: isize = 10;

/// The effect of a key on the rest of the program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    Leave,
    Ask(Request),
}

/// The content of the last line.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Prompt {
    None,
    /// The question whether to do it.
    Confirm(Request),
    /// The question for the number of workers.
    Number(String),
    /// A message.
    Message(Style, String),
}

/// The state of the screen.
#[derive(Debug)]
pub(crate) struct App {
    path: String,
    snapshot: Option<Snapshot>,
    rates: BTreeMap<u16, Rates>,
    all: Rates,
    order: Order,
    selected: Option<u16>,
    events: VecDeque<LogLine>,
    trouble: Option<String>,
    prompt: Prompt,
    help: bool,
}

impl App {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: printable(&path.display().to_string()),
            snapshot: None,
            rates: BTreeMap::new(),
            all: Rates::default(),
            order: Order {
                column: Column::Slot,
                reversed: false,
            },
            selected: None,
            events: VecDeque::new(),
            trouble: None,
            prompt: Prompt::None,
            help: false,
        }
    }

    /// Takes in news from the server.
    pub(crate) fn update(&mut self, news: News) {
        match news {
            News::Status(status) => {
                let snapshot = Snapshot::new(*status);
                if let Some(before) = &self.snapshot {
                    (self.rates, self.all) = snapshot.since(before);
                }
                self.trouble = None;
                self.snapshot = Some(snapshot);
            }
            News::Event(event) => {
                if self.events.len() >= MAX_EVENTS {
                    self.events.pop_front();
                }
                self.events.push_back(LogLine {
                    time: printable(&event.time),
                    level: printable(&event.level),
                    text: printable(&event.text),
                });
            }
            News::Verdict(Ok(text)) => self.prompt = Prompt::Message(Style::Good, printable(&text)),
            News::Verdict(Err(reason)) => {
                self.prompt = Prompt::Message(Style::Bad, printable(&reason));
            }
            News::Progress(text) => self.prompt = Prompt::Message(Style::Plain, printable(&text)),
            News::Silence(reason) => {
                self.trouble = Some(format!(
                    "{}: {} (still asking)",
                    self.path,
                    printable(&reason)
                ));
            }
        }
    }

    /// Returns the frame for a screen of this size.
    pub(crate) fn frame(&self, (columns, lines): (usize, usize)) -> Vec<Line> {
        let prompt = match &self.prompt {
            Prompt::None => None,
            Prompt::Confirm(request) => {
                Some((Style::Bold, format!("{}? [y/N]", description(request))))
            }
            Prompt::Number(digits) => Some((
                Style::Bold,
                format!("how many workers? {digits}_   (Enter, or Esc to cancel)"),
            )),
            Prompt::Message(style, text) => Some((*style, text.clone())),
        };
        let scene = Scene {
            snapshot: self.snapshot.as_ref(),
            rates: &self.rates,
            all: &self.all,
            order: self.order,
            selected: self.selected,
            events: &self.events,
            trouble: self.trouble.as_deref(),
            prompt,
            help: self.help,
        };
        frame(&scene, columns, lines)
    }

    /// Handles a key.
    pub(crate) fn press(&mut self, key: Key) -> Effect {
        match (std::mem::replace(&mut self.prompt, Prompt::None), key) {
            (Prompt::Confirm(request), Key::Letter('y' | 'Y')) => return Effect::Ask(request),
            (Prompt::Confirm(_), _) => {
                self.prompt = Prompt::Message(Style::Plain, "cancelled".to_owned());
                return Effect::Nothing;
            }
            (Prompt::Number(digits), key) => return self.type_number(digits, key),
            (Prompt::None | Prompt::Message(..), _) => {}
        }
        match key {
            Key::Letter('q') | Key::Interrupt => return Effect::Leave,
            Key::Letter('?' | 'h') => self.help = !self.help,
            Key::Escape => self.help = false,
            Key::Up => self.select(-1),
            Key::Down => self.select(1),
            Key::PageUp => self.select(-PAGE),
            Key::PageDown => self.select(PAGE),
            Key::Home => self.selected = None,
            Key::Letter('<') | Key::Left => self.order = self.order.shifted(-1),
            Key::Letter('>') | Key::Right => self.order = self.order.shifted(1),
            Key::Letter('i') => self.order.reversed = !self.order.reversed,
            Key::Letter('R') => self.prompt = Prompt::Confirm(Request::Reload { wait: true }),
            Key::Letter('S') => self.prompt = Prompt::Number(String::new()),
            Key::Letter('x') => {
                self.ask_of_slot(|slot| Request::RestartWorker { slot, wait: true });
            }
            Key::Letter('d') => self.ask_of_slot(|slot| Request::Drain { slot, wait: true }),
            Key::Letter(letter) => self.sort_by(letter),
            Key::Enter | Key::Backspace | Key::Suspend | Key::Other => {}
        }
        Effect::Nothing
    }

    fn type_number(&mut self, mut digits: String, key: Key) -> Effect {
        match key {
            Key::Letter(digit) if digit.is_ascii_digit() && digits.len() < 4 => digits.push(digit),
            Key::Backspace => drop(digits.pop()),
            Key::Enter => {
                self.prompt = match digits.parse() {
                    Ok(workers) => Prompt::Confirm(Request::Scale { workers }),
                    Err(_) => Prompt::None,
                };
                return Effect::Nothing;
            }
            Key::Escape | Key::Interrupt => return Effect::Nothing,
            _ => {}
        }
        self.prompt = Prompt::Number(digits);
        Effect::Nothing
    }

    fn ask_of_slot(&mut self, request: impl FnOnce(u16) -> Request) {
        self.prompt = match self.selected {
            Some(slot) => Prompt::Confirm(request(slot)),
            None => Prompt::Message(
                Style::Warn,
                "select a slot first, with the arrow keys".to_owned(),
            ),
        };
    }

    fn sort_by(&mut self, letter: char) {
        let column = match letter {
            's' => Column::Slot,
            'w' => Column::Worker,
            'p' => Column::Pid,
            'g' => Column::Generation,
            't' => Column::State,
            'a' => Column::Age,
            'r' => Column::Requests,
            '9' => Column::P99,
            'e' => Column::Errors,
            'b' => Column::Busy,
            'c' => Column::Open,
            'u' => Column::Queue,
            'm' => Column::Memory,
            'o' => Column::Oldest,
            _ => return,
        };
        self.order = Order {
            column,
            reversed: false,
        };
    }

    /// Moves the selection up or down in the table as it is sorted.
    fn select(&mut self, by: isize) {
        let Some(snapshot) = &self.snapshot else {
            return;
        };
        // A slot with two workers has two rows, and is selected as one.
        let mut slots: Vec<u16> = Vec::new();
        for row in rows(&snapshot.status, &self.rates, self.order) {
            if !slots.contains(&row.slot.slot) {
                slots.push(row.slot.slot);
            }
        }
        let last = slots.len().saturating_sub(1);
        let next = match slots.iter().position(|slot| Some(*slot) == self.selected) {
            None if by > 0 => 0,
            None => last,
            Some(index) => index.saturating_add_signed(by).min(last),
        };
        self.selected = slots.get(next).copied();
    }
}

/// Describes what a request does.
fn description(request: &Request) -> String {
    match request {
        Request::Reload { .. } => "reload configuration and program".to_owned(),
        Request::Scale { workers } => format!("scale to {workers} workers"),
        Request::RestartWorker { slot, .. } => format!("restart the worker of slot {slot}"),
        Request::Drain { slot, .. } => format!("drain slot {slot} and hold it empty"),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::tests::status;
    use super::*;

    fn app() -> App {
        let mut app = App::new(Path::new("/run/x.sock"));
        app.update(News::Status(Box::new(status(1000.0, [1, 1]))));
        app.update(News::Status(Box::new(status(1001.0, [1, 9]))));
        app
    }

    fn last_line(app: &App) -> String {
        app.frame((100, 24))
            .pop()
            .into_iter()
            .flatten()
            .map(|(_, text)| text)
            .collect()
    }

    #[test]
    fn no_command_is_sent_without_a_y() {
        let mut app = app();
        assert_eq!(app.press(Key::Letter('R')), Effect::Nothing);
        assert!(last_line(&app).starts_with("reload configuration and program? [y/N]"));
        assert_eq!(app.press(Key::Letter('n')), Effect::Nothing);
        assert_eq!(
            (last_line(&app).as_str(), app.press(Key::Letter('y'))),
            ("cancelled", Effect::Nothing)
        );
        app.press(Key::Letter('R'));
        assert_eq!(
            app.press(Key::Letter('y')),
            Effect::Ask(Request::Reload { wait: true })
        );
    }

    #[test]
    fn slots_are_selected_in_the_order_of_the_rows() {
        let mut app = app();
        app.press(Key::Letter('x'));
        assert!(last_line(&app).contains("select a slot first"));
        app.press(Key::Letter('r'));
        app.press(Key::Down);
        app.press(Key::Letter('x'));
        assert_eq!(
            app.press(Key::Letter('y')),
            Effect::Ask(Request::RestartWorker {
                slot: 1,
                wait: true
            })
        );
        app.press(Key::PageDown);
        app.press(Key::Letter('d'));
        assert_eq!(
            app.press(Key::Letter('y')),
            Effect::Ask(Request::Drain {
                slot: 0,
                wait: true
            })
        );
    }

    #[test]
    fn a_slot_with_two_workers_is_selected_as_one() {
        let mut app = app();
        let mut both = status(1002.0, [1, 9]);
        let first = both.slots[0].workers[0].clone();
        both.slots[0].workers.push(first);
        app.update(News::Status(Box::new(both)));
        app.press(Key::Down);
        assert_eq!(app.selected, Some(0));
        app.press(Key::Down);
        assert_eq!(app.selected, Some(1));
    }

    #[test]
    fn a_number_of_workers_is_typed_and_confirmed() {
        let mut app = app();
        for key in [
            Key::Letter('S'),
            Key::Letter('1'),
            Key::Letter('x'),
            Key::Letter('2'),
            Key::Backspace,
            Key::Letter('3'),
        ] {
            assert_eq!(app.press(key), Effect::Nothing);
        }
        assert!(
            last_line(&app).starts_with("how many workers? 13_"),
            "{}",
            last_line(&app)
        );
        app.press(Key::Enter);
        assert_eq!(
            app.press(Key::Letter('y')),
            Effect::Ask(Request::Scale { workers: 13 })
        );
        app.press(Key::Letter('S'));
        app.press(Key::Escape);
        assert!(last_line(&app).starts_with("q quit"));
    }

    #[test]
    fn verdicts_and_silence_are_shown() {
        let mut app = app();
        app.update(News::Verdict(Err("not done: \u{1b}[2J".to_owned())));
        assert_eq!(last_line(&app), "not done:  [2J");
        app.update(News::Silence("connection refused".to_owned()));
        let frame: String = app
            .frame((100, 24))
            .into_iter()
            .flatten()
            .map(|(_, text)| text)
            .collect();
        assert!(
            frame.contains("/run/x.sock: connection refused (still asking)"),
            "{frame}"
        );
        app.update(News::Status(Box::new(status(1002.0, [1, 9]))));
        assert!(app.trouble.is_none());
    }
}
