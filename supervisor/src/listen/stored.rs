//! Sockets that outlive the supervisor, and come back to the next one.
//!
//! A service manager keeps copies of our listening sockets under names that we choose, and hands them over like
//! activated ones, in any order. The name tells what a socket is: a slot's and which place it has in the kernel's
//! group, the key of an address, the only one of an address and for what, or a Unix socket and which file is its own. A
//! name is believed only if the socket is what it says.

use super::slots::Parts;
use nix::errno::Errno;
use nix::sys::socket::{SockType, getsockopt, sockopt};
use prefork_protocol::environment::Inherited;
use socket2::SockRef;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What all names of ours begin with. Other names are the user's.
const PREFIX: &str = "prefork-";
/// systemd's limit.
const NAME_MAX: usize = 255;

/// What a socket is, as its name tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Label {
    /// A member of a TCP address's group: a slot's, or the key. `any` port was asked for, and this one was free.
    Member {
        slot: Option<u16>,
        place: u16,
        address: SocketAddr,
        any: bool,
    },
    /// The only socket of a TCP address that no worker serves, and its purpose.
    Alone {
        purpose: String,
        address: SocketAddr,
        any: bool,
    },
    /// A Unix socket and its file, by device and inode.
    File { identity: (u64, u64), path: PathBuf },
}

impl Label {
    /// The name to keep it under; none when it would be too long.
    pub(crate) fn name(&self) -> Option<String> {
        Some(self.to_string()).filter(|name| name.len() <= NAME_MAX)
    }

    /// Whether a socket listens, and where this label says that it does.
    fn fits(&self, socket: &OwnedFd) -> bool {
        let stream = getsockopt(socket, sockopt::SockType) == Ok(SockType::Stream);
        let Ok(bound) = SockRef::from(socket).local_addr() else {
            return false;
        };
        let there = match self {
            Self::Member { address, .. } | Self::Alone { address, .. } => bound
                .as_socket()
                .is_some_and(|bound| (bound.ip(), bound.port()) == (address.ip(), address.port())),
            Self::File { path, .. } => bound.as_pathname() == Some(path),
        };
        stream && there && getsockopt(socket, sockopt::AcceptConn) == Ok(true)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        match self {
            Self::Member {
                slot,
                place,
                address,
                any,
            } => {
                match slot {
                    Some(slot) => write!(f, "slot-{slot}-")?,
                    None => f.write_str("key-")?,
                }
                write!(f, "{place}-{}", Place(*address, *any))
            }
            Self::Alone {
                purpose,
                address,
                any,
            } => write!(f, "alone-{purpose}-{}", Place(*address, *any)),
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
struct Place(SocketAddr, bool);

impl fmt::Display for Place {
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

impl FromStr for Label {
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

fn read(name: &str) -> Option<Label> {
    let (kind, mut rest) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let mut field = || {
        let (field, after) = rest.split_once('-')?;
        rest = after;
        Some(field)
    };
    if kind == "unix" {
        let identity = (field()?.parse().ok()?, field()?.parse().ok()?);
        return Some(Label::File {
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
        Some(slot) => Label::Member {
            slot,
            place: first.parse().ok()?,
            address,
            any,
        },
        None => Label::Alone {
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

/// Sockets of ours that came back, and that no address has claimed yet.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    groups: Vec<Members>,
    others: Vec<(Label, OwnedFd)>,
    /// The names that came, each with its socket's inode.
    names: Vec<(String, u64)>,
    remarks: Vec<String>,
}

#[derive(Debug)]
struct Members {
    address: SocketAddr,
    any: bool,
    parts: Parts,
}

impl Kept {
    /// Tells our own sockets from those that were handed over to be named in `fd://` addresses.
    pub(crate) fn sort(inherited: Vec<Inherited>) -> (Vec<Inherited>, Self) {
        let (ours, others): (Vec<_>, Vec<_>) = inherited
            .into_iter()
            .partition(|socket| socket.name.starts_with(PREFIX));
        let mut kept = Self::default();
        for Inherited { name, socket } in ours {
            kept.names.push((name.clone(), inode(&socket)));
            match name.parse::<Label>() {
                Ok(label)
                    if label.fits(&socket) && prefork_os::set_nonblocking(&socket).is_ok() =>
                {
                    kept.put(label, socket);
                }
                // A probe of the store itself; see there.
                _ if name == super::PROBE => {}
                Ok(_) | Err(()) => {
                    kept.remarks.push(format!(
                        "closing the kept socket {name}: it is not what its name says"
                    ));
                }
            }
        }
        (others, kept)
    }

    fn put(&mut self, label: Label, socket: OwnedFd) {
        // With the scope of a link-local address, which the name leaves out.
        let whole = |address| super::tcp::local_address(&socket).unwrap_or(address);
        let (slot, place, address, any) = match label {
            Label::Member {
                slot,
                place,
                address,
                any,
            } => (slot, place, whole(address), any),
            Label::Alone {
                purpose,
                address,
                any,
            } => {
                let label = Label::Alone {
                    purpose,
                    address: whole(address),
                    any,
                };
                return self.others.push((label, socket));
            }
            Label::File { .. } => return self.others.push((label, socket)),
        };
        let group = match self
            .groups
            .iter_mut()
            .find(|group| group.address == address)
        {
            Some(group) => group,
            None => {
                self.groups.push(Members {
                    address,
                    any,
                    parts: Parts::default(),
                });
                self.groups.last_mut().expect("just added")
            }
        };
        group.parts.put(slot, place, socket);
    }

    /// What came back of the address that is asked for now, and where exactly it is bound.
    pub(crate) fn take_tcp(&mut self, asked: SocketAddr) -> Option<(SocketAddr, Parts)> {
        let index = self
            .groups
            .iter()
            .position(|group| answers(group.address, group.any, asked))?;
        let group = self.groups.swap_remove(index);
        Some((group.address, group.parts))
    }

    /// The Unix socket of this path that came back, and its file's device and inode.
    pub(crate) fn take_file(&mut self, wanted: &Path) -> Option<((u64, u64), OwnedFd)> {
        let index = self
            .others
            .iter()
            .position(|(label, _)| matches!(label, Label::File { path, .. } if path == wanted))?;
        match self.others.swap_remove(index) {
            (Label::File { identity, .. }, socket) => Some((identity, socket)),
            _ => None,
        }
    }

    /// The only socket of an address that came back for this purpose.
    pub(crate) fn take_alone(&mut self, wanted: &str, asked: SocketAddr) -> Option<OwnedFd> {
        let fits = |label: &Label| match label {
            Label::Alone {
                purpose,
                address,
                any,
            } => purpose == wanted && answers(*address, *any, asked),
            _ => false,
        };
        let index = self.others.iter().position(|(label, _)| fits(label))?;
        Some(self.others.swap_remove(index).1)
    }

    /// The names under which sockets came, each with its socket's inode. For whoever keeps them.
    pub(crate) fn names(&self) -> &[(String, u64)] {
        &self.names
    }

    pub(crate) fn remark(&mut self, remark: String) {
        if !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
    }

    /// Closes what nobody has claimed, and gives the lines to log about this and all that was odd.
    pub(crate) fn settle(&mut self) -> Vec<String> {
        let mut remarks = std::mem::take(&mut self.remarks);
        let addresses = self.groups.drain(..).map(|group| group.address.to_string());
        let others = self.others.drain(..).filter_map(|(label, _)| match label {
            Label::File { path, .. } => Some(format!("unix:{}", path.display())),
            Label::Alone { address, .. } => Some(address.to_string()),
            Label::Member { .. } => None,
        });
        let gone =
            |address| format!("closing {address}: it was kept, and is not configured any more");
        remarks.extend(addresses.chain(others).map(gone));
        remarks
    }
}

/// Whether what is bound there is what is asked for now; `any` port was asked for when it was bound.
fn answers(bound: SocketAddr, any: bool, asked: SocketAddr) -> bool {
    bound == asked || (asked.port() == 0 && any && bound.ip() == asked.ip())
}

/// A socket's inode, which no other socket has while it is open.
pub(crate) fn inode(socket: &OwnedFd) -> u64 {
    nix::sys::stat::fstat(socket).map_or_else(|_: Errno| 0, |status| status.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_as_they_were_written() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let labels = [
            (
                Label::Member {
                    slot: Some(3),
                    place: 4,
                    address: address("127.0.0.1:8000"),
                    any: false,
                },
                "prefork-slot-3-4-tcp-127.0.0.1-8000",
            ),
            (
                Label::Member {
                    slot: None,
                    place: 2,
                    address: address("[::1]:80"),
                    any: true,
                },
                "prefork-key-2-any-__1-80",
            ),
            (
                Label::Alone {
                    purpose: "admin".to_owned(),
                    address: address("[::1]:9100"),
                    any: false,
                },
                "prefork-alone-admin-tcp-__1-9100",
            ),
            (
                Label::File {
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
    fn the_only_socket_of_an_address_comes_back_for_its_purpose_alone() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("bound");
        let name = format!("prefork-alone-admin-tcp-127.0.0.1-{}", address.port());
        let (others, mut kept) = Kept::sort(vec![Inherited {
            name,
            socket: socket.into(),
        }]);
        assert!(others.is_empty());
        assert!(
            kept.take_alone("agent", address).is_none(),
            "it was another's"
        );
        assert!(kept.take_tcp(address).is_none(), "workers never had it");
        let any = SocketAddr::new(address.ip(), 0);
        assert!(
            kept.take_alone("admin", any).is_none(),
            "its port was asked for"
        );
        assert!(kept.take_alone("admin", address).is_some());
        assert!(kept.settle().is_empty(), "nothing is left");
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
            assert_eq!(name.parse::<Label>(), Err(()), "{name}");
        }
        let long = Label::File {
            identity: (1, 2),
            path: format!("/{}", "\u{1}".repeat(90)).into(),
        };
        assert_eq!(long.name(), None);
    }
}
