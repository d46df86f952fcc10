//! The paths that a configuration names for the sandbox, held since its generation was loaded.

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Paths and what they led to when they were first opened. A link that has been switched since
/// does not change them.
#[derive(Debug, Default)]
pub(crate) struct HeldPaths(Vec<(PathBuf, OwnedFd)>);

impl HeldPaths {
    /// No path is held.
    pub(crate) const NONE: Self = Self(Vec::new());

    /// Goes on with the paths that another version of this program has opened.
    pub(crate) fn adopted(held: impl IntoIterator<Item = (PathBuf, OwnedFd)>) -> Self {
        Self(held.into_iter().collect())
    }

    /// Returns what a path leads to, as at the first time.
    ///
    /// # Errors
    /// Those of open(2) and fcntl(2).
    pub(super) fn open(&mut self, path: &Path) -> Result<OwnedFd, Errno> {
        let known = self.0.iter().find(|(known, _)| known == path);
        if let Some((_, descriptor)) = known {
            let same = descriptor.try_clone();
            return same.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)));
        }
        let opened = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let same = opened.try_clone();
        let same = same.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
        self.0.push((path.to_owned(), same));
        Ok(opened)
    }

    /// Returns all of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Path, BorrowedFd<'_>)> {
        self.0
            .iter()
            .map(|(path, held)| (path.as_path(), held.as_fd()))
    }
}
