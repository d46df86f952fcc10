//! What is true, written so that it could be typed: [`Config::render`].

use super::options::{Config, SETTINGS};
use super::toml_text::{quoted, quoted_list};
use super::types::Program;
use std::fmt::{Display, Write};

impl Config {
    /// Returns every option with its value, as a file that gives this configuration again. A
    /// program's arguments that are not UTF-8 cannot be written in a file; they come out with
    /// replacement characters.
    pub fn render(&self) -> String {
        let mut page = Page(String::new());
        if let Program::Command(words) = &self.program {
            let words = words.iter().map(|word| word.to_string_lossy());
            page.line("command", quoted_list(words));
        }
        for setting in SETTINGS {
            if let Some(value) = self.written(setting) {
                page.line(&setting.name(), value);
            }
        }
        if !self.env.is_empty() {
            page.0.push_str("\n[env]\n");
            for (key, value) in &self.env {
                page.line(&quoted(key), quoted(value));
            }
        }
        page.0
    }
}

struct Page(String);

impl Page {
    fn line(&mut self, name: &str, value: impl Display) {
        writeln!(self.0, "{name} = {value}").expect("a string takes every line");
    }
}
