//! The state of all listening sockets, written for the next version of the program and taken over
//! by it.

use super::address::AddressKey;
use super::address_sockets::{AddressSockets, Kind};
use super::lock::AddressLock;
use super::reuseport_group::{Members, ReuseportGroup};
use super::shutdown_order::ShutdownOrder;
use super::unix::{SocketFile, Wanted};
use super::{Entry, ListenSet, Listeners};
use crate::upgrade::{
    EntryState, Fd, FileState, GroupState, InheritedState, KeyState, Kind as Is, KindState,
    LockState, Packing, ReuseportGroupState, Unpacking, give_up,
};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Gid, Uid};
use prefork_protocol::environment::Inherited;
use socket2::SockRef;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

impl Listeners {
    /// Writes down the sockets that this process was started with.
    pub(crate) fn inherited_state(&self, packing: &mut Packing) -> Vec<InheritedState> {
        let mut state = |one: &Inherited| InheritedState {
            name: one.name.clone(),
            socket: packing.add(Is::Listener, &one.socket),
        };
        self.inherited.iter().map(&mut state).collect()
    }

    /// Takes over the inherited sockets of another program; no address is known yet.
    pub(crate) fn adopted(
        runtime_dir: Option<PathBuf>,
        inherited: Vec<InheritedState>,
        unpacking: &mut Unpacking,
    ) -> Self {
        let take = |one: InheritedState| Inherited {
            name: one.name,
            socket: unpacking.take(one.socket, Is::Listener),
        };
        Self::new(runtime_dir, inherited.into_iter().map(take).collect())
    }

    /// Registers the addresses of another program, for the sets of all generations.
    pub(crate) fn adopt_groups(
        &mut self,
        groups: Vec<GroupState>,
        unpacking: &mut Unpacking,
    ) -> Vec<Rc<AddressSockets>> {
        let groups: Vec<Rc<AddressSockets>> = groups
            .into_iter()
            .map(|group| Rc::new(AddressSockets::adopted(group, unpacking)))
            .collect();
        self.addresses = groups.iter().map(Rc::downgrade).collect();
        groups
    }
}

impl ListenSet {
    /// This set, by the indices of its groups in `groups`, where new ones are added.
    pub(crate) fn state(
        &self,
        groups: &mut Vec<(*const AddressSockets, GroupState)>,
        packing: &mut Packing,
    ) -> (u32, Vec<EntryState>) {
        let mut entry = |entry: &Entry| {
            let known = groups
                .iter()
                .position(|(group, _)| std::ptr::eq(*group, Rc::as_ptr(&entry.address)));
            let index = known.unwrap_or_else(|| {
                groups.push((Rc::as_ptr(&entry.address), entry.address.state(packing)));
                groups.len() - 1
            });
            EntryState {
                group: count(index),
                sockets: count(entry.sockets.len()),
                label: entry.label.clone(),
            }
        };
        (self.backlog, self.entries.iter().map(&mut entry).collect())
    }

    /// Takes over a set of another program.
    pub(crate) fn adopted(
        backlog: u32,
        entries: &[EntryState],
        groups: &[Rc<AddressSockets>],
    ) -> Self {
        let entry = |entry: &EntryState| {
            let Some(group) = groups.get(entry.group as usize) else {
                give_up(&format!(
                    "there is no group {} of listening sockets",
                    entry.group
                ))
            };
            let mut sockets = group.sockets();
            if sockets.len() < entry.sockets as usize {
                give_up(&format!(
                    "{} has {} sockets, not {}",
                    group.describe(),
                    sockets.len(),
                    entry.sockets
                ));
            }
            sockets.truncate(entry.sockets as usize);
            Entry {
                address: Rc::clone(group),
                label: entry.label.clone(),
                sockets,
            }
        };
        Self {
            entries: entries.iter().map(entry).collect(),
            backlog,
        }
    }
}

impl AddressSockets {
    fn state(&self, packing: &mut Packing) -> GroupState {
        let key = match &self.key {
            AddressKey::Tcp(address) => KeyState::Tcp(address.to_string()),
            AddressKey::Unix(path) => KeyState::Unix(path.into()),
            AddressKey::Fd(number) => KeyState::Fd(*number),
        };
        let kind = match &self.kind {
            Kind::ReuseportGroup(slots) => KindState::ReuseportGroup(slots.state(packing)),
            Kind::File { file, socket } => {
                let Wanted {
                    path,
                    mode,
                    owner,
                    group,
                } = &file.made_for;
                KindState::File(FileState {
                    path: path.into(),
                    mode: *mode,
                    owner: owner.map(Uid::as_raw),
                    group: group.map(Gid::as_raw),
                    device: file.identity.0,
                    inode: file.identity.1,
                    socket: packing.add(Is::Listener, socket),
                })
            }
            Kind::Inherited { socket } => KindState::Inherited(packing.add(Is::Listener, socket)),
        };
        let lock = self.lock.as_ref().map(|lock| LockState {
            path: (&lock.path).into(),
            file: packing.add(Is::Lock, &lock.file),
        });
        GroupState {
            key,
            text: self.text.clone(),
            name: self.name.clone(),
            kind,
            lock,
        }
    }

    fn adopted(state: GroupState, unpacking: &mut Unpacking) -> Self {
        let GroupState {
            key,
            text,
            name,
            kind,
            lock,
        } = state;
        let key = match key {
            KeyState::Tcp(address) => AddressKey::Tcp(parse(&address)),
            KeyState::Unix(path) => AddressKey::Unix(path.path()),
            KeyState::Fd(number) => AddressKey::Fd(number),
        };
        let kind = match kind {
            KindState::ReuseportGroup(state) => {
                Kind::ReuseportGroup(ReuseportGroup::resumed(state, unpacking))
            }
            KindState::File(state) => {
                let made_for = Wanted {
                    path: state.path.path(),
                    mode: state.mode,
                    owner: state.owner.map(Uid::from_raw),
                    group: state.group.map(Gid::from_raw),
                };
                let stored = Cell::new(false);
                let file = SocketFile {
                    made_for,
                    identity: (state.device, state.inode),
                    stored,
                };
                Kind::File {
                    file,
                    socket: take(state.socket, unpacking),
                }
            }
            KindState::Inherited(socket) => Kind::Inherited {
                socket: take(socket, unpacking),
            },
        };
        let lock = lock.map(|lock| AddressLock {
            path: lock.path.path(),
            file: unpacking.take(lock.file, Is::Lock).into(),
        });
        Self {
            key,
            text,
            name,
            kind,
            lock,
        }
    }

    /// Returns all sockets: one per slot, or the one for all.
    fn sockets(&self) -> Vec<Rc<OwnedFd>> {
        self.add(Vec::new())
    }
}

impl ReuseportGroup {
    fn state(&self, packing: &mut Packing) -> ReuseportGroupState {
        // Destructured, so that a new field must be added to the state.
        let Members {
            steering,
            steering_index,
            sockets,
            indices,
            count,
            backlog,
            adopted,
            steered,
            scattered,
            // Watched again.
            shutdowns: _,
        } = &*self.members.borrow();
        let mut add = |socket: &Rc<OwnedFd>| packing.add(Is::Listener, socket);
        ReuseportGroupState {
            address: self.address.to_string(),
            sockets: sockets.iter().map(&mut add).collect(),
            indices: indices.clone(),
            steering: steering.as_ref().map(&mut add),
            steering_index: *steering_index,
            count: *count,
            backlog: *backlog,
            adopted: *adopted,
            steered: steered.clone(),
            scattered: *scattered,
        }
    }

    fn resumed(state: ReuseportGroupState, unpacking: &mut Unpacking) -> Self {
        let address = parse(&state.address);
        let sockets: Vec<_> = state
            .sockets
            .into_iter()
            .map(|socket| take(socket, unpacking))
            .collect();
        let steering = state.steering.map(|steering| take(steering, unpacking));
        if sockets.is_empty() || sockets.len() != state.indices.len() {
            give_up(&format!(
                "{address} has {} sockets in {} indices",
                sockets.len(),
                state.indices.len()
            ));
        }
        for (socket, index) in sockets
            .iter()
            .zip(&state.indices)
            .chain(steering.iter().zip([&state.steering_index]))
        {
            verify(socket, address, index.is_some());
        }
        let members = Members {
            steering,
            steering_index: state.steering_index,
            sockets,
            indices: state.indices,
            count: state.count,
            backlog: state.backlog,
            adopted: state.adopted,
            steered: state.steered,
            scattered: state.scattered,
            shutdowns: ShutdownOrder::new().ok(),
        };
        for (slot, index) in members.indices.iter().enumerate() {
            if index.is_some() {
                members.watch(slot);
            }
        }
        Self {
            address,
            members: RefCell::new(members),
        }
    }
}

fn take(fd: Fd, unpacking: &mut Unpacking) -> Rc<OwnedFd> {
    Rc::new(unpacking.take(fd, Is::Listener))
}

/// Checks that a socket of a TCP address is one.
fn verify(socket: &OwnedFd, address: SocketAddr, listens: bool) {
    let bound = SockRef::from(socket)
        .local_addr()
        .ok()
        .and_then(|bound| bound.as_socket());
    let listening = getsockopt(socket, sockopt::AcceptConn);
    // While a state is checked, its owner goes on, and may have opened more slots by now.
    if bound != Some(address) || listens && listening != Ok(true) {
        let number = socket.as_raw_fd();
        give_up(&format!(
            "descriptor {number} is bound to {bound:?} and listens: {listening:?}; \
             not as it should be to {address}"
        ));
    }
}

fn parse(address: &str) -> SocketAddr {
    address
        .parse()
        .unwrap_or_else(|_| give_up(&format!("`{address}` is no address")))
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
