//! A frame as the bytes that draw it.

use super::view::{Line, Style};
use std::fmt::Write;

/// With or without colours (no-color.org).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Palette {
    pub(crate) colours: bool,
}

impl Palette {
    fn code(self, style: Style) -> &'static str {
        match (style, self.colours) {
            (Style::Plain, _) => "",
            (Style::Bold, _) => "1",
            (Style::Dim, _) => "2",
            (Style::Selected, _) => "7",
            (Style::Good, true) => "32",
            (Style::Warn, true) => "33",
            (Style::Bad, true) => "1;31",
            (Style::Good, false) => "",
            (Style::Warn | Style::Bad, false) => "1",
        }
    }
}

/// Draws over the previous frame from the first line on, without clearing it first, which would
/// flicker.
pub(crate) fn draw(frame: &[Line], palette: Palette) -> String {
    let mut bytes = String::from("\x1b[H");
    for (index, line) in frame.iter().enumerate() {
        if index > 0 {
            bytes.push_str("\r\n");
        }
        for (style, text) in line {
            match palette.code(*style) {
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

/// Returns the frame as plain text.
pub(crate) fn plain(frame: &[Line]) -> String {
    let line = |line: &Line| {
        line.iter()
            .map(|(_, text)| text.as_str())
            .collect::<String>()
    };
    let mut text = String::new();
    for one in frame {
        text.push_str(line(one).trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cleared_behind_its_text_and_styles_end_where_they_should() {
        let frame = vec![
            vec![
                (Style::Bad, "x".to_owned()),
                (Style::Plain, "y ".to_owned()),
            ],
            Vec::new(),
        ];
        let coloured = draw(&frame, Palette { colours: true });
        assert_eq!(coloured, "\x1b[H\x1b[1;31mx\x1b[0my \x1b[K\r\n\x1b[K\x1b[J");
        assert!(!draw(&frame, Palette { colours: false }).contains("31"));
        assert_eq!(plain(&frame), "xy\n\n");
    }
}
