//! What a log is written to, opened and written without waiting for its reader.
//!
//! A pipe or a terminal that we were given is opened once more, without blocking: its open file is
//! shared with other processes, which may rely on its blocking. Where that is not possible, it is
//! polled before each write; a file can always be written. A socket cannot be opened at all, so
//! standard streams are never opened by their paths, but duplicated.

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{SFlag, fstat};
use std::fs::{File, OpenOptions};
use std::io;
use std::io::{IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// The most bytes that a writable pipe takes at once and without blocking (`PIPE_BUF`).
pub(crate) const PIECE: usize = 4096;

/// Neither waits nor takes over a terminal.
const FLAGS: i32 = libc::O_NONBLOCK | libc::O_NOCTTY;

/// A standard stream, as a path can name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StandardStream {
    Stdout,
    Stderr,
}

impl StandardStream {
    /// Returns the stream that a path such as `/dev/stdout` names.
    pub(crate) fn named_by(path: &Path) -> Option<Self> {
        let names = |name: &str, number: u8| {
            [
                format!("/dev/{name}"),
                format!("/dev/fd/{number}"),
                format!("/proc/self/fd/{number}"),
            ]
        };
        let is_one = |names: [String; 3]| names.iter().any(|name| path == Path::new(name));
        if is_one(names("stdout", 1)) {
            Some(Self::Stdout)
        } else if is_one(names("stderr", 2)) {
            Some(Self::Stderr)
        } else {
            None
        }
    }

    /// Returns a duplicate of its descriptor.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub(crate) fn duplicate(self) -> io::Result<OwnedFd> {
        match self {
            Self::Stdout => io::stdout().as_fd().try_clone_to_owned(),
            Self::Stderr => io::stderr().as_fd().try_clone_to_owned(),
        }
    }
}

/// An open file, pipe, terminal or socket, and how it is written.
#[derive(Debug)]
pub(crate) enum Output {
    /// By an open file of our own that does not block.
    Own(File),
    /// As a socket, by sends that do not block.
    Socket(OwnedFd),
    /// By a poll before each write, a piece at a time.
    Polled(OwnedFd),
    /// Not at all.
    Nothing(io::Stderr),
}

impl Output {
    /// Returns standard error, opened once more if that is possible.
    pub(super) fn stderr() -> Self {
        Self::standard(StandardStream::Stderr).unwrap_or_else(|_| Self::Nothing(io::stderr()))
    }

    /// Returns a standard stream, opened once more if that is possible.
    ///
    /// # Errors
    /// Those of fcntl(2).
    fn standard(stream: StandardStream) -> io::Result<Self> {
        let descriptor = stream.duplicate()?;
        let kind = kind(&descriptor);
        if kind == SFlag::S_IFSOCK {
            return Ok(Self::Socket(descriptor));
        }
        if kind == SFlag::S_IFIFO || kind == SFlag::S_IFCHR {
            let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
            let again = OpenOptions::new()
                .write(true)
                .custom_flags(FLAGS)
                .open(path);
            // Not a pipe without a reader, or of another user.
            if let Ok(own) = again {
                return Ok(Self::Own(own));
            }
        }
        Ok(Self::Polled(descriptor))
    }

    /// Opens a path for appending.
    ///
    /// # Errors
    /// Those of open(2).
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        match StandardStream::named_by(path) {
            Some(stream) => Self::standard(stream),
            None => open_without_waiting(path).map(Self::Own),
        }
    }

    /// Returns the descriptor by which it can be watched.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(file) => file.as_fd(),
            Self::Socket(descriptor) | Self::Polled(descriptor) => descriptor.as_fd(),
            Self::Nothing(stderr) => stderr.as_fd(),
        }
    }

    /// Writes as much as can be written now.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.descriptor().is_terminal() {
            return self.write_once(bytes);
        }
        // A background job that writes to its terminal is sent SIGTTOU (`stty tostop`) unless it
        // blocks that. The write would be restarted after the handler, over and over.
        let ttou = SigSet::from(Signal::SIGTTOU);
        let before = ttou.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let written = self.write_once(bytes);
        before.thread_set_mask()?;
        written
    }

    fn write_once(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Own(file) => file.write(bytes),
            Self::Socket(socket) => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                Ok(send(socket.as_raw_fd(), bytes, flags)?)
            }
            Self::Polled(descriptor) => {
                let mut polled = [PollFd::new(descriptor.as_fd(), PollFlags::POLLOUT)];
                if nix::poll::poll(&mut polled, PollTimeout::ZERO)? == 0 {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                let piece = &bytes[..bytes.len().min(PIECE)];
                Ok(nix::unistd::write(descriptor, piece)?)
            }
            Self::Nothing(_) => Ok(bytes.len()),
        }
    }
}

/// Opens a file or a named pipe for appending, and does not wait for the reader of a pipe.
///
/// # Errors
/// Those of open(2).
pub(super) fn open_without_waiting(path: &Path) -> io::Result<File> {
    let pipe = std::fs::metadata(path).is_ok_and(|about| about.file_type().is_fifo());
    let mut options = OpenOptions::new();
    options.append(true).create(!pipe).custom_flags(FLAGS);
    // With a read end of our own, a pipe's reader may come late, leave and return.
    let with_reader = pipe
        .then(|| options.clone().read(true).open(path).ok())
        .flatten();
    with_reader.map_or_else(|| options.open(path), Ok)
}

/// Returns what kind of file a descriptor is.
pub(super) fn kind(descriptor: impl AsFd) -> SFlag {
    fstat(descriptor).map_or(SFlag::empty(), |status| {
        SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_streams_have_several_names() {
        let named = |path: &str| StandardStream::named_by(Path::new(path));
        for path in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
            assert_eq!(named(path), Some(StandardStream::Stdout), "{path}");
        }
        for path in ["/dev/stderr", "/dev/fd/2", "/proc/self/fd/2"] {
            assert_eq!(named(path), Some(StandardStream::Stderr), "{path}");
        }
        for path in ["/dev/stdin", "/dev/null", "/var/log/stderr", "stdout"] {
            assert_eq!(named(path), None, "{path}");
        }
    }
}
