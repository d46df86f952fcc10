//! A directory for a peer: the files that it serves, its configuration, and where it listens.

use crate::Pattern;
use crate::subject::{LARGE, SMALL};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use testkit::Address;

/// How many keys there are.
pub(super) const KEYS: u64 = 16;

#[derive(Debug)]
pub(super) struct Site {
    directory: TempDir,
    pub(super) addresses: Vec<Address>,
}

impl Site {
    /// Writes the files and chooses ports. Another program could take a port before the peer does;
    /// it then fails to start.
    pub(super) fn new(bind: &[String]) -> Result<Self, String> {
        let directory =
            tempfile::tempdir().map_err(|error| format!("cannot make a directory: {error}"))?;
        let addresses = bind
            .iter()
            .map(|place| choose(place, directory.path()))
            .collect::<Result<_, _>>()?;
        let site = Self {
            directory,
            addresses,
        };
        for key in 0..KEYS {
            for length in SMALL.into_iter().chain([LARGE]) {
                site.write(
                    &format!("site/bytes/{key}/{length}"),
                    Pattern::new(key, length).bytes(),
                )?;
            }
        }
        Ok(site)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A path as text; temporary directories have no others.
    pub(super) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file, whole or not at all.
    pub(super) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<(), String> {
        let (path, new) = (self.path(name), self.path(".new"));
        let parent = path.parent().unwrap_or(self.directory.path());
        let written = std::fs::create_dir_all(parent).and_then(|()| std::fs::write(&new, content));
        written
            .and_then(|()| std::fs::rename(&new, &path))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))
    }

    /// Puts a fresh copy of a program here, so that an upgrade replaces a file.
    pub(super) fn install(&self, program: &Path) -> Result<PathBuf, String> {
        let name = program
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let (new, here) = (self.path(".program"), self.path(&name));
        std::fs::copy(program, &new)
            .and_then(|_| std::fs::rename(&new, &here))
            .map_err(|error| format!("cannot copy {}: {error}", program.display()))?;
        Ok(here)
    }
}

fn choose(place: &str, directory: &Path) -> Result<Address, String> {
    if place == "unix" {
        return Ok(Address::Unix(directory.join("http.sock")));
    }
    let failed = |error: std::io::Error| format!("cannot listen on {place}: {error}");
    let wanted = place.to_socket_addrs().map_err(failed)?.next();
    let wanted: SocketAddr = wanted.ok_or_else(|| format!("{place} is no address"))?;
    let listener = TcpListener::bind(wanted).map_err(failed)?;
    listener.local_addr().map(Address::Tcp).map_err(failed)
}
