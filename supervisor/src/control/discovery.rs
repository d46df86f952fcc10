//! Where the control socket of a server is, when `--control` does not say: from a name or a
//! configuration file to the runtime directory of a unit.
//!
//! A service finds its own by `RUNTIME_DIRECTORY`, but an operator's shell has no such variable.
//! The conventions of the shipped units are known here: `prefork.service` reads
//! /etc/prefork/config.toml and has /run/prefork, and `prefork@shop.service` reads
//! /etc/prefork/shop.toml and has /run/prefork-shop.

use crate::config::runtime_directory::{SOCKET, default_path, socket_name};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Returns the control socket of the server with this configuration file, or of this name. `None`
/// when neither leads to one.
pub(crate) fn of_running_server(config: Option<&Path>, name: Option<&str>) -> Option<PathBuf> {
    if let Some(name) = name {
        let places = of_name(name);
        return places
            .iter()
            .find(|path| path.exists())
            .or(places.first())
            .cloned();
    }
    let in_unit = std::env::var_os("RUNTIME_DIRECTORY").is_some_and(|path| !path.is_empty());
    let default = default_path(None);
    match of_unit(config) {
        Some((path, certain)) if !in_unit => match default {
            Some(default) if !certain && (default.exists() || !path.exists()) => Some(default),
            _ => Some(path),
        },
        _ => default,
    }
}

/// Returns the places where a server of this name may have its socket, most likely first: this
/// user's default, the directory of a unit, and root's default.
fn of_name(name: &str) -> Vec<PathBuf> {
    let run = Path::new("/run");
    let socket = socket_name(Some(name));
    let of_units = [
        run.join(format!("prefork-{name}")).join(&socket),
        run.join(format!("prefork-{name}")).join(SOCKET),
        run.join("prefork").join(&socket),
        run.join(&socket),
    ];
    default_path(Some(name))
        .into_iter()
        .chain(of_units)
        .collect()
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
    fn without_a_file_it_may_be_the_plain_unit() {
        assert_eq!(
            of_unit(None),
            Some((PathBuf::from("/run/prefork/prefork.sock"), false))
        );
    }
}
