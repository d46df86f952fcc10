//! The log file: appended to without waiting for the reader of a pipe, and reopened when its path
//! names another file.

use super::bounded::{BoundedWriter, MAX_BACKLOG};
use super::output::{Output, StandardStream};
use nix::sys::stat::fstat;
use std::io;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The log of this process, if it does not go to standard error.
pub(super) struct LogFile {
    pub(super) path: PathBuf,
    open: Mutex<Option<Open>>,
}

struct Open {
    writer: BoundedWriter,
    /// `None` for a standard stream, which is never reopened.
    identity: Option<(u64, u64)>,
    looked: Instant,
    /// That it cannot be written was reported.
    reported: bool,
}

/// What became of lines that were not written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// So many were dropped for want of room, and there is room again.
    Dropped(u64),
    /// They cannot be written, for this reason.
    Failing(String),
}

impl LogFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            open: Mutex::new(None),
        }
    }

    fn guard(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens it, again if it is open already. What waits is written to the new one.
    ///
    /// # Errors
    /// Those of open(2); the old one stays in use.
    pub(super) fn reopen(&self) -> io::Result<()> {
        let output = Output::open(&self.path)?;
        let identity = if StandardStream::named_by(&self.path).is_some() {
            None
        } else {
            let about = fstat(output.descriptor())?;
            Some((about.st_dev, about.st_ino))
        };
        let mut guard = self.guard();
        if let Some(open) = guard.as_mut() {
            open.writer.redirect(output);
            (open.identity, open.looked, open.reported) = (identity, Instant::now(), false);
        } else {
            *guard = Some(Open {
                writer: BoundedWriter::to(output),
                identity,
                looked: Instant::now(),
                reported: false,
            });
        }
        Ok(())
    }

    fn heal(&self) {
        let mut guard = self.guard();
        let Some(open) = guard.as_mut() else { return };
        if open.identity.is_none() || open.looked.elapsed() < LOOK_EVERY {
            return;
        }
        open.looked = Instant::now();
        let there = std::fs::metadata(&self.path)
            .ok()
            .map(|about| (about.dev(), about.ino()));
        if there != open.identity {
            drop(guard);
            // If it fails, the old file stays in use.
            let _ = self.reopen();
        }
    }

    /// Writes what waits, if it can be written. Returns whether anything still waits.
    pub(super) fn flush(&self) -> bool {
        let mut guard = self.guard();
        guard.as_mut().is_some_and(|open| !open.writer.flush())
    }

    /// Gives the reader a last chance.
    pub(super) fn finish(&self) {
        if let Some(open) = self.guard().as_mut() {
            open.writer.finish();
        }
    }

    /// Returns what is to be reported about lines that were lost: once for each time.
    pub(super) fn take_loss(&self) -> Option<Loss> {
        let mut guard = self.guard();
        let open = guard.as_mut()?;
        if let Some(error) = open.writer.failure() {
            let first = !std::mem::replace(&mut open.reported, true);
            return first.then(|| Loss::Failing(error.to_string()));
        }
        open.reported = false;
        if open.writer.is_blocked() {
            return None;
        }
        let dropped = open.writer.take_dropped();
        (dropped > 0).then_some(Loss::Dropped(dropped))
    }
}

impl Write for &LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.heal();
        if let Some(open) = self.guard().as_mut() {
            open.writer.queue(bytes, MAX_BACKLOG);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::io::Read;

    #[test]
    fn a_rotated_file_is_reopened() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let file = LogFile::new(path.clone());
        file.reopen().expect("open");
        (&file).write_all(b"one\n").expect("write");
        std::fs::rename(&path, folder.path().join("log.1")).expect("rotate");
        (&file).write_all(b"two\n").expect("write");
        file.guard().as_mut().expect("open").looked -= LOOK_EVERY;
        (&file).write_all(b"three\n").expect("write");
        assert_eq!(
            std::fs::read_to_string(folder.path().join("log.1")).expect("read"),
            "one\ntwo\n"
        );
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "three\n");
    }

    #[test]
    fn a_pipe_without_a_reader_holds_up_nothing_and_losses_are_counted() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let file = LogFile::new(path.clone());
        file.reopen().expect("open");
        let line = [[b'x'; 999].as_slice(), b"\n"].concat();
        for _ in 0..1000 {
            (&file).write_all(&line).expect("write");
        }
        assert!(file.flush(), "something waits");
        assert_eq!(file.take_loss(), None, "it cannot be reported yet");
        let mut reader = OpenOptions::new().read(true).open(&path).expect("open");
        let mut lines = 0;
        let mut waits = true;
        while waits {
            let mut buffer = [0; 65536];
            let count = reader.read(&mut buffer).expect("read");
            lines += buffer[..count].split(|byte| *byte == b'\n').count() as u64 - 1;
            waits = file.flush();
        }
        let Some(Loss::Dropped(dropped)) = file.take_loss() else {
            panic!("nothing was dropped");
        };
        assert!(
            dropped > 500 && lines + dropped <= 1000,
            "{lines} and {dropped}"
        );
        assert_eq!(file.take_loss(), None);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_reported_once() {
        let file = LogFile::new("/dev/full".into());
        file.reopen().expect("open");
        for expected in [true, false] {
            (&file).write_all(b"line\n").expect("write");
            let failing = |loss: &Loss| matches!(loss, Loss::Failing(_));
            assert_eq!(file.take_loss().as_ref().is_some_and(failing), expected);
        }
    }
}
