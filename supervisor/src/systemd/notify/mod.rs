//! systemd's notification protocol, both sides: what the supervisor tells systemd, and what workers tell the
//! supervisor in the same words.
//!
//! Each message is one datagram of `KEY=VALUE` lines. Nothing here blocks: a receiver that does not read costs
//! a message, never time.

mod server;
#[cfg(test)]
mod tests;

pub(crate) use server::{NotifyServer, parent_and_group};
pub use server::{WorkerNotice, parse};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, sendto, socket,
};
use prefork_protocol::environment::{NOTIFY_SOCKET, WATCHDOG_PID, WATCHDOG_USEC};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// The line to systemd. Without one, every message is a success that nobody hears.
#[derive(Debug, Default)]
pub(crate) struct Notifier {
    line: Option<(OwnedFd, UnixAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// The line that `NOTIFY_SOCKET` names, and the period that `WATCHDOG_USEC` asks for.
    ///
    /// # Errors
    /// When the variable is set, but is no address of a Unix socket. Go on with [`Notifier::default`] then.
    pub(crate) fn from_env() -> io::Result<Self> {
        let address = std::env::var_os(NOTIFY_SOCKET);
        let number = |name: &str| {
            std::env::var(name)
                .ok()
                .and_then(|text| text.trim().parse::<u64>().ok())
        };
        let for_us = std::env::var_os(WATCHDOG_PID).is_none()
            || number(WATCHDOG_PID) == Some(u64::from(std::process::id()));
        let watchdog = number(WATCHDOG_USEC).filter(|period| for_us && *period > 0);
        Self::new(address.as_deref(), watchdog.map(Duration::from_micros))
    }

    /// A line to `address`: a path, or `@` and an abstract name. `watchdog` is how often systemd wants to hear.
    ///
    /// # Errors
    /// When it is no such address, or there can be no socket.
    pub(crate) fn new(address: Option<&OsStr>, watchdog: Option<Duration>) -> io::Result<Self> {
        let Some(text) = address.filter(|text| !text.is_empty()) else {
            return Ok(Self {
                line: None,
                watchdog,
            });
        };
        let address = match text.as_bytes() {
            [b'@', name @ ..] if !name.is_empty() => UnixAddr::new_abstract(name),
            [b'/', ..] => UnixAddr::new(text.as_bytes()),
            _ => Err(Errno::EAFNOSUPPORT),
        };
        let address = address.map_err(|errno| {
            let text = text.to_string_lossy();
            let kind = io::Error::from(errno).kind();
            io::Error::new(
                kind,
                format!("{NOTIFY_SOCKET}={text} is no path and no @name of a Unix socket"),
            )
        })?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        Ok(Self {
            line: Some((socket, address)),
            watchdog,
        })
    }

    /// Whether anybody listens for messages.
    pub(crate) fn is_connected(&self) -> bool {
        self.line.is_some()
    }

    /// How often to call [`watchdog`](Self::watchdog): half of what systemd allows. `None`: never.
    pub(crate) fn watchdog_period(&self) -> Option<Duration> {
        self.watchdog.map(|period| period / 2)
    }

    /// The server serves, at first or again after [`reloading`](Self::reloading).
    ///
    /// # Errors
    /// For this and all messages: those of sendto(2). `WouldBlock` means that systemd does not read; say it again.
    pub(crate) fn ready(&self, status: &str) -> io::Result<()> {
        self.send(&format!("READY=1\n{}", status_line(status)))
    }

    /// A reload began. It must end with [`ready`](Self::ready), also when it fails.
    ///
    /// # Errors
    /// As [`ready`](Self::ready).
    pub(crate) fn reloading(&self, status: &str) -> io::Result<()> {
        let now = prefork_os::monotonic().as_micros();
        self.send(&format!(
            "RELOADING=1\nMONOTONIC_USEC={now}\n{}",
            status_line(status)
        ))
    }

    /// The server stops.
    ///
    /// # Errors
    /// As [`ready`](Self::ready).
    pub(crate) fn stopping(&self, status: &str) -> io::Result<()> {
        self.send(&format!("STOPPING=1\n{}", status_line(status)))
    }

    /// How the server is, in plain words. Control characters are left out: a line break would begin a new field.
    ///
    /// # Errors
    /// As [`ready`](Self::ready).
    pub(crate) fn status(&self, status: &str) -> io::Result<()> {
        self.send(&status_line(status))
    }

    /// The supervisor's loop goes round.
    ///
    /// # Errors
    /// As [`ready`](Self::ready).
    pub(crate) fn watchdog(&self) -> io::Result<()> {
        self.send("WATCHDOG=1")
    }

    /// Has systemd keep a copy of a descriptor, for whoever runs in this unit next. `name` must be printable ASCII
    /// without colons, of at most 255 bytes. What is kept already is not kept twice.
    ///
    /// # Errors
    /// As [`ready`](Self::ready). A unit without a store, or with a full one, is no error; systemd does not tell.
    pub(crate) fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.send_with(&format!("FDSTORE=1\nFDNAME={name}"), descriptor)
    }

    /// Has systemd close all descriptors that it keeps under a name.
    ///
    /// # Errors
    /// As [`ready`](Self::ready).
    pub(crate) fn forget(&self, name: &str) -> io::Result<()> {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"))
    }

    /// Has systemd close `descriptor` when it has read all earlier messages.
    ///
    /// # Errors
    /// As [`ready`](Self::ready).
    pub(crate) fn barrier(&self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.send_with("BARRIER=1", descriptor)
    }

    fn send_with(&self, message: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let Some((socket, address)) = &self.line else {
            return Ok(());
        };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let bytes = [io::IoSlice::new(message.as_bytes())];
        let descriptors = [descriptor.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&descriptors)];
        sendmsg(socket.as_raw_fd(), &bytes, &control, flags, Some(address))?;
        Ok(())
    }

    fn send(&self, message: &str) -> io::Result<()> {
        let Some((socket, address)) = &self.line else {
            return Ok(());
        };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendto(socket.as_raw_fd(), message.as_bytes(), address, flags)?;
        Ok(())
    }
}

fn status_line(status: &str) -> String {
    format!("STATUS={}", printable(status))
}

fn printable(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).collect()
}
