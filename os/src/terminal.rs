//! Terminals.

use std::os::fd::{AsFd, AsRawFd};

/// Returns the columns and lines of a terminal; `None` for what is none, or does not know its size.
pub fn size(terminal: impl AsFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let terminal = terminal.as_fd().as_raw_fd();
    // SAFETY: the kernel writes a winsize to where one is.
    let answer = unsafe { libc::ioctl(terminal, libc::TIOCGWINSZ, &raw mut size) };
    match (answer, size.ws_col, size.ws_row) {
        (0, columns, lines) if columns > 0 && lines > 0 => Some((columns, lines)),
        _ => None,
    }
}
