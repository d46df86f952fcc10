//! Where a running server's control socket is, when nobody says: the way from an operator's words to a unit's directory.
//!
//! A service finds its own by `RUNTIME_DIRECTORY`, but an operator's shell has no such variable. What the shipped units
//! have in common is known here: `supervisor.service` reads /etc/supervisor/config.toml and has /run/supervisor, and
//! `supervisor@shop.service` reads /etc/supervisor/shop.toml and has /run/supervisor-shop.

use crate::shell::control::{SOCKET, default_path};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Where to ask, for the server with this configuration file. `None` when nobody can tell.
pub(crate) fn of_running_server(config: Option<&Path>) -> Option<PathBuf> {
    let inside_a_unit = std::env::var_os("RUNTIME_DIRECTORY").is_some_and(|path| !path.is_empty());
    let of_ours = default_path();
    match of_unit(config) {
        Some((path, certain)) if !inside_a_unit => match of_ours {
            Some(ours) if !certain && (ours.exists() || !path.exists()) => Some(ours),
            _ => Some(path),
        },
        _ => of_ours,
    }
}

/// The socket of the unit to which a configuration file belongs, and whether that is certain. Without a file it may be
/// the plain unit that is meant.
fn of_unit(config: Option<&Path>) -> Option<(PathBuf, bool)> {
    let (directory, certain) = match config {
        None => ("supervisor".to_owned(), false),
        Some(path) if path.parent() != Some(Path::new("/etc/supervisor")) => return None,
        Some(path) if path.extension() != Some(OsStr::new("toml")) => return None,
        Some(path) => match path.file_stem()?.to_str()? {
            "config" => ("supervisor".to_owned(), true),
            site => (format!("supervisor-{site}"), true),
        },
    };
    Some((Path::new("/run").join(directory).join(SOCKET), certain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_etc_belongs_to_a_unit() {
        let socket = |config: &str| of_unit(Some(Path::new(config))).map(|(path, _)| path);
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(socket("/etc/supervisor/config.toml"), path("/run/supervisor/supervisor.sock"));
        assert_eq!(socket("/etc/supervisor/shop.toml"), path("/run/supervisor-shop/supervisor.sock"));
        for other in ["shop.toml", "/srv/shop.toml", "/etc/supervisor/shop", "/etc/supervisor/sub/shop.toml"]
        {
            assert_eq!(socket(other), None, "{other}");
        }
    }

    #[test]
    fn without_a_file_it_may_be_the_plain_unit() {
        assert_eq!(of_unit(None), Some((PathBuf::from("/run/supervisor/supervisor.sock"), false)));
    }
}
