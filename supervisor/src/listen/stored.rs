//! Sockets that outlive the supervisor, and come back to the next one.
//!
//! A service manager stores copies of our listening sockets under names that we choose, and passes
//! them on like activated ones, in any order. [`SocketLabel`] reads those names.

use super::reuseport_group::StoredMembers;
use super::socket_label::{PREFIX, SocketLabel};
use super::tcp;
use super::unix;
use crate::systemd::fd_store::{PROBE, inode};
use prefork_protocol::environment::Inherited;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Stored sockets that came back, and that no address has claimed yet.
#[derive(Debug, Default)]
pub(crate) struct StoredSockets {
    groups: Vec<StoredGroup>,
    others: Vec<(SocketLabel, OwnedFd)>,
    /// The names that came, each with its socket's inode.
    names: Vec<(String, u64)>,
    remarks: Vec<String>,
}

#[derive(Debug)]
struct StoredGroup {
    address: SocketAddr,
    any: bool,
    members: StoredMembers,
}

impl StoredSockets {
    /// Separates stored sockets of ours from those that `fd://` addresses can name.
    pub(crate) fn sort(inherited: Vec<Inherited>) -> (Vec<Inherited>, Self) {
        let (ours, others): (Vec<_>, Vec<_>) = inherited
            .into_iter()
            .partition(|socket| socket.name.starts_with(PREFIX));
        let mut stored = Self::default();
        for Inherited { name, socket } in ours {
            stored.names.push((name.clone(), inode(&socket)));
            match name.parse::<SocketLabel>() {
                Ok(label)
                    if label.fits(&socket) && prefork_os::set_nonblocking(&socket).is_ok() =>
                {
                    stored.put(label, socket);
                }
                // It was stored to find out whether there is a store.
                _ if name == PROBE => {}
                Ok(_) | Err(()) => {
                    stored.remarks.push(format!(
                        "closing the stored socket {name}: it is not what its name says"
                    ));
                }
            }
        }
        (others, stored)
    }

    fn put(&mut self, label: SocketLabel, socket: OwnedFd) {
        // With the scope of a link-local address, which the name omits.
        let whole = |address| tcp::local_address(&socket).unwrap_or(address);
        let (slot, index, address, any) = match label {
            SocketLabel::Member {
                slot,
                index,
                address,
                any,
            } => (slot, index, whole(address), any),
            SocketLabel::Exclusive {
                purpose,
                address,
                any,
            } => {
                let label = SocketLabel::Exclusive {
                    purpose,
                    address: whole(address),
                    any,
                };
                return self.others.push((label, socket));
            }
            SocketLabel::File { .. } => return self.others.push((label, socket)),
        };
        let known = self
            .groups
            .iter()
            .position(|group| group.address == address);
        let position = known.unwrap_or_else(|| {
            self.groups.push(StoredGroup {
                address,
                any,
                members: StoredMembers::default(),
            });
            self.groups.len() - 1
        });
        self.groups[position].members.put(slot, index, socket);
    }

    /// Takes the stored members of a TCP address, and returns where exactly they are bound.
    pub(crate) fn take_tcp(&mut self, asked: SocketAddr) -> Option<(SocketAddr, StoredMembers)> {
        let index = self
            .groups
            .iter()
            .position(|group| answers(group.address, group.any, asked))?;
        let group = self.groups.swap_remove(index);
        Some((group.address, group.members))
    }

    /// Takes the stored Unix socket of this path, or whose file it leads to, with its file's device
    /// and inode.
    pub(crate) fn take_file(&mut self, wanted: &Path) -> Option<((u64, u64), OwnedFd)> {
        let there = unix::identity(wanted);
        let index = self.others.iter().position(|(label, _)| match label {
            SocketLabel::File { path, identity } => path == wanted || there == Some(*identity),
            _ => false,
        })?;
        match self.others.swap_remove(index) {
            (SocketLabel::File { identity, .. }, socket) => Some((identity, socket)),
            _ => None,
        }
    }

    /// Takes the stored exclusive socket of an address for this purpose.
    pub(crate) fn take_exclusive(&mut self, wanted: &str, asked: SocketAddr) -> Option<OwnedFd> {
        let fits = |label: &SocketLabel| match label {
            SocketLabel::Exclusive {
                purpose,
                address,
                any,
            } => purpose == wanted && answers(*address, *any, asked),
            _ => false,
        };
        let index = self.others.iter().position(|(label, _)| fits(label))?;
        Some(self.others.swap_remove(index).1)
    }

    /// Returns the names under which sockets came, each with its socket's inode.
    pub(crate) fn names(&self) -> &[(String, u64)] {
        &self.names
    }

    /// Adds a line to log, once.
    pub(crate) fn remark(&mut self, remark: String) {
        if !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
    }

    /// Closes what no address has claimed. Returns the lines to log, about this and all remarks.
    pub(crate) fn close_unclaimed(&mut self) -> Vec<String> {
        let mut remarks = std::mem::take(&mut self.remarks);
        let addresses = self.groups.drain(..).map(|group| group.address.to_string());
        let others = self.others.drain(..).filter_map(|(label, _)| match label {
            SocketLabel::File { path, .. } => Some(format!("unix:{}", path.display())),
            SocketLabel::Exclusive { address, .. } => Some(address.to_string()),
            SocketLabel::Member { .. } => None,
        });
        let gone = |address| format!("closing stored socket {address}: no longer configured");
        remarks.extend(addresses.chain(others).map(gone));
        remarks
    }
}

/// Whether a bound address is the one that is asked for now; `any` port was asked for when it was
/// bound.
fn answers(bound: SocketAddr, any: bool, asked: SocketAddr) -> bool {
    bound == asked || (asked.port() == 0 && any && bound.ip() == asked.ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    #[test]
    fn an_exclusive_socket_comes_back_for_its_purpose_only() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("bound");
        let name = format!("prefork-alone-admin-tcp-127.0.0.1-{}", address.port());
        let (others, mut stored) = StoredSockets::sort(vec![Inherited {
            name,
            socket: socket.into(),
        }]);
        assert!(others.is_empty());
        assert!(
            stored.take_exclusive("agent", address).is_none(),
            "it was another's"
        );
        assert!(stored.take_tcp(address).is_none(), "workers never had it");
        let any = SocketAddr::new(address.ip(), 0);
        assert!(
            stored.take_exclusive("admin", any).is_none(),
            "its port was asked for"
        );
        assert!(stored.take_exclusive("admin", address).is_some());
        assert!(stored.close_unclaimed().is_empty(), "nothing is left");
    }
}
