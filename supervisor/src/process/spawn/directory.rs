//! A directory that is held by descriptor.

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// A directory that stays the same one when its name comes to mean another, as `current` does in a
/// deployment by symbolic link.
#[derive(Debug)]
pub(crate) struct Directory {
    descriptor: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens a directory, from `base` when the path is relative, or from the present working
    /// directory.
    ///
    /// # Errors
    /// Those of open(2).
    pub(crate) fn open(base: Option<&Self>, path: &Path) -> Result<Self, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let descriptor = openat(fd_of(base), path, flags, Mode::empty())?;
        Ok(Self::adopted(descriptor, full(base, path)))
    }

    /// Goes on with a directory that another version of this program has opened. `path` is its name
    /// where `/proc` tells none.
    pub(crate) fn adopted(descriptor: OwnedFd, path: PathBuf) -> Self {
        let path = real_path(descriptor.as_fd()).unwrap_or(path);
        Self { descriptor, path }
    }

    /// Returns its path without symbolic links, as it was when the directory was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Returns the descriptor from which relative paths lead.
pub(super) fn fd_of(base: Option<&Directory>) -> BorrowedFd<'_> {
    base.map_or(AT_FDCWD, AsFd::as_fd)
}

/// Returns a path from the root, with all symbolic links in it.
pub(super) fn full(base: Option<&Directory>, path: &Path) -> PathBuf {
    match base {
        Some(base) => base.path().join(path),
        None => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}

/// Returns the present path of an open file; `None` without `/proc`.
pub(super) fn real_path(of: BorrowedFd<'_>) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", of.as_raw_fd())).ok()
}

/// Returns another name for a file whose directory is reached through a symbolic link: one that
/// does not lead through it. The last part of the name stays as it is: a virtual environment of
/// Python is found by the place of the link `bin/python`.
pub(crate) fn without_links(base: Option<&Directory>, path: &Path) -> Option<PathBuf> {
    let (parent, name) = (path.parent()?, path.file_name()?);
    if parent == Path::new("") {
        return None;
    }
    let real = Directory::open(base, parent).ok()?;
    leads_through_link(base, parent, &real).then(|| real.path().join(name))
}

/// Whether a directory's real path is another than the one by which it was opened.
pub(super) fn leads_through_link(base: Option<&Directory>, path: &Path, real: &Directory) -> bool {
    let full = full(base, path);
    let parts = full.components().filter(|part| *part != Component::CurDir);
    !parts.eq(real.path().components())
}
