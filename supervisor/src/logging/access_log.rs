//! The access log's file: opened by the supervisor, written by workers, which may run as another
//! user or in a sandbox.
//!
//! A generation has one, which each of its workers inherits. The file is only ever appended to.
//! When its path names another file (it was rotated), it is reopened, and the workers get the new
//! one through their channels.

use super::output::{StandardStream, kind, open_without_waiting};
use crate::config::AccessTarget;
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// An open access log.
#[derive(Debug)]
pub(crate) struct AccessLog {
    target: AccessTarget,
    descriptor: OwnedFd,
    identity: (u64, u64),
    /// How often it was opened: workers with a lower count get it again.
    pub(crate) reopen_count: u64,
}

impl AccessLog {
    /// Opens it without waiting, not even for the reader of a named pipe.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub(crate) fn open(target: &AccessTarget) -> Result<Self, String> {
        let descriptor = match target {
            AccessTarget::Stdout => standard(StandardStream::Stdout).map_err(|error| {
                format!("cannot write the access log to standard output: {error}")
            })?,
            AccessTarget::File(path) => open(path).map_err(|error| cannot_open(path, &error))?,
        };
        Ok(Self::of(target.clone(), descriptor, 1))
    }

    /// Continues with what another version of this program has opened. Every worker gets it again.
    pub(crate) fn adopted(target: &AccessTarget, descriptor: OwnedFd) -> Self {
        Self::of(target.clone(), descriptor, 2)
    }

    fn of(target: AccessTarget, descriptor: OwnedFd, reopen_count: u64) -> Self {
        let identity = fstat(&descriptor).map_or((0, 0), |status| (status.st_dev, status.st_ino));
        Self {
            target,
            descriptor,
            identity,
            reopen_count,
        }
    }

    /// Reopens it if its path names another file by now, or `anyway`. Returns whether it did.
    ///
    /// # Errors
    /// When it cannot be opened; the old one stays in use.
    pub(crate) fn reopen(&mut self, anyway: bool) -> Result<bool, String> {
        let AccessTarget::File(path) = &self.target else {
            return Ok(false);
        };
        if StandardStream::named_by(path).is_some() {
            return Ok(false);
        }
        let there = std::fs::metadata(path)
            .ok()
            .map(|about| (about.dev(), about.ino()));
        if !anyway && there == Some(self.identity) {
            return Ok(false);
        }
        let descriptor = open(path).map_err(|error| cannot_open(path, &error))?;
        *self = Self::of(self.target.clone(), descriptor, self.reopen_count + 1);
        Ok(true)
    }

    /// Returns what kind of file it is.
    pub(crate) fn kind(&self) -> SFlag {
        kind(&self.descriptor)
    }
}

impl AsFd for AccessLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Opens it without waiting for the reader of a pipe. A standard stream is not opened by its path,
/// as it may be a socket, or another user's.
fn open(path: &Path) -> io::Result<OwnedFd> {
    match StandardStream::named_by(path) {
        Some(stream) => standard(stream),
        None => open_without_waiting(path).map(OwnedFd::from),
    }
}

/// Opens a standard stream as an open file of its own, where that is possible: then O_NONBLOCK
/// affects no other process.
fn standard(stream: StandardStream) -> io::Result<OwnedFd> {
    let descriptor = stream.duplicate()?;
    if kind(&descriptor) == SFlag::S_IFIFO {
        let flags = OFlag::O_NONBLOCK.bits() | OFlag::O_NOCTTY.bits();
        if let Ok(own) = OpenOptions::new()
            .append(true)
            .custom_flags(flags)
            .open(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
        {
            return Ok(own.into());
        }
    }
    Ok(descriptor)
}

fn cannot_open(path: &Path, error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => format!("let user {} write it", nix::unistd::geteuid()),
        io::ErrorKind::NotFound => "create its directory".to_owned(),
        _ => "see to what is there".to_owned(),
    };
    format!(
        "cannot open access log {}: {error} ({remedy}, or choose another --access-log)",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_file_is_reopened_and_one_that_is_in_its_place_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.log");
        let mut log = AccessLog::open(&AccessTarget::File(path.clone())).expect("open");
        assert_eq!((log.reopen(false), log.reopen_count), (Ok(false), 1));
        std::fs::rename(&path, folder.path().join("access.log.1")).expect("rotated");
        assert_eq!((log.reopen(false), log.reopen_count), (Ok(true), 2));
        assert!(path.exists());
        assert_eq!((log.reopen(true), log.reopen_count), (Ok(true), 3));
    }

    #[test]
    fn what_cannot_be_opened_is_told_with_the_remedy() {
        let error = AccessLog::open(&AccessTarget::File("/nowhere/access.log".into()))
            .expect_err("no folder");
        assert!(
            error.contains("/nowhere/access.log") && error.contains("create its directory"),
            "{error}"
        );
    }
}
