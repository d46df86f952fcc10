//! All listening sockets, written down for the next version of the program, and taken over by it.

use super::group::{Group, Key, Kind};
use super::lock::AddressLock;
use super::slots::{Members, Slots};
use super::unix::{SocketFile, Wanted};
use super::{Entry, ListenSet, Listeners};
use crate::upgrade::{
    EntryState, Fd, FileState, GroupState, InheritedState, KeyState, Kind as Is, KindState,
    LockState, Packing, SlotsState, Unpacking, give_up,
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
    /// The sockets that this process was started with.
    pub(crate) fn inherited_state(&self, packing: &mut Packing) -> Vec<InheritedState> {
        let mut state = |one: &Inherited| InheritedState {
            name: one.name.clone(),
            socket: packing.add(Is::Listener, &one.socket),
        };
        self.inherited.iter().map(&mut state).collect()
    }

    /// Knows what another program has left, and no address yet.
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

    /// Gives the sets of all generations their groups, which are known from then on.
    pub(crate) fn adopt_groups(
        &mut self,
        groups: Vec<GroupState>,
        unpacking: &mut Unpacking,
    ) -> Vec<Rc<Group>> {
        let groups: Vec<Rc<Group>> = groups
            .into_iter()
            .map(|group| Rc::new(Group::adopted(group, unpacking)))
            .collect();
        self.groups = groups.iter().map(Rc::downgrade).collect();
        groups
    }
}

impl ListenSet {
    /// This set, by the places of its groups in `groups`, where new ones are added.
    pub(crate) fn state(
        &self,
        groups: &mut Vec<(*const Group, GroupState)>,
        packing: &mut Packing,
    ) -> (u32, Vec<EntryState>) {
        let mut entry = |entry: &Entry| {
            let known = groups
                .iter()
                .position(|(group, _)| std::ptr::eq(*group, Rc::as_ptr(&entry.group)));
            let place = known.unwrap_or_else(|| {
                groups.push((Rc::as_ptr(&entry.group), entry.group.state(packing)));
                groups.len() - 1
            });
            EntryState {
                group: count(place),
                sockets: count(entry.sockets.len()),
            }
        };
        (self.backlog, self.entries.iter().map(&mut entry).collect())
    }

    /// A set of another program.
    pub(crate) fn adopted(backlog: u32, entries: &[EntryState], groups: &[Rc<Group>]) -> Self {
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
                group: Rc::clone(group),
                sockets,
            }
        };
        Self {
            entries: entries.iter().map(entry).collect(),
            backlog,
        }
    }
}

impl Group {
    fn state(&self, packing: &mut Packing) -> GroupState {
        let key = match &self.key {
            Key::Tcp(address) => KeyState::Tcp(address.to_string()),
            Key::Unix(path) => KeyState::Unix(path.into()),
            Key::Fd(number) => KeyState::Fd(*number),
        };
        let kind = match &self.kind {
            Kind::Slots(slots) => KindState::Slots(slots.state(packing)),
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
            KeyState::Tcp(address) => Key::Tcp(parse(&address)),
            KeyState::Unix(path) => Key::Unix(path.path()),
            KeyState::Fd(number) => Key::Fd(number),
        };
        let kind = match kind {
            KindState::Slots(state) => Kind::Slots(Slots::resumed(state, unpacking)),
            KindState::File(state) => {
                let made_for = Wanted {
                    path: state.path.path(),
                    mode: state.mode,
                    owner: state.owner.map(Uid::from_raw),
                    group: state.group.map(Gid::from_raw),
                };
                let kept = Cell::new(false);
                let file = SocketFile {
                    made_for,
                    identity: (state.device, state.inode),
                    kept,
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

    /// All sockets: one per slot, or the one for all.
    fn sockets(&self) -> Vec<Rc<OwnedFd>> {
        self.add(Vec::new())
    }
}

impl Slots {
    fn state(&self, packing: &mut Packing) -> SlotsState {
        // A new field does not compile before it is in the state.
        let Members {
            key,
            key_place,
            sockets,
            places,
            count,
            backlog,
            adopted,
            steered,
            scattered,
        } = &*self.members.borrow();
        let mut add = |socket: &Rc<OwnedFd>| packing.add(Is::Listener, socket);
        SlotsState {
            address: self.address.to_string(),
            sockets: sockets.iter().map(&mut add).collect(),
            places: places.clone(),
            key: key.as_ref().map(&mut add),
            key_place: *key_place,
            count: *count,
            backlog: *backlog,
            adopted: *adopted,
            steered: steered.clone(),
            scattered: *scattered,
        }
    }

    fn resumed(state: SlotsState, unpacking: &mut Unpacking) -> Self {
        let address = parse(&state.address);
        let sockets: Vec<_> = state
            .sockets
            .into_iter()
            .map(|socket| take(socket, unpacking))
            .collect();
        let key = state.key.map(|key| take(key, unpacking));
        if sockets.is_empty() || sockets.len() != state.places.len() {
            give_up(&format!(
                "{address} has {} sockets in {} places",
                sockets.len(),
                state.places.len()
            ));
        }
        for (socket, place) in sockets
            .iter()
            .zip(&state.places)
            .chain(key.iter().zip([&state.key_place]))
        {
            verify(socket, address, place.is_some());
        }
        let members = Members {
            key,
            key_place: state.key_place,
            sockets,
            places: state.places,
            count: state.count,
            backlog: state.backlog,
            adopted: state.adopted,
            steered: state.steered,
            scattered: state.scattered,
        };
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
            "descriptor {number} is bound to {bound:?} and listens: {listening:?}; not as it should be to {address}"
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
