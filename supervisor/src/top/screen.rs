//! A frame as the bytes that draw it.

use super::view::{Line, Look};
use std::fmt::Write;

/// With or without colours (no-color.org).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Palette {
    pub(crate) colours: bool,
}

impl Palette {
    fn code(self, look: Look) -> &'static str {
        match (look, self.colours) {
            (Look::Plain, _) => "",
            (Look::Bold, _) => "1",
            (Look::Dim, _) => "2",
            (Look::Chosen, _) => "7",
            (Look::Good, true) => "32",
            (Look::Warn, true) => "33",
            (Look::Bad, true) => "1;31",
            (Look::Good, false) => "",
            (Look::Warn | Look::Bad, false) => "1",
        }
    }
}

/// Draws over whatever is there, from the first line on, without clearing it first: that would flicker.
pub(crate) fn draw(frame: &[Line], palette: Palette) -> String {
    let mut bytes = String::from("\x1b[H");
    for (index, line) in frame.iter().enumerate() {
        if index > 0 {
            bytes.push_str("\r\n");
        }
        for (look, text) in line {
            match palette.code(*look) {
                "" => bytes.push_str(text),
                // A string takes every letter.
                code => drop(write!(bytes, "\x1b[{code}m{text}\x1b[0m")),
            }
        }
        bytes.push_str("\x1b[K");
    }
    bytes.push_str("\x1b[J");
    bytes
}

/// The same as plain text.
pub(crate) fn plain(frame: &[Line]) -> String {
    let line = |line: &Line| {
        line.iter()
            .map(|(_, text)| text.as_str())
            .collect::<String>()
    };
    frame
        .iter()
        .map(|one| line(one).trim_end().to_owned() + "\n")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cleared_behind_its_text_and_looks_end_where_they_should() {
        let frame = vec![
            vec![(Look::Bad, "x".to_owned()), (Look::Plain, "y ".to_owned())],
            Vec::new(),
        ];
        let coloured = draw(&frame, Palette { colours: true });
        assert_eq!(coloured, "\x1b[H\x1b[1;31mx\x1b[0my \x1b[K\r\n\x1b[K\x1b[J");
        assert!(!draw(&frame, Palette { colours: false }).contains("31"));
        assert_eq!(plain(&frame), "xy\n\n");
    }
}
