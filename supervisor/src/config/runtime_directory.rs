//! The directory for a server's small files, and the names of sockets in it.

use nix::sys::stat::{Mode, SFlag, lstat};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// The name of the control socket in a runtime directory.
pub(crate) const SOCKET: &str = "prefork.sock";

/// The directory for the control socket of a user without a runtime directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RuntimeDirectoryError {
    #[error("cannot make {} for the control socket: {error} (choose a path with --control)", path.display())]
    Make { path: PathBuf, error: io::Error },
    #[error(
        "{} for the control socket is not a directory that only user {} can use \
         (remove it, set XDG_RUNTIME_DIR, or choose a path with --control)",
        path.display(),
        nix::unistd::geteuid()
    )]
    NotPrivate { path: PathBuf },
}

/// Returns the directory for the server's small files: `$RUNTIME_DIRECTORY`, else
/// `$XDG_RUNTIME_DIR`, else for root `/run`, else `/run/user/UID`.
pub(crate) fn runtime_directory() -> Option<PathBuf> {
    let directory = |name| std::env::var_os(name).filter(|path: &OsString| !path.is_empty());
    // systemd separates several runtime directories by colons.
    directory("RUNTIME_DIRECTORY")
        .and_then(|paths| std::env::split_paths(&paths).next())
        .or_else(|| directory("XDG_RUNTIME_DIR").map(PathBuf::from))
        .or_else(|| {
            let user = nix::unistd::geteuid();
            if user.is_root() {
                return Some(PathBuf::from("/run"));
            }
            // What XDG_RUNTIME_DIR would name: su, cron and systemd's units for users lack it.
            let path = PathBuf::from(format!("/run/user/{user}"));
            is_private(&path).then_some(path)
        })
}

/// Returns the file name of the control socket of a server with this name, or with none.
pub(crate) fn socket_name(name: Option<&str>) -> String {
    name.map_or_else(|| SOCKET.to_owned(), |name| format!("prefork-{name}.sock"))
}

/// Returns the default path of the control socket: in the [runtime directory](runtime_directory),
/// or without one in a directory in `/tmp` that is this user's alone.
///
/// # Errors
/// When that directory is not this user's alone.
pub(crate) fn default_path(name: Option<&str>) -> Result<PathBuf, RuntimeDirectoryError> {
    let directory = match runtime_directory() {
        Some(directory) => directory,
        None => private_directory(Path::new("/tmp"))?,
    };
    Ok(directory.join(socket_name(name)))
}

/// Returns the directory of this user's alone in `/tmp`, made if need be. Any user can make a file
/// of that name, so it is used only if it is this user's.
fn private_directory(tmp: &Path) -> Result<PathBuf, RuntimeDirectoryError> {
    let path = tmp.join(format!("prefork-{}", nix::unistd::geteuid()));
    match nix::unistd::mkdir(&path, Mode::S_IRWXU) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
        Err(errno) => {
            let error = errno.into();
            return Err(RuntimeDirectoryError::Make { path, error });
        }
    }
    if is_private(&path) {
        Ok(path)
    } else {
        Err(RuntimeDirectoryError::NotPrivate { path })
    }
}

/// Makes the directory of a socket's file if it is gone, as when its user has logged out, or a
/// cleaner has passed.
///
/// # Errors
/// Those of mkdir(2).
pub(crate) fn remake_directory(socket: &Path) -> io::Result<()> {
    let Some(directory) = socket.parent() else {
        return Ok(());
    };
    // Workers of other users must reach a socket of root's; all others have their own.
    let mode = if nix::unistd::geteuid().is_root() {
        0o755
    } else {
        0o700
    };
    match nix::unistd::mkdir(directory, Mode::from_bits_truncate(mode)) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether it is a directory, not a link to one, that only this user can use.
fn is_private(path: &Path) -> bool {
    lstat(path).is_ok_and(|status| {
        let mode = SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits());
        mode == SFlag::S_IFDIR
            && status.st_uid == nix::unistd::geteuid().as_raw()
            && !Mode::from_bits_truncate(status.st_mode).intersects(Mode::S_IRWXG | Mode::S_IRWXO)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_directory_in_tmp_is_used_only_if_it_is_this_users_alone() {
        let tmp = tempfile::tempdir().expect("a folder");
        let path = private_directory(tmp.path()).expect("made");
        assert_eq!(private_directory(tmp.path()).expect("found"), path);
        let permissions = std::fs::Permissions::from_mode(0o770);
        std::fs::set_permissions(&path, permissions).expect("ours");
        let error = private_directory(tmp.path()).expect_err("others can use it");
        assert!(error.to_string().contains("remove it"), "{error}");
        std::fs::remove_dir(&path).expect("ours");
        let other = tempfile::tempdir().expect("a folder");
        symlink(other.path(), &path).expect("linked");
        private_directory(tmp.path()).expect_err("a link leads anywhere");
    }
}
