//! The sockets of one TCP address: one per slot, and the key.
//!
//! They share the address by SO_REUSEPORT. One that listens is a member of the kernel's group; its *index* there is
//! the number of members before it. The kernel fills a gap with the last member, so none ever leaves while the
//! address lives: a index, once given, stays. ReuseportGroup and indices differ, since the key has a index too.
//!
//! A worker holds the very sockets of its slots, and any member can change the group's program. So the slots'
//! sockets are locked, and the program is changed through the *steering*: one more member, which no worker gets, which
//! no program chooses, and to which nobody can connect even if a program did, since it throws away what reaches it.
//! Where the kernel refuses programs there is neither lock nor steering.

use super::bpf::{self, SteerProblem, Steered};
use super::error::ListenProblem;
use super::socket_label::SocketLabel;
use super::tcp;
use nix::errno::Errno;
use socket2::SockRef;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// The steering's queue stays empty.
const STEERING_BACKLOG: u32 = 0;

#[derive(Debug)]
pub(crate) struct ReuseportGroup {
    pub(crate) address: SocketAddr,
    pub(crate) members: RefCell<Members>,
}

#[derive(Debug, Default)]
pub(crate) struct Members {
    /// Closed first, lest it fill the gap of a slot's socket that is closed before it.
    pub(crate) steering: Option<Rc<OwnedFd>>,
    /// The steering's index, if it listens.
    pub(crate) steering_index: Option<u16>,
    /// By slot.
    pub(crate) sockets: Vec<Rc<OwnedFd>>,
    /// By slot: the index of its socket, if it listens.
    pub(crate) indices: Vec<Option<u16>>,
    /// How many members the group has, which is the next one's index.
    pub(crate) count: u16,
    pub(crate) backlog: u32,
    /// The sockets came from an earlier process: those that listen are locked, and perhaps another user's.
    pub(crate) adopted: bool,
    /// The indices of the program's choice, as far as this process has attached it.
    pub(crate) steered: Vec<u16>,
    /// Nobody knows any more whose index is which.
    pub(crate) scattered: bool,
}

/// What came back of an address's sockets, each with its index.
#[derive(Debug, Default)]
pub(crate) struct StoredMembers {
    steering: Option<(u16, OwnedFd)>,
    slots: BTreeMap<u16, (u16, OwnedFd)>,
    /// Two claimed to be the same.
    doubtful: bool,
}

impl StoredMembers {
    /// Adds a slot's socket, or the key.
    pub(crate) fn put(&mut self, slot: Option<u16>, index: u16, socket: OwnedFd) {
        let before = match slot {
            Some(slot) => self.slots.insert(slot, (index, socket)),
            None => self.steering.replace((index, socket)),
        };
        self.doubtful |= before.is_some();
    }
}

impl ReuseportGroup {
    /// Binds the key and the first slot's socket. A port of 0 becomes a free one.
    pub(crate) fn bind(asked: SocketAddr) -> Result<Self, ListenProblem> {
        let first = tcp::bind(asked)?;
        let address = tcp::local_address(&first)?;
        let steering = Some(Rc::new(tcp::bind(address)?));
        let this = Self {
            address,
            members: RefCell::new(Members {
                steering,
                ..Members::default()
            }),
        };
        this.add(vec![first]);
        Ok(this)
    }

    /// Takes over the sockets of an earlier process. What is missing is bound, as far as the system allows: it does
    /// not, if they are another user's.
    pub(crate) fn adopt(address: SocketAddr, parts: StoredMembers) -> Result<Self, ListenProblem> {
        let StoredMembers {
            steering,
            slots,
            doubtful,
        } = parts;
        let mut indices: Vec<u16> = slots
            .values()
            .chain(&steering)
            .map(|(index, _)| *index)
            .collect();
        indices.sort_unstable();
        // Members that are gone have moved others into their indices, unless they were the last ones.
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
            ..Members::default()
        };
        if let Some((index, socket)) = steering {
            members.steering = Some(Rc::new(socket));
            members.steering_index = Some(index);
        } else if !scattered {
            members.steering = tcp::bind(address).ok().map(Rc::new);
        }
        if scattered && let Some(steering) = members.steering.take() {
            // Everybody's turn; the key leaves.
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

    /// The members of the group, in the order of their indices, so that those that are kept are the first ones even
    /// where not all can be.
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
        Rc::clone(self.members.borrow().steering.as_ref().expect("a steering"))
    }

    #[cfg(test)]
    pub(crate) fn steering_index(&self) -> Option<u16> {
        self.members.borrow().steering_index
    }

    /// ReuseportGroup whose sockets listen: these and those before them.
    pub(crate) fn open_slots(&self) -> u16 {
        let highest = self
            .members
            .borrow()
            .indices
            .iter()
            .rposition(Option::is_some);
        highest.map_or(0, |slot| u16::try_from(slot + 1).unwrap_or(u16::MAX))
    }

    /// How many slots have sockets of their own, where there cannot be more: the others share them.
    pub(crate) fn limit(&self, slots: u16) -> Option<u16> {
        let members = self.members.borrow();
        let there = u16::try_from(members.sockets.len()).unwrap_or(u16::MAX);
        (members.adopted && there < slots).then_some(there)
    }

    /// Binds the sockets that are missing for `slots` slots. Only [`add`](Self::add) makes them the group's.
    pub(crate) fn more(&self, slots: u16) -> Result<Vec<OwnedFd>, ListenProblem> {
        let members = self.members.borrow();
        let missing = members.sockets.len()..usize::from(slots);
        let bound: Result<Vec<_>, _> = missing.map(|_| tcp::bind(self.address)).collect();
        // Those that came back serve; more of them are no condition. `limit` tells.
        if members.adopted {
            Ok(bound.unwrap_or_default())
        } else {
            bound
        }
    }

    pub(crate) fn add(&self, more: Vec<OwnedFd>) {
        let mut members = self.members.borrow_mut();
        members.sockets.extend(more.into_iter().map(Rc::new));
        let slots = members.sockets.len();
        members.indices.resize(slots, None);
    }

    /// All sockets, by slot.
    pub(crate) fn sockets(&self) -> Vec<Rc<OwnedFd>> {
        self.members.borrow().sockets.clone()
    }

    /// Has the sockets of the first `slots` slots listen, with this backlog. Those that listen already go on.
    pub(crate) fn open(&self, slots: u16, backlog: u32) -> Result<(), Errno> {
        // Without gaps, whatever came back.
        let slots = slots.max(self.open_slots());
        let mut members = self.members.borrow_mut();
        let Members {
            sockets,
            indices,
            count,
            steering_index,
            backlog: before,
            ..
        } = &mut *members;
        let changed = std::mem::replace(before, backlog) != backlog;
        for (slot, (socket, index)) in sockets.iter().zip(indices).enumerate() {
            match index {
                // To listen again on a listening socket changes its backlog, and nothing else.
                Some(_) if changed => listen(socket, backlog)?,
                None if slot < usize::from(slots) => {
                    listen(socket, backlog)?;
                    *index = Some(*count);
                    *count += 1;
                    if steering_index.is_some() {
                        let _ = prefork_os::lock_filter(&**socket);
                    }
                }
                Some(_) | None => {}
            }
        }
        // Where programs are refused, `steer` tells.
        let _ = admit_steering_socket(&mut members);
        Ok(())
    }

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

    /// Steers to the key, which throws away what asks for a connection. What is in a queue stays there.
    pub(crate) fn blackhole(&self) -> Result<Steered, SteerProblem> {
        let mut members = self.members.borrow_mut();
        match members.steering_index {
            Some(index) if members.steered != [index] => members.attach(vec![index]),
            _ => Ok(Steered::Unchanged),
        }
    }
}

impl Drop for ReuseportGroup {
    /// Sockets close one after the other, and the program fits no group that shrinks. Whoever came to one that is about
    /// to close would be reset; whoever is not heard asks again and is refused.
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
    /// The index of a slot's socket.
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

/// Has the key join the group, and locks the others. A program that leaves the key out must be there before, or the
/// kernel would choose it too; only a member can attach that one, so the lock comes last.
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
        // It leaves as the last member, so that nobody moves.
        members.steering = None;
        return Err(system(errno));
    }
    for (socket, _) in listening() {
        // A worker that could change the program harms its own service; that is no reason not to serve.
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
        .map_err(errno)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}
