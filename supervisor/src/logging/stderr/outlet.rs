//! Our own standard error, written to by whoever must not wait for its reader.
//!
//! A pipe or a terminal is opened once more, without blocking: the description that we were given belongs to others, too,
//! who may rely on its blocking. Where that is not possible, it is asked beforehand whether it can be written; a file
//! always can. What cannot be written now waits in a bounded backlog: the log's lines up to one bound, then they are
//! counted and lost; what dead workers have left, up to a lower one; and what living workers write not at all, since
//! their pipes can hold it.

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{SFlag, fstat};
use std::fs::{File, OpenOptions};
use std::io;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most bytes that a pipe which can be written takes without blocking, and takes whole (`PIPE_BUF`).
pub(crate) const PIECE: usize = 4096;
/// The most that waits of what dead workers have left.
const ESTATES: usize = 256 << 10;
/// The most that waits at all, so that the log has room left.
const BACKLOG: usize = ESTATES + (64 << 10);
/// How long the reader may take for the last lines when the server is gone.
const FAREWELL: Duration = Duration::from_millis(500);

static OUTLET: Mutex<StderrWriter> = Mutex::new(StderrWriter {
    way: None,
    backlog: Vec::new(),
    refused: false,
    lost: 0,
});

/// How it is written.
#[derive(Debug)]
enum Way {
    /// By a description of our own that does not block.
    Own(File),
    /// As a socket, which can be told not to block each time.
    Socket,
    /// Asked beforehand, a piece at a time.
    Asked,
}

/// Our own standard error.
#[derive(Debug)]
pub(crate) struct StderrWriter {
    way: Option<Way>,
    /// What is to be written before anything else.
    backlog: Vec<u8>,
    /// A living worker's lines were not taken.
    refused: bool,
    /// Lines that found no room.
    lost: u64,
}

/// The one that there is.
pub(crate) fn outlet() -> MutexGuard<'static, StderrWriter> {
    OUTLET.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StderrWriter {
    /// Writes whole lines of a worker, at most a [`PIECE`], or nothing: then `false`.
    pub(crate) fn pass_on(&mut self, lines: &[u8]) -> bool {
        let written = if self.flush() { self.write(lines) } else { 0 };
        self.refused = written == 0 && !lines.is_empty();
        if !self.refused {
            // A line that was begun is the first thing to go on with.
            self.backlog.extend_from_slice(&lines[written..]);
        }
        !self.refused
    }

    /// Writes whole lines of a dead worker now or later, if there is room for them.
    pub(crate) fn bequeath(&mut self, lines: &[u8]) {
        self.queue(lines, ESTATES);
    }

    fn queue(&mut self, lines: &[u8], most: usize) {
        let written = if self.flush() { self.write(lines) } else { 0 };
        let rest = &lines[written..];
        if written == 0 && self.backlog.len() + rest.len() > most {
            self.lost += 1 + rest[..rest.len().saturating_sub(1)]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count() as u64;
        } else {
            self.backlog.extend_from_slice(rest);
        }
    }

    /// Writes what waits; `false` while something still does.
    pub(crate) fn flush(&mut self) -> bool {
        if !self.backlog.is_empty() {
            let backlog = std::mem::take(&mut self.backlog);
            let written = self.write(&backlog);
            self.backlog = backlog;
            self.backlog.drain(..written);
        }
        self.backlog.is_empty()
    }

    /// It may be possible to write again.
    pub(crate) fn unblock(&mut self) {
        self.refused = !self.flush();
    }

    /// Whether something waits to be written.
    pub(crate) fn is_blocked(&self) -> bool {
        self.refused || !self.backlog.is_empty()
    }

    /// How many lines were lost since the last call.
    pub(crate) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// What waits, for the next version of the program.
    pub(crate) fn backlog(&self) -> &[u8] {
        &self.backlog
    }

    /// Goes on with what another version had to write. To be called before anything is written.
    pub(crate) fn resume(&mut self, backlog: Vec<u8>) {
        self.backlog = backlog;
    }

    /// Watches it, or ceases to: by the descriptor that tells when it can be written.
    pub(crate) fn with_descriptor<T>(&mut self, act: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
        match self.way() {
            Way::Own(file) => act(file.as_fd()),
            Way::Socket | Way::Asked => act(io::stderr().as_fd()),
        }
    }

    /// Gives whoever reads a last chance. To be called when the server is gone.
    pub(crate) fn finish(&mut self) {
        let end = Instant::now() + FAREWELL;
        while !self.flush() && Instant::now() < end {
            let patience = PollTimeout::from(10_u8);
            self.with_descriptor(|descriptor| {
                let _ =
                    nix::poll::poll(&mut [PollFd::new(descriptor, PollFlags::POLLOUT)], patience);
            });
        }
    }

    fn way(&mut self) -> &mut Way {
        self.way.get_or_insert_with(Way::find)
    }

    /// Writes what can be written now, and tells how much. When nobody is left to read, that is everything.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let way = self.way();
        let mut written = 0;
        while written < bytes.len() {
            match way.write(&bytes[written..]) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return bytes.len(),
            }
        }
        written
    }
}

impl Way {
    fn find() -> Self {
        let stderr = io::stderr();
        let format = fstat(&stderr).map_or(SFlag::empty(), |status| {
            SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits())
        });
        if format == SFlag::S_IFSOCK {
            return Self::Socket;
        }
        if format == SFlag::S_IFIFO || format == SFlag::S_IFCHR {
            let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
            let again = OpenOptions::new()
                .write(true)
                .custom_flags(flags)
                .open("/proc/self/fd/2");
            // A pipe that nobody reads, or another user's.
            return again.map_or(Self::Asked, Self::Own);
        }
        Self::Asked
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Own(file) => file.write(bytes),
            Self::Socket => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                Ok(send(io::stderr().as_raw_fd(), bytes, flags)?)
            }
            Self::Asked => {
                let stderr = io::stderr();
                let mut asked = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
                if nix::poll::poll(&mut asked, PollTimeout::ZERO)? == 0 {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(nix::unistd::write(
                    &stderr,
                    &bytes[..bytes.len().min(PIECE)],
                )?)
            }
        }
    }
}

/// Where the supervisor's log goes. A line is written, waits, or is counted as lost; never is waited for it.
#[derive(Debug)]
pub(crate) struct LogOutlet;

impl Write for LogOutlet {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        outlet().queue(line, BACKLOG);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    /// An outlet into a pipe that can be filled.
    fn outlet() -> (StderrWriter, File) {
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).expect("a pipe");
        let [reader, writer]: [File; 2] = [reader, writer].map(|end: OwnedFd| end.into());
        (
            StderrWriter {
                way: Some(Way::Own(writer)),
                backlog: Vec::new(),
                refused: false,
                lost: 0,
            },
            reader,
        )
    }

    fn read(reader: &mut File) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0; PIECE];
        while let Ok(count) = reader.read(&mut buffer) {
            all.extend_from_slice(&buffer[..count]);
        }
        all
    }

    #[test]
    fn workers_lines_are_written_or_refused_and_the_log_waits() {
        let (mut outlet, mut reader) = outlet();
        let line = [[b'x'; PIECE - 1].as_slice(), b"\n"].concat();
        let mut count = 0;
        while outlet.pass_on(&line) {
            count += 1;
        }
        outlet.queue(b"log\n", BACKLOG);
        outlet.bequeath(b"last words\n");
        assert!(outlet.is_blocked() && !outlet.pass_on(b"worker\n"));
        let read_so_far = read(&mut reader).len();
        assert_eq!(read_so_far, count * PIECE);
        assert!(outlet.pass_on(b"worker\n") && !outlet.is_blocked());
        assert_eq!(read(&mut reader), b"log\nlast words\nworker\n");
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let (mut outlet, mut reader) = outlet();
        while outlet.pass_on(&[b'\n'; PIECE]) {}
        let line = [[b'y'; 999].as_slice(), b"\n"].concat();
        (0..1000).for_each(|_| outlet.bequeath(&line));
        assert!(outlet.backlog.len() <= ESTATES);
        let before = outlet.take_lost();
        assert!(before > 700, "{before}");
        (0..1000).for_each(|_| outlet.queue(&line, BACKLOG));
        assert!(outlet.backlog.len() <= BACKLOG && outlet.backlog.len() > ESTATES);
        assert!(outlet.take_lost() > 900);
        while !outlet.flush() {
            read(&mut reader);
        }
        assert!(read(&mut reader).ends_with(b"y\n"));
    }

    #[test]
    fn a_reader_that_is_gone_holds_nobody_up() {
        let (mut outlet, reader) = outlet();
        drop(reader);
        assert!(outlet.pass_on(b"nobody reads this\n") && !outlet.is_blocked());
    }
}
