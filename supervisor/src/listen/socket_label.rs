//! The names under which a service manager stores our listening sockets.
//!
//! A name says what a socket is: a slot's with its index in the kernel's reuseport group, the
//! steering socket of an address, the exclusive socket of an address with its purpose, or a Unix
//! socket and its file. Names travel to the next supervisor, which may be another version: their
//! spelling never changes. A name is believed only if the socket is what it says.

use nix::sys::socket::{SockType, getsockopt, sockopt};
use socket2::SockRef;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

/// The prefix of our names. Other names are the user's.
pub(crate) const PREFIX: &str = "prefork-";
/// systemd's limit.
const NAME_MAX: usize = 255;

/// What a socket is, according to its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SocketLabel {
    /// A member of a TCP address's group: a slot's, or the steering socket. With `any`, port 0 was
    /// asked for, and this one was free.
    Member {
        slot: Option<u16>,
        index: u16,
        address: SocketAddr,
        any: bool,
    },
    /// The exclusive socket of a TCP address that no worker serves.
    Exclusive {
        purpose: String,
        address: SocketAddr,
        any: bool,
    },
    /// A Unix socket and its file, by device and inode.
    File { identity: (u64, u64), path: PathBuf },
}

impl SocketLabel {
    /// Returns the name to store it under; `None` when it would be too long.
    pub(crate) fn name(&self) -> Option<String> {
        Some(self.to_string()).filter(|name| name.len() <= NAME_MAX)
    }

    /// Whether a socket listens, and where this label says that it does.
    pub(crate) fn fits(&self, socket: &OwnedFd) -> bool {
        let stream = getsockopt(socket, sockopt::SockType) == Ok(SockType::Stream);
        let Ok(bound) = SockRef::from(socket).local_addr() else {
            return false;
        };
        let there = match self {
            Self::Member { address, .. } | Self::Exclusive { address, .. } => bound
                .as_socket()
                .is_some_and(|bound| (bound.ip(), bound.port()) == (address.ip(), address.port())),
            Self::File { path, .. } => bound.as_pathname() == Some(path),
        };
        stream && there && getsockopt(socket, sockopt::AcceptConn) == Ok(true)
    }
}

impl fmt::Display for SocketLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        match self {
            Self::Member {
                slot,
                index,
                address,
                any,
            } => {
                match slot {
                    Some(slot) => write!(f, "slot-{slot}-")?,
                    None => f.write_str("key-")?,
                }
                write!(f, "{index}-{}", Bound(*address, *any))
            }
            Self::Exclusive {
                purpose,
                address,
                any,
            } => write!(f, "alone-{purpose}-{}", Bound(*address, *any)),
            Self::File {
                identity: (device, inode),
                path,
            } => {
                write!(f, "unix-{device}-{inode}-")?;
                path.as_os_str().as_bytes().iter().try_for_each(|byte| {
                    let plain = byte.is_ascii_graphic() && !matches!(byte, b':' | b'%');
                    if plain {
                        write!(f, "{}", char::from(*byte))
                    } else {
                        write!(f, "%{byte:02X}")
                    }
                })
            }
        }
    }
}

/// Where a TCP socket is bound, and whether any port would have done.
struct Bound(SocketAddr, bool);

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(address, any) = self;
        // A name must not contain colons.
        let ip = address.ip().to_string().replace(':', "_");
        write!(
            f,
            "{}-{ip}-{}",
            if *any { "any" } else { "tcp" },
            address.port()
        )
    }
}

impl FromStr for SocketLabel {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let label = read(name).ok_or(())?;
        // One spelling only.
        if label.to_string() == name {
            Ok(label)
        } else {
            Err(())
        }
    }
}

fn read(name: &str) -> Option<SocketLabel> {
    let (kind, mut rest) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let mut field = || {
        let (field, after) = rest.split_once('-')?;
        rest = after;
        Some(field)
    };
    if kind == "unix" {
        let identity = (field()?.parse().ok()?, field()?.parse().ok()?);
        return Some(SocketLabel::File {
            identity,
            path: path(rest)?,
        });
    }
    let member = match kind {
        "slot" => Some(Some(field()?.parse().ok()?)),
        "key" => Some(None),
        "alone" => None,
        _ => return None,
    };
    let first = field()?;
    let any = match field()? {
        "any" => true,
        "tcp" => false,
        _ => return None,
    };
    let ip: IpAddr = field()?.replace('_', ":").parse().ok()?;
    let address = SocketAddr::new(ip, rest.parse().ok()?);
    Some(match member {
        Some(slot) => SocketLabel::Member {
            slot,
            index: first.parse().ok()?,
            address,
            any,
        },
        None => SocketLabel::Exclusive {
            purpose: first.to_owned(),
            address,
            any,
        },
    })
}

fn path(text: &str) -> Option<PathBuf> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    Some(std::ffi::OsString::from_vec(bytes).into()).filter(|path: &PathBuf| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_as_they_were_written() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let labels = [
            (
                SocketLabel::Member {
                    slot: Some(3),
                    index: 4,
                    address: address("127.0.0.1:8000"),
                    any: false,
                },
                "prefork-slot-3-4-tcp-127.0.0.1-8000",
            ),
            (
                SocketLabel::Member {
                    slot: None,
                    index: 2,
                    address: address("[::1]:80"),
                    any: true,
                },
                "prefork-key-2-any-__1-80",
            ),
            (
                SocketLabel::Exclusive {
                    purpose: "admin".to_owned(),
                    address: address("[::1]:9100"),
                    any: false,
                },
                "prefork-alone-admin-tcp-__1-9100",
            ),
            (
                SocketLabel::File {
                    identity: (5, 77),
                    path: "/run/my app/50%:a-b.sock".into(),
                },
                "prefork-unix-5-77-/run/my%20app/50%25%3Aa-b.sock",
            ),
        ];
        for (label, name) in labels {
            assert_eq!(label.name().as_deref(), Some(name));
            assert_eq!(name.parse(), Ok(label));
            assert!(
                name.bytes()
                    .all(|byte| byte.is_ascii_graphic() && byte != b':')
            );
        }
    }

    #[test]
    fn other_spellings_are_no_names() {
        let odd = [
            "",
            "web",
            "prefork-",
            "prefork-slot",
            "prefork-slot-3-4-tcp-127.0.0.1",
            "prefork-slot-03-4-tcp-127.0.0.1-8000",
            "prefork-slot-+3-4-tcp-127.0.0.1-8000",
            "prefork-slot-3-70000-tcp-127.0.0.1-8000",
            "prefork-slot-3-4-udp-127.0.0.1-8000",
            "prefork-slot-3-4-tcp-localhost-8000",
            "prefork-slot-3-4-tcp-127.0.0.1-8000-",
            "prefork-key-3-4-tcp-127.0.0.1-8000",
            "prefork-key-3-tcp-0_0_1-80",
            "prefork-alone-tcp-127.0.0.1-80",
            "prefork-alone-admin-tcp-127.0.0.1",
            "prefork-unix-1-2-relative.sock",
            "prefork-unix-1-2-/a%2",
            "prefork-unix-1-2-/a%2fb",
            "prefork-unix-1-2-/a%zz",
            "prefork-unix-1-/a",
        ];
        for name in odd {
            assert_eq!(name.parse::<SocketLabel>(), Err(()), "{name}");
        }
        let long = SocketLabel::File {
            identity: (1, 2),
            path: format!("/{}", "\u{1}".repeat(90)).into(),
        };
        assert_eq!(long.name(), None);
    }
}
