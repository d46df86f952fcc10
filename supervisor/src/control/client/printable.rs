//! Text from others, made fit for a terminal.

/// Returns text from others without anything that a terminal would obey or that would mislead its
/// reader: control characters, and those that have no width or change the direction of writing.
///
/// ```text
/// printable("died\u{1b}[2J") == "died [2J"
/// ```
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .filter_map(|letter| match letter {
            _ if letter.is_control() => Some(' '),
            '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}' => None,
            _ => Some(letter),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_others_cannot_command_the_terminal_nor_hide_anything() {
        assert_eq!(printable("a\u{1b}[2Jb\r\nc\u{9b}1m"), "a [2Jb  c 1m");
        assert_eq!(printable("evil\u{202e}txt\u{200b}\u{feff}"), "eviltxt");
        assert_eq!(printable("größe 大"), "größe 大");
    }
}
