//! A `/tmp` and a `/var/tmp` of a worker's own: empty memory in a mount namespace of its own, gone with it.
#![allow(unsafe_code)]

use crate::process::spawn::Stage;
use nix::errno::Errno;
use std::ffi::{CStr, OsStr, c_int};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The directories that a worker gets for itself.
const PLACES: [&CStr; 2] = [c"/tmp", c"/var/tmp"];

/// What is mounted there: everybody may write, and nobody can fill the machine's memory.
const OPTIONS: &CStr = c"mode=1777,size=10%";

/// The directories that are to be covered.
#[derive(Debug)]
pub(crate) struct PrivateTmp {
    places: Vec<&'static CStr>,
}

impl PrivateTmp {
    /// None where none is to be had, with the reason.
    pub(crate) fn prepare() -> Result<Self, Errno> {
        may_mount()?;
        let there = |place: &&CStr| path(place).is_dir();
        Ok(Self {
            places: PLACES.into_iter().filter(there).collect(),
        })
    }

    /// The directories that it covers.
    pub(crate) fn places(&self) -> impl Iterator<Item = &'static CStr> {
        self.places.iter().copied()
    }

    /// In the child, while it may mount.
    pub(crate) fn enter(&self) -> Result<(), (Stage, c_int)> {
        let check = |done: c_int| {
            if done < 0 {
                Err((Stage::PrivateTmp, Errno::last_raw()))
            } else {
                Ok(())
            }
        };
        let none = std::ptr::null();
        // SAFETY: plain system calls on integers and on strings that end with a NUL.
        unsafe {
            check(libc::unshare(libc::CLONE_NEWNS))?;
            // What is mounted here stays here; what the machine mounts later is seen here, too.
            check(libc::mount(
                none,
                c"/".as_ptr(),
                none,
                libc::MS_REC | libc::MS_SLAVE,
                none.cast(),
            ))?;
            for place in &self.places {
                let (kind, flags) = (c"tmpfs".as_ptr(), libc::MS_NOSUID | libc::MS_NODEV);
                check(libc::mount(
                    kind,
                    place.as_ptr(),
                    kind,
                    flags,
                    OPTIONS.as_ptr().cast(),
                ))?;
            }
        }
        Ok(())
    }
}

/// Whether a path lies where a worker with a private `/tmp` sees something else.
pub(crate) fn hidden(of: &Path) -> bool {
    let real = of.canonicalize();
    let real = real.as_deref().unwrap_or(of);
    PLACES
        .iter()
        .any(|place| real.starts_with(path(place).canonicalize().as_deref().unwrap_or(path(place))))
}

fn path(place: &CStr) -> &Path {
    Path::new(OsStr::from_bytes(place.to_bytes()))
}

/// Asks for an instance of the file system and throws it away: that needs the same privilege as to mount it.
fn may_mount() -> Result<(), Errno> {
    const CLOEXEC: c_int = 1;
    // SAFETY: the string ends with a NUL.
    let made =
        Errno::result(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), CLOEXEC) })?;
    // SAFETY: the kernel just made it for us, and nobody else knows it. Descriptors fit a RawFd.
    drop(unsafe { OwnedFd::from_raw_fd(made as RawFd) });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_below_tmp_is_hidden_whether_it_exists_or_not() {
        for path in ["/tmp", "/tmp/a/b", "/var/tmp/x"] {
            assert!(hidden(Path::new(path)), "{path}");
        }
        for path in ["/", "/tmpfile", "/var", "/usr/bin"] {
            assert!(!hidden(Path::new(path)), "{path}");
        }
        let here = tempfile::tempdir().expect("a directory");
        let link = here.path().join("link");
        std::os::unix::fs::symlink("/usr", &link).expect("a link");
        assert!(!hidden(&link), "a link is what it leads to");
    }
}
