//! The terminal: ours for a while, and then as it was.
//!
//! Whatever ends this process but SIGKILL gives it back: leaving, a panic, SIGTERM, SIGHUP, SIGINT;
//! SIGTSTP gives it back until SIGCONT.

use super::screen::{Palette, draw};
use super::view::Line;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::Pid;
use std::io;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

/// To the other screen, without a cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[2J";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// What a screen has whose size is not told.
const USUAL: (usize, usize) = (80, 24);

/// The terminal's settings, to be restored.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    Letter(char),
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    Enter,
    Escape,
    Backspace,
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-Z.
    Suspend,
    Other,
}

/// What has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    Key(Key),
    Resized,
    /// It is to end.
    End,
}

/// The terminal, while it is ours.
#[derive(Debug)]
pub(crate) struct Terminal {
    palette: Palette,
    signals: Vec<(Signal, UnixStream)>,
}

impl Terminal {
    /// Takes it.
    pub(crate) fn enter() -> io::Result<Self> {
        let mut signals = Vec::new();
        let wanted = [
            Signal::SIGWINCH,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGTSTP,
            Signal::SIGCONT,
        ];
        for signal in wanted {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            theirs.set_nonblocking(true)?;
            signal_hook::low_level::pipe::register(signal as i32, theirs)?;
            signals.push((signal, ours));
        }
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            hook(panic);
        }));
        take()?;
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Ok(Self {
            palette: Palette { colours },
            signals,
        })
    }

    /// Columns and lines.
    pub(crate) fn size(&self) -> (usize, usize) {
        size()
    }

    /// Shows a frame.
    pub(crate) fn show(&mut self, frame: &[Line]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(draw(frame, self.palette).as_bytes())?;
        out.flush()
    }

    /// Waits for keys, signals, `others` or the end of a time.
    pub(crate) fn wait(
        &mut self,
        others: &[BorrowedFd<'_>],
        time: Duration,
    ) -> io::Result<Vec<Input>> {
        let stdin = io::stdin();
        let own =
            std::iter::once(stdin.as_fd()).chain(self.signals.iter().map(|(_, pipe)| pipe.as_fd()));
        let mut all: Vec<PollFd<'_>> = own
            .chain(others.iter().copied())
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let millis = u16::try_from(time.as_millis().min(60_000)).unwrap_or(u16::MAX);
        match poll(&mut all, PollTimeout::from(millis)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<bool> = all
            .iter()
            .map(|fd| fd.revents().is_some_and(|events| !events.is_empty()))
            .collect();
        drop(all);
        let mut inputs = Vec::new();
        if ready.first() == Some(&true) {
            inputs.extend(keys()?);
        }
        for (place, (signal, pipe)) in self.signals.iter_mut().enumerate() {
            if ready.get(place + 1) != Some(&true) {
                continue;
            }
            let _ = pipe.read(&mut [0; 64]);
            match signal {
                Signal::SIGWINCH => inputs.push(Input::Resized),
                Signal::SIGTSTP => {
                    give_back();
                    let _ = nix::sys::signal::kill(Pid::this(), Signal::SIGSTOP);
                }
                Signal::SIGCONT => {
                    take()?;
                    inputs.push(Input::Resized);
                }
                _ => inputs.push(Input::End),
            }
        }
        Ok(inputs)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        give_back();
    }
}

fn take() -> io::Result<()> {
    let before = tcgetattr(io::stdin())?;
    let mut raw = before.clone();
    cfmakeraw(&mut raw);
    if let Ok(mut place) = BEFORE.lock() {
        place.get_or_insert(before);
    }
    tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw)?;
    let mut out = io::stdout().lock();
    out.write_all(ENTER.as_bytes())?;
    out.flush()
}

fn give_back() {
    let Some(before) = BEFORE.lock().ok().and_then(|mut place| place.take()) else {
        return;
    };
    let mut out = io::stdout().lock();
    let _ = out.write_all(LEAVE.as_bytes());
    let _ = out.flush();
    let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &before);
}

/// Columns and lines of the terminal that standard output is.
fn size() -> (usize, usize) {
    prefork_os::terminal::size(io::stdout())
        .map_or(USUAL, |(columns, lines)| (columns.into(), lines.into()))
}

/// The keys that were pressed.
fn keys() -> io::Result<Vec<Input>> {
    let mut buffer = [0; 256];
    let length = match nix::unistd::read(io::stdin(), &mut buffer) {
        // The terminal is gone.
        Ok(0) => return Ok(vec![Input::End]),
        Ok(length) => length,
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Ok(Vec::new()),
        Err(errno) => return Err(errno.into()),
    };
    let keys = understand(&buffer[..length]);
    if keys.contains(&Key::Suspend) {
        // What the terminal itself would do, were it not raw.
        let _ = nix::sys::signal::kill(Pid::from_raw(0), Signal::SIGTSTP);
    }
    Ok(keys.into_iter().map(Input::Key).collect())
}

/// Keys out of what a terminal sends for them (ECMA-48, as xterm does it).
fn understand(mut bytes: &[u8]) -> Vec<Key> {
    let sequences: [(&[u8], Key); 14] = [
        (b"\x1b[A", Key::Up),
        (b"\x1bOA", Key::Up),
        (b"\x1b[B", Key::Down),
        (b"\x1bOB", Key::Down),
        (b"\x1b[C", Key::Right),
        (b"\x1bOC", Key::Right),
        (b"\x1b[D", Key::Left),
        (b"\x1bOD", Key::Left),
        (b"\x1b[5~", Key::PageUp),
        (b"\x1b[6~", Key::PageDown),
        (b"\x1b[H", Key::Home),
        (b"\x1b[1~", Key::Home),
        (b"\x1bOH", Key::Home),
        (b"\x1b[7~", Key::Home),
    ];
    let mut keys = Vec::new();
    while let Some(first) = bytes.first() {
        if let Some((sequence, key)) = sequences
            .iter()
            .find(|(sequence, _)| bytes.starts_with(sequence))
        {
            keys.push(*key);
            bytes = &bytes[sequence.len()..];
            continue;
        }
        let (key, length) = match first {
            // Another sequence: up to the letter that ends it.
            b'\x1b' if bytes.len() > 1 => {
                let end = bytes[1..]
                    .iter()
                    .skip(1)
                    .position(|byte| (0x40..=0x7e).contains(byte));
                (Key::Other, end.map_or(bytes.len(), |end| end + 3))
            }
            b'\x1b' => (Key::Escape, 1),
            b'\r' | b'\n' => (Key::Enter, 1),
            0x7f | 0x08 => (Key::Backspace, 1),
            0x03 => (Key::Interrupt, 1),
            0x1a => (Key::Suspend, 1),
            0x20..=0x7e => (Key::Letter(char::from(*first)), 1),
            _ => (Key::Other, 1),
        };
        keys.push(key);
        bytes = &bytes[length.min(bytes.len())..];
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_understood_several_at_a_time_and_unknown_ones_are_left() {
        assert_eq!(
            understand(b"q\x1b[A\x1b[6~"),
            [Key::Letter('q'), Key::Up, Key::PageDown]
        );
        assert_eq!(understand(b"\x1b"), [Key::Escape]);
        assert_eq!(understand(b"\x1b[15~y"), [Key::Other, Key::Letter('y')]);
        assert_eq!(
            understand(b"\r\x7f\x03\xc3"),
            [Key::Enter, Key::Backspace, Key::Interrupt, Key::Other]
        );
        assert_eq!(understand(b"\x1a\x1b["), [Key::Suspend, Key::Other]);
    }
}
