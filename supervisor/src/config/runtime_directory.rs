//! The directory for a server's small files, and the names of sockets in it.

use std::ffi::OsString;
use std::path::PathBuf;

/// The name of the control socket in a runtime directory.
pub(crate) const SOCKET: &str = "prefork.sock";

/// Returns the directory for the server's small files: `$RUNTIME_DIRECTORY`, else
/// `$XDG_RUNTIME_DIR`, else for root `/run`.
pub(crate) fn runtime_directory() -> Option<PathBuf> {
    let directory = |name| std::env::var_os(name).filter(|path: &OsString| !path.is_empty());
    // systemd separates several runtime directories by colons.
    directory("RUNTIME_DIRECTORY")
        .and_then(|paths| std::env::split_paths(&paths).next())
        .or_else(|| directory("XDG_RUNTIME_DIR").map(PathBuf::from))
        .or_else(|| {
            nix::unistd::geteuid()
                .is_root()
                .then(|| PathBuf::from("/run"))
        })
}

/// Returns the file name of the control socket of a server with this name, or with none.
pub(crate) fn socket_name(name: Option<&str>) -> String {
    name.map_or_else(|| SOCKET.to_owned(), |name| format!("prefork-{name}.sock"))
}

/// Returns the default path of the control socket, in the [runtime directory](runtime_directory).
pub(crate) fn default_path(name: Option<&str>) -> Option<PathBuf> {
    runtime_directory().map(|directory| directory.join(socket_name(name)))
}
