//! A `/tmp` and a `/var/tmp` of a worker's own: empty memory in a mount namespace of its own, gone
//! with it.

use nix::errno::Errno;
use prefork_os::private_tmp::{PrivateTmp, check};
use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The directories that a worker gets for itself.
const PLACES: [&CStr; 2] = [c"/tmp", c"/var/tmp"];

/// Prepares those of the directories that exist.
///
/// # Errors
/// Why this process cannot mount them.
pub(crate) fn prepare() -> Result<PrivateTmp, Errno> {
    check()?;
    let there = |place: &&CStr| path(place).is_dir();
    Ok(PrivateTmp(PLACES.into_iter().filter(there).collect()))
}

/// Returns whether a path lies where a worker with a private `/tmp` sees something else.
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
