//! systemd's side of the notification protocol.

use crate::wait::wait_for;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A socket that a service can be told of by `NOTIFY_SOCKET`.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    path: PathBuf,
    seen: Vec<String>,
}

impl NotifySocket {
    /// Makes the socket in a directory.
    ///
    /// # Errors
    /// Those of bind(2).
    pub fn new(directory: &Path) -> io::Result<Self> {
        let path = directory.join("notify.sock");
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            path,
            seen: Vec::new(),
        })
    }

    /// The value for `NOTIFY_SOCKET`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every message so far, in order, each possibly of several lines.
    pub fn messages(&mut self) -> &[String] {
        let mut bytes = [0; 8192];
        while let Ok(length) = self.socket.recv(&mut bytes) {
            self.seen
                .push(String::from_utf8_lossy(&bytes[..length]).into_owned());
        }
        &self.seen
    }

    /// How many messages so far.
    pub fn count(&mut self) -> usize {
        self.messages().len()
    }

    /// Waits for a message, not among the first `after`, with a line that begins with `text`.
    /// Returns its place and itself.
    ///
    /// # Panics
    /// When none comes within `limit`, with all messages.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str, after: usize, limit: Duration) -> (usize, String) {
        let end = std::time::Instant::now() + limit;
        wait_for(&format!("notification `{text}`"), limit * 2, || {
            let messages = self.messages().iter().enumerate().skip(after);
            let found = messages
                .clone()
                .find(|(_, message)| message.lines().any(|line| line.starts_with(text)));
            if let Some((place, message)) = found {
                return Some((place, message.clone()));
            }
            assert!(
                std::time::Instant::now() < end,
                "no notification `{text}` after {after} of {:#?}",
                self.seen
            );
            None
        })
    }
}
