//! What the supervisor reports to systemd.

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

/// The connection to systemd. Without one, every message succeeds and goes nowhere.
#[derive(Debug, Default)]
pub(crate) struct Notifier {
    connection: Option<(OwnedFd, UnixAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Connects to what `NOTIFY_SOCKET` names, with the period that `WATCHDOG_USEC` asks for.
    ///
    /// # Errors
    /// The variable is set, but is no address of a Unix socket. Use [`Notifier::default`] then.
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

    /// Connects to `address`: a path, or `@` and an abstract name. `watchdog` is the period within
    /// which systemd expects a message.
    ///
    /// # Errors
    /// It is no such address, or there can be no socket.
    pub(crate) fn new(address: Option<&OsStr>, watchdog: Option<Duration>) -> io::Result<Self> {
        let Some(text) = address.filter(|text| !text.is_empty()) else {
            return Ok(Self {
                connection: None,
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
            connection: Some((socket, address)),
            watchdog,
        })
    }

    /// Whether there is a receiver for messages.
    pub(crate) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Returns how often to call [`watchdog`](Self::watchdog): half of what systemd allows. `None`:
    /// never.
    pub(crate) fn watchdog_period(&self) -> Option<Duration> {
        self.watchdog.map(|period| period / 2)
    }

    /// Reports that the server serves, at first or again after [`reloading`](Self::reloading).
    ///
    /// # Errors
    /// For this and all messages: those of sendto(2). `WouldBlock` means that systemd does not
    /// read; send it again later.
    pub(crate) fn ready(&self, status: &str) -> io::Result<()> {
        self.send(&format!("READY=1\n{}", status_line(status)))
    }

    /// Reports that a reload has begun. It must end with [`ready`](Self::ready), also when it
    /// fails.
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

    /// Reports that the server stops.
    ///
    /// # Errors
    /// As [`ready`](Self::ready).
    pub(crate) fn stopping(&self, status: &str) -> io::Result<()> {
        self.send(&format!("STOPPING=1\n{}", status_line(status)))
    }

    /// Reports the server's status for people. Control characters are left out: a line break would
    /// begin a new field.
    ///
    /// # Errors
    /// As [`ready`](Self::ready).
    pub(crate) fn status(&self, status: &str) -> io::Result<()> {
        self.send(&status_line(status))
    }

    /// Feeds systemd's watchdog: the supervisor's loop turns.
    ///
    /// # Errors
    /// As [`ready`](Self::ready).
    pub(crate) fn watchdog(&self) -> io::Result<()> {
        self.send("WATCHDOG=1")
    }

    /// Stores a copy of a descriptor with systemd, for the next process of this unit. `name` must
    /// be printable ASCII without colons, of at most 255 bytes. What is stored already is not
    /// stored twice.
    ///
    /// # Errors
    /// As [`ready`](Self::ready). A unit without a store, or with a full one, is no error: systemd
    /// does not report that.
    pub(crate) fn store(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.send_with(&format!("FDSTORE=1\nFDNAME={name}"), descriptor)
    }

    /// Removes all descriptors that systemd stores under a name.
    ///
    /// # Errors
    /// As [`ready`](Self::ready).
    pub(crate) fn remove_stored(&self, name: &str) -> io::Result<()> {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"))
    }

    /// Makes systemd close `descriptor` when it has read all earlier messages.
    ///
    /// # Errors
    /// As [`ready`](Self::ready).
    pub(crate) fn barrier(&self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.send_with("BARRIER=1", descriptor)
    }

    fn send_with(&self, message: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let Some((socket, address)) = &self.connection else {
            return Ok(());
        };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let bytes = [io::IoSlice::new(message.as_bytes())];
        let descriptors = [descriptor.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&descriptors)];
        sendmsg(socket.as_raw_fd(), &bytes, &control, flags, Some(address))?;
        Ok(())
    }

    pub(super) fn send(&self, message: &str) -> io::Result<()> {
        let Some((socket, address)) = &self.connection else {
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

/// Returns a text without its control characters.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).collect()
}
