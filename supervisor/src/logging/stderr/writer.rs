//! Our own standard error, written without waiting for its reader.
//!
//! A pipe or a terminal is opened once more, without blocking: the open file that we were given is
//! shared with other processes, which may rely on its blocking. Where that is not possible, it is
//! polled before each write; a file can always be written. What cannot be written now waits in a
//! bounded backlog: the log's lines up to one bound, then they are counted and dropped; what dead
//! workers have left, up to a lower one; what living workers write never, since their pipes hold
//! it.

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

/// The most bytes that a writable pipe takes at once and without blocking (`PIPE_BUF`).
pub(crate) const PIECE: usize = 4096;
/// The most bytes that dead workers have in the backlog.
const MAX_DEAD_BACKLOG: usize = 256 << 10;
/// The most bytes in the backlog, so that the log has room left.
const MAX_BACKLOG: usize = MAX_DEAD_BACKLOG + (64 << 10);
/// The most time that the reader has for the last lines when the server exits.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

static WRITER: Mutex<StderrWriter> = Mutex::new(StderrWriter {
    mode: None,
    backlog: Vec::new(),
    refused: false,
    dropped: 0,
});

/// How it is written.
#[derive(Debug)]
enum WriteMode {
    /// By an open file of our own that does not block.
    Own(File),
    /// As a socket, by sends that do not block.
    Socket,
    /// By a poll before each write, a piece at a time.
    Polled,
}

/// Our own standard error.
#[derive(Debug)]
pub(crate) struct StderrWriter {
    mode: Option<WriteMode>,
    /// What is to be written before anything else.
    backlog: Vec<u8>,
    /// A living worker's lines were not taken.
    refused: bool,
    /// Lines that found no room.
    dropped: u64,
}

/// Returns the writer of this process.
pub(crate) fn stderr_writer() -> MutexGuard<'static, StderrWriter> {
    WRITER.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StderrWriter {
    /// Writes whole lines of a worker, at most a [`PIECE`], or nothing: then `false`.
    pub(crate) fn try_write(&mut self, lines: &[u8]) -> bool {
        let written = if self.flush() { self.write(lines) } else { 0 };
        self.refused = written == 0 && !lines.is_empty();
        if !self.refused {
            // The rest of a line goes out before anything else.
            self.backlog.extend_from_slice(&lines[written..]);
        }
        !self.refused
    }

    /// Writes whole lines of a dead worker now or later, if there is room for them.
    pub(crate) fn write_or_queue(&mut self, lines: &[u8]) {
        self.queue(lines, MAX_DEAD_BACKLOG);
    }

    fn queue(&mut self, lines: &[u8], most: usize) {
        let written = if self.flush() { self.write(lines) } else { 0 };
        let rest = &lines[written..];
        if written == 0 && self.backlog.len() + rest.len() > most {
            let lines = rest.split_inclusive(|byte| *byte == b'\n').count();
            self.dropped += u64::try_from(lines).unwrap_or(u64::MAX);
        } else {
            self.backlog.extend_from_slice(rest);
        }
    }

    /// Writes the backlog. Returns whether it is empty now.
    pub(crate) fn flush(&mut self) -> bool {
        if !self.backlog.is_empty() {
            let backlog = std::mem::take(&mut self.backlog);
            let written = self.write(&backlog);
            self.backlog = backlog;
            self.backlog.drain(..written);
        }
        self.backlog.is_empty()
    }

    /// Tries again: standard error may be writable.
    pub(crate) fn unblock(&mut self) {
        self.refused = !self.flush();
    }

    /// Whether something waits to be written.
    pub(crate) fn is_blocked(&self) -> bool {
        self.refused || !self.backlog.is_empty()
    }

    /// Returns how many lines were dropped since the last call.
    pub(crate) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Returns the backlog, for the next version of the program.
    pub(crate) fn backlog(&self) -> &[u8] {
        &self.backlog
    }

    /// Continues with the backlog of another version. To be called before anything is written.
    pub(crate) fn resume(&mut self, backlog: Vec<u8>) {
        self.backlog = backlog;
    }

    /// Calls `act` with the descriptor by which it can be watched for being writable.
    pub(crate) fn with_descriptor<T>(&mut self, act: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
        match self.mode() {
            WriteMode::Own(file) => act(file.as_fd()),
            WriteMode::Socket | WriteMode::Polled => act(io::stderr().as_fd()),
        }
    }

    /// Gives the reader a last chance. To be called when the server exits.
    pub(crate) fn finish(&mut self) {
        let end = Instant::now() + FLUSH_TIMEOUT;
        while !self.flush() && Instant::now() < end {
            let timeout = PollTimeout::from(10_u8);
            self.with_descriptor(|descriptor| {
                let _ =
                    nix::poll::poll(&mut [PollFd::new(descriptor, PollFlags::POLLOUT)], timeout);
            });
        }
    }

    fn mode(&mut self) -> &mut WriteMode {
        self.mode.get_or_insert_with(WriteMode::find)
    }

    /// Writes what can be written now, and returns how much: all of it when no reader is left.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mode = self.mode();
        let mut written = 0;
        while written < bytes.len() {
            match mode.write(&bytes[written..]) {
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

impl WriteMode {
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
            // A pipe without a reader, or of another user.
            return again.map_or(Self::Polled, Self::Own);
        }
        Self::Polled
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Own(file) => file.write(bytes),
            Self::Socket => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                Ok(send(io::stderr().as_raw_fd(), bytes, flags)?)
            }
            Self::Polled => {
                let stderr = io::stderr();
                let mut polled = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
                if nix::poll::poll(&mut polled, PollTimeout::ZERO)? == 0 {
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

/// The sink of the supervisor's log. A line is written, queued or dropped; it never blocks.
#[derive(Debug)]
pub(crate) struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        stderr_writer().queue(line, MAX_BACKLOG);
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

    /// A writer into a pipe that can be filled.
    fn stderr_writer() -> (StderrWriter, File) {
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).expect("a pipe");
        let [reader, writer]: [File; 2] = [reader, writer].map(|end: OwnedFd| end.into());
        (
            StderrWriter {
                mode: Some(WriteMode::Own(writer)),
                backlog: Vec::new(),
                refused: false,
                dropped: 0,
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
        let (mut writer, mut reader) = stderr_writer();
        let line = [[b'x'; PIECE - 1].as_slice(), b"\n"].concat();
        let mut count = 0;
        while writer.try_write(&line) {
            count += 1;
        }
        writer.queue(b"log\n", MAX_BACKLOG);
        writer.write_or_queue(b"dead\n");
        assert!(writer.is_blocked() && !writer.try_write(b"worker\n"));
        let read_so_far = read(&mut reader).len();
        assert_eq!(read_so_far, count * PIECE);
        assert!(writer.try_write(b"worker\n") && !writer.is_blocked());
        assert_eq!(read(&mut reader), b"log\ndead\nworker\n");
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let (mut writer, mut reader) = stderr_writer();
        while writer.try_write(&[b'\n'; PIECE]) {}
        let line = [[b'y'; 999].as_slice(), b"\n"].concat();
        (0..1000).for_each(|_| writer.write_or_queue(&line));
        assert!(writer.backlog.len() <= MAX_DEAD_BACKLOG);
        let before = writer.take_dropped();
        assert!(before > 700, "{before}");
        (0..1000).for_each(|_| writer.queue(&line, MAX_BACKLOG));
        assert!(writer.backlog.len() <= MAX_BACKLOG && writer.backlog.len() > MAX_DEAD_BACKLOG);
        assert!(writer.take_dropped() > 900);
        while !writer.flush() {
            read(&mut reader);
        }
        assert!(read(&mut reader).ends_with(b"y\n"));
    }

    #[test]
    fn a_reader_that_is_gone_blocks_nothing() {
        let (mut writer, reader) = stderr_writer();
        drop(reader);
        assert!(writer.try_write(b"without a reader\n") && !writer.is_blocked());
    }
}
