//! What is shown now, and what keys do.

use super::picture::{Picture, Rates};
use super::session::News;
use super::table::{Column, Order, rows};
use super::terminal::Key;
use super::view::{Happened, Line, Look, Scene, frame};
use super::words::harmless;
use crate::control::Request;
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

/// Events that are kept.
const KEPT: usize = 100;
/// Rows that PgUp and PgDn go over.
const PAGE: isize = 10;

/// What is to be done about a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Do {
    Nothing,
    Leave,
    Ask(Request),
}

/// What the last line asks.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Prompt {
    None,
    /// Whether to do it.
    Confirm(Request),
    /// How many workers.
    Number(String),
    /// Nothing: this is an answer.
    Told(Look, String),
}

/// Everything that is known, and what somebody has chosen.
#[derive(Debug)]
pub(crate) struct Desk {
    path: String,
    picture: Option<Picture>,
    rates: BTreeMap<u64, Rates>,
    all: Rates,
    order: Order,
    chosen: Option<u64>,
    events: VecDeque<Happened>,
    trouble: Option<String>,
    prompt: Prompt,
    help: bool,
}

impl Desk {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: harmless(&path.display().to_string()),
            picture: None,
            rates: BTreeMap::new(),
            all: Rates::default(),
            order: Order {
                column: Column::Slot,
                reversed: false,
            },
            chosen: None,
            events: VecDeque::new(),
            trouble: None,
            prompt: Prompt::None,
            help: false,
        }
    }

    /// Takes in what the server tells.
    pub(crate) fn hear(&mut self, news: News) {
        match news {
            News::Picture(status) => {
                let picture = Picture::read(&status);
                if let Some(before) = &self.picture {
                    (self.rates, self.all) = picture.since(before);
                }
                self.trouble = None;
                self.picture = Some(picture);
            }
            News::Event(event) => {
                let word = |name: &str| harmless(event[name].as_str().unwrap_or_default());
                if self.events.len() >= KEPT {
                    self.events.pop_front();
                }
                self.events.push_back(Happened {
                    time: word("time"),
                    level: word("level"),
                    text: word("text"),
                });
            }
            News::Verdict(Ok(words)) => self.prompt = Prompt::Told(Look::Good, harmless(&words)),
            News::Verdict(Err(reason)) => self.prompt = Prompt::Told(Look::Bad, harmless(&reason)),
            News::Progress(words) => self.prompt = Prompt::Told(Look::Plain, harmless(&words)),
            News::Silence(reason) => {
                self.trouble = Some(format!(
                    "{}: {} (still asking)",
                    self.path,
                    harmless(&reason)
                ));
            }
        }
    }

    /// What stands on a screen of so many columns and lines.
    pub(crate) fn frame(&self, (columns, lines): (usize, usize)) -> Vec<Line> {
        let prompt = match &self.prompt {
            Prompt::None => None,
            Prompt::Confirm(request) => Some((
                Look::Bold,
                format!("{}? y does it, any other key does not", words(request)),
            )),
            Prompt::Number(digits) => Some((
                Look::Bold,
                format!("how many workers? {digits}_   (Enter, or Esc for none of it)"),
            )),
            Prompt::Told(look, words) => Some((*look, words.clone())),
        };
        let scene = Scene {
            picture: self.picture.as_ref(),
            rates: &self.rates,
            all: &self.all,
            order: self.order,
            chosen: self.chosen,
            events: &self.events,
            trouble: self.trouble.as_deref(),
            prompt,
            help: self.help,
        };
        frame(&scene, columns, lines)
    }

    /// What a key does.
    pub(crate) fn press(&mut self, key: Key) -> Do {
        match (std::mem::replace(&mut self.prompt, Prompt::None), key) {
            (Prompt::Confirm(request), Key::Letter('y' | 'Y')) => return Do::Ask(request),
            (Prompt::Confirm(_), _) => {
                self.prompt = Prompt::Told(Look::Plain, "nothing was done".to_owned());
                return Do::Nothing;
            }
            (Prompt::Number(digits), key) => return self.type_number(digits, key),
            (Prompt::None | Prompt::Told(..), _) => {}
        }
        match key {
            Key::Letter('q') | Key::Interrupt => return Do::Leave,
            Key::Letter('?' | 'h') => self.help = !self.help,
            Key::Escape => self.help = false,
            Key::Up => self.choose(-1),
            Key::Down => self.choose(1),
            Key::PageUp => self.choose(-PAGE),
            Key::PageDown => self.choose(PAGE),
            Key::Home => self.chosen = None,
            Key::Letter('<') | Key::Left => self.order = self.order.shifted(-1),
            Key::Letter('>') | Key::Right => self.order = self.order.shifted(1),
            Key::Letter('i') => self.order.reversed = !self.order.reversed,
            Key::Letter('R') => self.prompt = Prompt::Confirm(Request::Reload { wait: true }),
            Key::Letter('S') => self.prompt = Prompt::Number(String::new()),
            Key::Letter('x') => {
                self.ask_of_slot(|slot| Request::RestartWorker { slot, wait: true })
            }
            Key::Letter('d') => self.ask_of_slot(|slot| Request::Drain { slot, wait: true }),
            Key::Letter(letter) => self.sort_by(letter),
            Key::Enter | Key::Backspace | Key::Suspend | Key::Other => {}
        }
        Do::Nothing
    }

    fn type_number(&mut self, mut digits: String, key: Key) -> Do {
        match key {
            Key::Letter(digit) if digit.is_ascii_digit() && digits.len() < 4 => digits.push(digit),
            Key::Backspace => drop(digits.pop()),
            Key::Enter => {
                self.prompt = match digits.parse() {
                    Ok(workers) => Prompt::Confirm(Request::Scale { workers }),
                    Err(_) => Prompt::None,
                };
                return Do::Nothing;
            }
            Key::Escape | Key::Interrupt => return Do::Nothing,
            _ => {}
        }
        self.prompt = Prompt::Number(digits);
        Do::Nothing
    }

    fn ask_of_slot(&mut self, request: impl FnOnce(u16) -> Request) {
        let slot = self.chosen.and_then(|slot| u16::try_from(slot).ok());
        self.prompt = match slot {
            Some(slot) => Prompt::Confirm(request(slot)),
            None => Prompt::Told(
                Look::Warn,
                "choose a slot first, with the arrow keys".to_owned(),
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

    /// Goes up or down in the table as it is sorted.
    fn choose(&mut self, by: isize) {
        let Some(picture) = &self.picture else { return };
        // A slot that has two workers has two rows, and is one choice.
        let mut slots: Vec<u64> = Vec::new();
        for row in rows(picture, &self.rates, self.order) {
            if !slots.contains(&row.slot.slot) {
                slots.push(row.slot.slot);
            }
        }
        let last = slots.len().saturating_sub(1);
        let next = match slots.iter().position(|slot| Some(*slot) == self.chosen) {
            None if by > 0 => 0,
            None => last,
            Some(place) => place.saturating_add_signed(by).min(last),
        };
        self.chosen = slots.get(next).copied();
    }
}

/// What a request does, in words.
fn words(request: &Request) -> String {
    match request {
        Request::Reload { .. } => "reload configuration and program".to_owned(),
        Request::Scale { workers } => format!("have {workers} workers"),
        Request::RestartWorker { slot, .. } => format!("restart the worker of slot {slot}"),
        Request::Drain { slot, .. } => format!("drain slot {slot} and hold it empty"),
        other => format!("{other:?}"),
    }
}

/// The verdict on a request, out of the answer's last line.
pub(crate) fn verdict(answer: &Value) -> Result<String, String> {
    if answer["ok"] != true {
        let reason = answer["error"]
            .as_str()
            .unwrap_or("the server says no, without a reason");
        return Err(format!("not done: {reason}"));
    }
    Ok(
        if let (Some(slot), Some(worker)) = (answer["slot"].as_u64(), answer["worker"].as_u64()) {
            format!("done: worker {worker} serves slot {slot}")
        } else if let Some(slot) = answer["slot"].as_u64() {
            format!("done: slot {slot} is empty")
        } else if let Some(generation) = answer["generation"].as_u64() {
            format!("done: generation {generation} serves")
        } else if answer["scaled"].is_array() {
            format!(
                "done: {} workers (before: {})",
                answer["scaled"][1], answer["scaled"][0]
            )
        } else {
            "done".to_owned()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::super::picture::tests::status;
    use super::*;
    use serde_json::json;

    fn desk() -> Desk {
        let mut desk = Desk::new(Path::new("/run/x.sock"));
        desk.hear(News::Picture(status(1000.0, [1, 1])));
        desk.hear(News::Picture(status(1001.0, [1, 9])));
        desk
    }

    fn last_line(desk: &Desk) -> String {
        desk.frame((100, 24))
            .pop()
            .into_iter()
            .flatten()
            .map(|(_, text)| text)
            .collect()
    }

    #[test]
    fn nothing_is_asked_for_without_a_y() {
        let mut desk = desk();
        assert_eq!(desk.press(Key::Letter('R')), Do::Nothing);
        assert!(last_line(&desk).starts_with("reload configuration and program? y does it"));
        assert_eq!(desk.press(Key::Letter('n')), Do::Nothing);
        assert_eq!(
            (last_line(&desk).as_str(), desk.press(Key::Letter('y'))),
            ("nothing was done", Do::Nothing)
        );
        desk.press(Key::Letter('R'));
        assert_eq!(
            desk.press(Key::Letter('y')),
            Do::Ask(Request::Reload { wait: true })
        );
    }

    #[test]
    fn a_slot_is_chosen_in_the_order_that_is_shown() {
        let mut desk = desk();
        desk.press(Key::Letter('x'));
        assert!(last_line(&desk).contains("choose a slot first"));
        desk.press(Key::Letter('r'));
        desk.press(Key::Down);
        desk.press(Key::Letter('x'));
        assert_eq!(
            desk.press(Key::Letter('y')),
            Do::Ask(Request::RestartWorker {
                slot: 1,
                wait: true
            })
        );
        desk.press(Key::PageDown);
        desk.press(Key::Letter('d'));
        assert_eq!(
            desk.press(Key::Letter('y')),
            Do::Ask(Request::Drain {
                slot: 0,
                wait: true
            })
        );
    }

    #[test]
    fn a_slot_with_two_workers_is_one_choice() {
        let mut desk = desk();
        let mut both = status(1002.0, [1, 9]);
        let first = both["slots"][0]["workers"][0].clone();
        both["slots"][0]["workers"]
            .as_array_mut()
            .expect("workers")
            .push(first);
        desk.hear(News::Picture(both));
        desk.press(Key::Down);
        assert_eq!(desk.chosen, Some(0));
        desk.press(Key::Down);
        assert_eq!(desk.chosen, Some(1));
    }

    #[test]
    fn a_number_of_workers_is_typed_and_confirmed() {
        let mut desk = desk();
        for key in [
            Key::Letter('S'),
            Key::Letter('1'),
            Key::Letter('x'),
            Key::Letter('2'),
            Key::Backspace,
            Key::Letter('3'),
        ] {
            assert_eq!(desk.press(key), Do::Nothing);
        }
        assert!(
            last_line(&desk).starts_with("how many workers? 13_"),
            "{}",
            last_line(&desk)
        );
        desk.press(Key::Enter);
        assert_eq!(
            desk.press(Key::Letter('y')),
            Do::Ask(Request::Scale { workers: 13 })
        );
        desk.press(Key::Letter('S'));
        desk.press(Key::Escape);
        assert!(last_line(&desk).starts_with("q leave"));
    }

    #[test]
    fn verdicts_and_silence_are_told() {
        let mut desk = desk();
        assert_eq!(
            verdict(&json!({"ok":true,"scaled":[2,4]})),
            Ok("done: 4 workers (before: 2)".to_owned())
        );
        assert_eq!(
            verdict(&json!({"ok":false,"error":"no"})),
            Err("not done: no".to_owned())
        );
        desk.hear(News::Verdict(Err("not done: \u{1b}[2J".to_owned())));
        assert_eq!(last_line(&desk), "not done:  [2J");
        desk.hear(News::Silence("connection refused".to_owned()));
        let frame: String = desk
            .frame((100, 24))
            .into_iter()
            .flatten()
            .map(|(_, text)| text)
            .collect();
        assert!(
            frame.contains("/run/x.sock: connection refused (still asking)"),
            "{frame}"
        );
        desk.hear(News::Picture(status(1002.0, [1, 9])));
        assert!(desk.trouble.is_none());
    }
}
