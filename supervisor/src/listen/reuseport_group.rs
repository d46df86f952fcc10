//! The sockets of one TCP address: one per slot, and the steering socket.
//!
//! They share the address by SO_REUSEPORT. One that listens is a member of the kernel's group, and
//! its *index* is the number of members before it. The kernel fills a gap with the last member, so
//! none leaves while the address lives: an index, once given, stays. Slots and indices differ,
//! since the steering socket has an index too.
//!
//! A worker holds the sockets of its slot, and any member can change the group's program. So the
//! slots' sockets are locked, and the program is changed through the *steering socket*: one more
//! member, which no worker gets and no program chooses. Even if a program did, no client could
//! connect to it, since it drops what reaches it. Where the kernel refuses programs, there is
//! neither lock nor steering socket.

use super::bpf::{self, SteerProblem, Steered};
use super::error::{ListenProblem, errno_of};
use super::shutdown_order::ShutdownOrder;
use super::socket_label::SocketLabel;
use super::tcp;
use nix::errno::Errno;
use socket2::SockRef;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// The steering socket's queue stays empty.
const STEERING_BACKLOG: u32 = 0;

/// The sockets of one TCP address.
#[derive(Debug)]
pub(crate) struct ReuseportGroup {
    pub(crate) address: SocketAddr,
    pub(crate) members: RefCell<Members>,
}

/// The sockets, and what is known of the kernel's group.
#[derive(Debug, Default)]
pub(crate) struct Members {
    /// The steering socket. It is closed first, so that it never fills the gap of a slot's socket.
    pub(crate) steering: Option<Rc<OwnedFd>>,
    /// The steering socket's index, if it listens.
    pub(crate) steering_index: Option<u16>,
    /// By slot.
    pub(crate) sockets: Vec<Rc<OwnedFd>>,
    /// By slot: the index of its socket, if it listens.
    pub(crate) indices: Vec<Option<u16>>,
    /// How many members the group has, which is the index of the next one.
    pub(crate) count: u16,
    pub(crate) backlog: u32,
    /// Whether the sockets came from an earlier process: those that listen are locked, and perhaps
    /// another user's.
    pub(crate) adopted: bool,
    /// The indices that the program chooses from, if this process has attached it.
    pub(crate) steered: Vec<u16>,
    /// Whether the indices are unknown.
    pub(crate) scattered: bool,
    /// Watches the slots' sockets that listen.
    pub(crate) shutdowns: Option<ShutdownOrder>,
}

/// The stored sockets of an address, each with its index.
#[derive(Debug, Default)]
pub(crate) struct StoredMembers {
    steering: Option<(u16, OwnedFd)>,
    slots: BTreeMap<u16, (u16, OwnedFd)>,
    /// Whether two sockets claimed to be the same.
    doubtful: bool,
}

impl StoredMembers {
    /// Adds a slot's socket, or the steering socket.
    pub(crate) fn put(&mut self, slot: Option<u16>, index: u16, socket: OwnedFd) {
        let before = match slot {
            Some(slot) => self.slots.insert(slot, (index, socket)),
            None => self.steering.replace((index, socket)),
        };
        self.doubtful |= before.is_some();
    }
}

impl ReuseportGroup {
    /// Binds the steering socket and the first slot's socket. A port of 0 becomes a free one.
    pub(crate) fn bind(asked: SocketAddr) -> Result<Self, ListenProblem> {
        let first = tcp::bind(asked)?;
        let address = tcp::local_address(&first)?;
        let steering = Some(Rc::new(tcp::bind(address)?));
        let this = Self {
            address,
            members: RefCell::new(Members {
                steering,
                shutdowns: ShutdownOrder::new().ok(),
                ..Members::default()
            }),
        };
        this.add(vec![first]);
        Ok(this)
    }

    /// Takes over the sockets of an earlier process. What is missing is bound, if the system allows
    /// it: it does not if they are another user's.
    pub(crate) fn adopt(address: SocketAddr, stored: StoredMembers) -> Result<Self, ListenProblem> {
        let StoredMembers {
            steering,
            slots,
            doubtful,
        } = stored;
        let mut indices: Vec<u16> = slots
            .values()
            .chain(&steering)
            .map(|(index, _)| *index)
            .collect();
        indices.sort_unstable();
        // Others have taken the indices of missing members, unless those were the last ones.
        let scattered = doubtful
            || indices
                .iter()
                .enumerate()
                .any(|(position, index)| position != usize::from(*index));
        let count = indices.last().map_or(0, |last| last + 1);
        let mut members = Members {
            count,
            adopted: true,
            scattered,
            shutdowns: ShutdownOrder::new().ok(),
            ..Members::default()
        };
        if let Some((index, socket)) = steering {
            members.steering = Some(Rc::new(socket));
            members.steering_index = Some(index);
        } else if !scattered {
            members.steering = tcp::bind(address).ok().map(Rc::new);
        }
        if scattered && let Some(steering) = members.steering.take() {
            // All slots get connections, and the steering socket leaves the group.
            let all: Vec<u16> = (0..count).collect();
            let _ = bpf::attach(&steering, &all);
            members.steering_index = None;
        }
        for (slot, (index, socket)) in slots {
            while members.sockets.len() < usize::from(slot) {
                members.sockets.push(Rc::new(tcp::bind(address)?));
                members.indices.push(None);
            }
            members.sockets.push(Rc::new(socket));
            members.indices.push(Some(index));
            let slot = members.sockets.len() - 1;
            // The order in which these were shut down is unknown.
            if listens(&members.sockets[slot]) {
                members.watch(slot);
            }
        }
        if members.sockets.is_empty() {
            members.sockets.push(Rc::new(tcp::bind(address)?));
            members.indices.push(None);
        }
        Ok(Self {
            address,
            members: RefCell::new(members),
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the members of the group with their labels, in the order of their indices: if not
    /// all can be stored, the first ones are.
    pub(crate) fn labels(&self, any: bool) -> Vec<(SocketLabel, Rc<OwnedFd>)> {
        let members = self.members.borrow();
        let steering = members
            .steering_index
            .zip(members.steering.as_ref())
            .map(|(index, steering)| (index, None, steering));
        let slots = members
            .sockets
            .iter()
            .zip(&members.indices)
            .enumerate()
            .filter_map(|(slot, (socket, index))| {
                Some(((*index)?, Some(u16::try_from(slot).ok()?), socket))
            });
        let mut all: Vec<_> = slots.chain(steering).collect();
        all.sort_by_key(|(index, _, _)| *index);
        let label = |(index, slot, socket): (u16, Option<u16>, &Rc<OwnedFd>)| {
            (
                SocketLabel::Member {
                    slot,
                    index,
                    address: self.address,
                    any,
                },
                Rc::clone(socket),
            )
        };
        all.into_iter().map(label).collect()
    }

    #[cfg(test)]
    pub(crate) fn steering_socket(&self) -> Rc<OwnedFd> {
        Rc::clone(
            self.members
                .borrow()
                .steering
                .as_ref()
                .expect("a steering socket"),
        )
    }

    #[cfg(test)]
    pub(crate) fn steering_index(&self) -> Option<u16> {
        self.members.borrow().steering_index
    }

    /// Returns the number of slots whose sockets listen, those before the last one included.
    pub(crate) fn open_slots(&self) -> u16 {
        let highest = self
            .members
            .borrow()
            .indices
            .iter()
            .rposition(Option::is_some);
        highest.map_or(0, |slot| u16::try_from(slot + 1).unwrap_or(u16::MAX))
    }

    /// Returns how many slots have sockets of their own, where there cannot be more: the others
    /// share them.
    pub(crate) fn limit(&self, slots: u16) -> Option<u16> {
        let members = self.members.borrow();
        let there = u16::try_from(members.sockets.len()).unwrap_or(u16::MAX);
        (members.adopted && there < slots).then_some(there)
    }

    /// Binds the sockets that are missing for `slots` slots. Only [`add`](Self::add) adds them.
    pub(crate) fn more(&self, slots: u16) -> Result<Vec<OwnedFd>, ListenProblem> {
        let members = self.members.borrow();
        let missing = members.sockets.len()..usize::from(slots);
        let bound: Result<Vec<_>, _> = missing.map(|_| tcp::bind(self.address)).collect();
        // Those that came back can serve without more of them; see `limit`.
        if members.adopted {
            Ok(bound.unwrap_or_default())
        } else {
            bound
        }
    }

    /// Adds what [`more`](Self::more) has bound.
    pub(crate) fn add(&self, more: Vec<OwnedFd>) {
        let mut members = self.members.borrow_mut();
        members.sockets.extend(more.into_iter().map(Rc::new));
        let slots = members.sockets.len();
        members.indices.resize(slots, None);
    }

    /// Returns all sockets, by slot.
    pub(crate) fn sockets(&self) -> Vec<Rc<OwnedFd>> {
        self.members.borrow().sockets.clone()
    }

    /// Makes the sockets of the first `slots` slots listen, with this backlog. Those that listen
    /// already are unaffected.
    pub(crate) fn open(&self, slots: u16, backlog: u32) -> Result<(), Errno> {
        // Without gaps, whichever sockets came back.
        let slots = slots.max(self.open_slots());
        let mut members = self.members.borrow_mut();
        let Members {
            sockets,
            indices,
            count,
            steering_index,
            backlog: before,
            shutdowns,
            ..
        } = &mut *members;
        let changed = std::mem::replace(before, backlog) != backlog;
        for (slot, (socket, index)) in sockets.iter().zip(indices).enumerate() {
            match index {
                // Another listen(2) changes the backlog, and nothing else.
                Some(_) if changed => listen(socket, backlog)?,
                None if slot < usize::from(slots) => {
                    listen(socket, backlog)?;
                    *index = Some(*count);
                    *count += 1;
                    if let Some(shutdowns) = shutdowns {
                        let _ = shutdowns.watch(slot, socket);
                    }
                    if steering_index.is_some() {
                        let _ = prefork_os::lock_filter(&**socket);
                    }
                }
                Some(_) | None => {}
            }
        }
        // If programs are refused, `steer` reports it.
        let _ = admit_steering_socket(&mut members);
        Ok(())
    }

    /// Steers new connections to the slots in `rotation`.
    pub(crate) fn steer(&self, rotation: &[u16]) -> Result<Steered, SteerProblem> {
        let mut members = self.members.borrow_mut();
        if members.count == 0 {
            // Before the first listen(2) there is no group to steer.
            return Ok(Steered::Unchanged);
        }
        admit_steering_socket(&mut members)?;
        let indices = rotation
            .iter()
            .map(|slot| members.index(*slot))
            .collect::<Result<Vec<_>, _>>()?;
        members.attach(indices)
    }

    /// Whether the program is the one for this rotation.
    pub(crate) fn is_steered_to(&self, rotation: &[u16]) -> bool {
        let members = self.members.borrow();
        rotation
            .iter()
            .map(|slot| members.index(*slot))
            .eq(members.steered.iter().map(|index| Ok(*index)))
    }

    /// Steers to the steering socket, which drops connection attempts. What is in a queue stays
    /// there.
    pub(crate) fn blackhole(&self) -> Result<Steered, SteerProblem> {
        let mut members = self.members.borrow_mut();
        match members.steering_index {
            Some(index) if members.steered != [index] => members.attach(vec![index]),
            _ => Ok(Steered::Unchanged),
        }
    }
}

impl Drop for ReuseportGroup {
    /// Sockets close one after the other, and the program does not fit a group that shrinks. A
    /// connection to one that is about to close would be reset; a dropped attempt is repeated and
    /// then refused.
    fn drop(&mut self) {
        let members = self.members.get_mut();
        if members
            .steering_index
            .is_some_and(|index| members.steered == [index])
        {
            for socket in &members.sockets {
                let _ = prefork_os::ignore_travelled_packets(&**socket);
            }
        }
    }
}

impl Members {
    /// Watches a slot's socket, which listens. If that fails, the order in which several are shut
    /// down is unknown.
    pub(crate) fn watch(&self, slot: usize) {
        if let Some(shutdowns) = &self.shutdowns {
            let _ = shutdowns.watch(slot, &self.sockets[slot]);
        }
    }

    /// Returns the index of a slot's socket.
    fn index(&self, slot: u16) -> Result<u16, SteerProblem> {
        let position = usize::from(slot);
        let position = if self.adopted {
            position % self.sockets.len()
        } else {
            position
        };
        self.indices
            .get(position)
            .copied()
            .flatten()
            .ok_or(SteerProblem::NotOpen(slot))
    }

    fn attach(&mut self, indices: Vec<u16>) -> Result<Steered, SteerProblem> {
        let steering = self
            .steering
            .as_ref()
            .ok_or(SteerProblem::NoSteeringSocket)?;
        let steered = bpf::attach(steering, &indices).map_err(SteerProblem::System)?;
        if steered == Steered::Changed {
            self.steered = indices;
        }
        Ok(steered)
    }
}

/// Adds the steering socket to the group, and locks the others. A program that leaves it out must
/// be attached before, or the kernel would choose it too. Only a member can attach that program,
/// so the lock comes last.
fn admit_steering_socket(members: &mut Members) -> Result<(), SteerProblem> {
    if members.scattered {
        return Err(SteerProblem::Scattered);
    }
    let Some(steering) = members.steering.clone() else {
        return Err(SteerProblem::NoSteeringSocket);
    };
    if members.steering_index.is_some() {
        return Ok(());
    }
    let system = SteerProblem::System;
    let indices: Vec<u16> = members.indices.iter().copied().flatten().collect();
    let listening = || {
        members
            .sockets
            .iter()
            .zip(&members.indices)
            .filter(|(_, index)| index.is_some())
    };
    let Some((first, _)) = listening().next() else {
        return Ok(());
    };
    if !members.adopted {
        bpf::attach(first, &indices).map_err(system)?;
    }
    bpf::reject_connections(&steering);
    listen(&steering, STEERING_BACKLOG).map_err(system)?;
    if members.adopted
        && let Err(errno) = bpf::attach(&steering, &indices)
    {
        // It leaves as the last member, so that all indices stay.
        members.steering = None;
        return Err(system(errno));
    }
    for (socket, _) in listening() {
        // A worker that could change the program harms only its own service: serve all the same.
        let _ = prefork_os::lock_filter(&**socket);
    }
    members.steering_index = Some(members.count);
    members.count += 1;
    Ok(())
}

pub(crate) fn listens(socket: &OwnedFd) -> bool {
    SockRef::from(socket).is_listener().unwrap_or(false)
}

pub(crate) fn listen(socket: &OwnedFd, backlog: u32) -> Result<(), Errno> {
    SockRef::from(socket)
        .listen(i32::try_from(backlog).unwrap_or(i32::MAX))
        .map_err(|error| errno_of(&error))
}
