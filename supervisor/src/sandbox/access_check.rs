//! Whether files can be used, so that what workers cannot use is found before any is started.
//!
//! By the rights that this thread has to files: [`prefork_os::fsuid`] lends it another user's.

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};
use std::path::Path;

/// Checks whether a directory can be entered.
pub(crate) fn can_enter(path: &Path) -> Result<(), Errno> {
    access(path, AccessFlags::X_OK)
}

/// Checks whether a file can be written, or be made if there is none.
pub(crate) fn can_write(path: &Path) -> Result<(), Errno> {
    match access(path, AccessFlags::W_OK) {
        Err(Errno::ENOENT) => {
            let directory = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            access(
                directory.unwrap_or(Path::new(".")),
                AccessFlags::W_OK | AccessFlags::X_OK,
            )
        }
        known => known,
    }
}

fn access(path: &Path, how: AccessFlags) -> Result<(), Errno> {
    faccessat(AT_FDCWD, path, how, AtFlags::AT_EACCESS)
}
