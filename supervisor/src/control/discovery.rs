//! Where the control socket of a server is, when `--control` does not say: from a name or a
//! configuration file to the runtime directory of a unit.
//!
//! A service finds its own by `RUNTIME_DIRECTORY`, but an operator's shell has no such variable.
//! The conventions of the shipped units are known here: `prefork.service` reads
//! /etc/prefork/config.toml and has /run/prefork, and `prefork@shop.service` reads
//! /etc/prefork/shop.toml and has /run/prefork-shop.

use crate::config::runtime_directory::{RuntimeDirectoryError, SOCKET, default_path, socket_name};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// It is unclear which server is meant.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiscoveryError {
    #[error(transparent)]
    Directory(#[from] RuntimeDirectoryError),
    #[error(
        "several servers may be meant: {} (name the socket of one with --control)",
        list(.0)
    )]
    Ambiguous(Vec<PathBuf>),
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(", ")
}

/// Returns the control socket of the server with this configuration file, or of this name.
///
/// # Errors
/// When neither leads to one, or several servers may be meant.
pub(crate) fn of_running_server(
    config: Option<&Path>,
    name: Option<&str>,
) -> Result<PathBuf, DiscoveryError> {
    let in_unit = std::env::var_os("RUNTIME_DIRECTORY").is_some_and(|path| !path.is_empty());
    let default = default_path(name);
    if let Some(name) = name {
        let mut places = of_name(name);
        match default {
            Ok(default) if in_unit && default.exists() => return Ok(default),
            Ok(default) if places.contains(&default) => {}
            Ok(default) => places.insert(0, default),
            Err(_) if places.iter().any(|path| path.exists()) => {}
            Err(error) => return Err(error.into()),
        }
        return the_one(places, answers);
    }
    match of_unit(config) {
        Some((path, true)) if !in_unit => Ok(path),
        Some((path, false)) if !in_unit => match default {
            Ok(default) => the_one(vec![default, path], answers),
            Err(_) if path.exists() => Ok(path),
            Err(error) => Err(error.into()),
        },
        _ => Ok(default?),
    }
}

/// Returns the place where a server `answers`; where none does, the first one.
fn the_one(
    places: Vec<PathBuf>,
    answers: impl Fn(&Path) -> bool,
) -> Result<PathBuf, DiscoveryError> {
    let mut found: Vec<PathBuf> = places
        .iter()
        .filter(|path| answers(path))
        .cloned()
        .collect();
    match found.len() {
        0 => Ok(places
            .iter()
            .find(|path| path.exists())
            .or(places.first())
            .cloned()
            .unwrap_or_default()),
        1 => Ok(found.remove(0)),
        _ => Err(DiscoveryError::Ambiguous(found)),
    }
}

/// Whether a server that this user may talk to listens there.
fn answers(path: &Path) -> bool {
    match UnixStream::connect(path) {
        Ok(_) => true,
        Err(error) => !matches!(
            error.kind(),
            ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied
        ),
    }
}

/// Returns the places where a server of this name may have its socket, apart from this user's
/// default: the directory of a unit, and root's default.
fn of_name(name: &str) -> Vec<PathBuf> {
    let run = Path::new("/run");
    let socket = socket_name(Some(name));
    vec![
        run.join(format!("prefork-{name}")).join(&socket),
        run.join(format!("prefork-{name}")).join(SOCKET),
        run.join("prefork").join(&socket),
        run.join(&socket),
    ]
}

/// Returns the socket of the unit to which a configuration file belongs, and whether that is
/// certain. Without a file the plain unit may be meant.
fn of_unit(config: Option<&Path>) -> Option<(PathBuf, bool)> {
    let (directory, certain) = match config {
        None => ("prefork".to_owned(), false),
        Some(path) if path.parent() != Some(Path::new("/etc/prefork")) => return None,
        Some(path) if path.extension() != Some(OsStr::new("toml")) => return None,
        Some(path) => match path.file_stem()?.to_str()? {
            "config" => ("prefork".to_owned(), true),
            instance => (format!("prefork-{instance}"), true),
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
        assert_eq!(
            socket("/etc/prefork/config.toml"),
            path("/run/prefork/prefork.sock")
        );
        assert_eq!(
            socket("/etc/prefork/shop.toml"),
            path("/run/prefork-shop/prefork.sock")
        );
        for other in [
            "shop.toml",
            "/srv/shop.toml",
            "/etc/prefork/shop",
            "/etc/prefork/sub/shop.toml",
        ] {
            assert_eq!(socket(other), None, "{other}");
        }
    }

    #[test]
    fn a_name_is_searched_in_the_directories_of_units_too() {
        let places = of_name("shop");
        for path in [
            "/run/prefork-shop/prefork.sock",
            "/run/prefork/prefork-shop.sock",
        ] {
            assert!(
                places.contains(&PathBuf::from(path)),
                "{path} is not in {places:?}"
            );
        }
    }

    #[test]
    fn no_server_is_chosen_among_several() {
        let places = ["/a", "/b", "/c"].map(PathBuf::from);
        let one = |answers: fn(&Path) -> bool| the_one(places.to_vec(), answers);
        assert_eq!(one(|_| false).expect("the first"), places[0]);
        assert_eq!(one(|path| path == Path::new("/b")).expect("one"), places[1]);
        let error = one(|path| path != Path::new("/b")).expect_err("two");
        assert!(error.to_string().contains("/a, /c (name"), "{error}");
    }

    #[test]
    fn without_a_file_it_may_be_the_plain_unit() {
        assert_eq!(
            of_unit(None),
            Some((PathBuf::from("/run/prefork/prefork.sock"), false))
        );
    }
}
