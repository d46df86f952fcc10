//! The sockets of one TCP address: one per slot, and the key.
//!
//! They share the address by SO_REUSEPORT. One that listens is a member of the kernel's group; its *place* there is
//! the number of members before it. The kernel fills a gap with the last member, so none ever leaves while the
//! address lives: a place, once given, stays. Slots and places differ, since the key has a place too.
//!
//! A worker holds the very sockets of its slots, and any member can change the group's program. So the slots'
//! sockets are locked, and the program is changed through the *key*: one more member, which no worker gets, which
//! no program chooses, and to which nobody can connect even if a program did, since it throws away what reaches it.
//! Where the kernel refuses programs there is neither lock nor key.

use super::error::Problem;
use super::tcp;
use crate::listen::bpf as steer;
use crate::listen::bpf::{SteerProblem, Steered};
use crate::listen::stored::Label;
use nix::errno::Errno;
use prefork_os as sys;
use socket2::SockRef;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// The key's queue stays empty.
const KEY_BACKLOG: u32 = 0;

#[derive(Debug)]
pub(crate) struct Slots {
    pub(crate) address: SocketAddr,
    pub(crate) members: RefCell<Members>,
}

#[derive(Debug, Default)]
pub(crate) struct Members {
    /// Closed first, lest it fill the gap of a slot's socket that is closed before it.
    pub(crate) key: Option<Rc<OwnedFd>>,
    /// The key's place, if it listens.
    pub(crate) key_place: Option<u16>,
    /// By slot.
    pub(crate) sockets: Vec<Rc<OwnedFd>>,
    /// By slot: the place of its socket, if it listens.
    pub(crate) places: Vec<Option<u16>>,
    /// How many members the group has, which is the next one's place.
    pub(crate) count: u16,
    pub(crate) backlog: u32,
    /// The sockets came from an earlier process: those that listen are locked, and perhaps another user's.
    pub(crate) adopted: bool,
    /// The places of the program's choice, as far as this process has attached it.
    pub(crate) steered: Vec<u16>,
    /// Nobody knows any more whose place is which.
    pub(crate) scattered: bool,
}

/// What came back of an address's sockets, each with its place.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    key: Option<(u16, OwnedFd)>,
    slots: BTreeMap<u16, (u16, OwnedFd)>,
    /// Two claimed to be the same.
    doubtful: bool,
}

impl Parts {
    /// Adds a slot's socket, or the key.
    pub(crate) fn put(&mut self, slot: Option<u16>, place: u16, socket: OwnedFd) {
        let before = match slot {
            Some(slot) => self.slots.insert(slot, (place, socket)),
            None => self.key.replace((place, socket)),
        };
        self.doubtful |= before.is_some();
    }
}

impl Slots {
    /// Binds the key and the first slot's socket. A port of 0 becomes a free one.
    pub(crate) fn bind(asked: SocketAddr) -> Result<Self, Problem> {
        let first = tcp::bind(asked)?;
        let address = tcp::local_address(&first)?;
        let key = Some(Rc::new(tcp::bind(address)?));
        let this = Self {
            address,
            members: RefCell::new(Members {
                key,
                ..Members::default()
            }),
        };
        this.add(vec![first]);
        Ok(this)
    }

    /// Takes over the sockets of an earlier process. What is missing is bound, as far as the system allows: it does
    /// not, if they are another user's.
    pub(crate) fn adopt(address: SocketAddr, parts: Parts) -> Result<Self, Problem> {
        let Parts {
            key,
            slots,
            doubtful,
        } = parts;
        let mut places: Vec<u16> = slots
            .values()
            .chain(&key)
            .map(|(place, _)| *place)
            .collect();
        places.sort_unstable();
        // Members that are gone have moved others into their places, unless they were the last ones.
        let scattered = doubtful
            || places
                .iter()
                .enumerate()
                .any(|(index, place)| index != usize::from(*place));
        let count = places.last().map_or(0, |last| last + 1);
        let mut members = Members {
            count,
            adopted: true,
            scattered,
            ..Members::default()
        };
        if let Some((place, socket)) = key {
            members.key = Some(Rc::new(socket));
            members.key_place = Some(place);
        } else if !scattered {
            members.key = tcp::bind(address).ok().map(Rc::new);
        }
        if scattered && let Some(key) = members.key.take() {
            // Everybody's turn; the key leaves.
            let all: Vec<u16> = (0..count).collect();
            let _ = steer::attach(&key, &all);
            members.key_place = None;
        }
        for (slot, (place, socket)) in slots {
            while members.sockets.len() < usize::from(slot) {
                members.sockets.push(Rc::new(tcp::bind(address)?));
                members.places.push(None);
            }
            members.sockets.push(Rc::new(socket));
            members.places.push(Some(place));
        }
        if members.sockets.is_empty() {
            members.sockets.push(Rc::new(tcp::bind(address)?));
            members.places.push(None);
        }
        Ok(Self {
            address,
            members: RefCell::new(members),
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The members of the group, in the order of their places, so that those that are kept are the first ones even
    /// where not all can be.
    pub(crate) fn labels(&self, any: bool) -> Vec<(Label, Rc<OwnedFd>)> {
        let members = self.members.borrow();
        let key = members
            .key_place
            .zip(members.key.as_ref())
            .map(|(place, key)| (place, None, key));
        let slots = members
            .sockets
            .iter()
            .zip(&members.places)
            .enumerate()
            .filter_map(|(slot, (socket, place))| {
                Some(((*place)?, Some(u16::try_from(slot).ok()?), socket))
            });
        let mut all: Vec<_> = slots.chain(key).collect();
        all.sort_by_key(|(place, _, _)| *place);
        let label = |(place, slot, socket): (u16, Option<u16>, &Rc<OwnedFd>)| {
            (
                Label::Member {
                    slot,
                    place,
                    address: self.address,
                    any,
                },
                Rc::clone(socket),
            )
        };
        all.into_iter().map(label).collect()
    }

    #[cfg(test)]
    pub(crate) fn key(&self) -> Rc<OwnedFd> {
        Rc::clone(self.members.borrow().key.as_ref().expect("a key"))
    }

    #[cfg(test)]
    pub(crate) fn place_of_key(&self) -> Option<u16> {
        self.members.borrow().key_place
    }

    /// Slots whose sockets listen: these and those before them.
    pub(crate) fn open_slots(&self) -> u16 {
        let highest = self
            .members
            .borrow()
            .places
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
    pub(crate) fn more(&self, slots: u16) -> Result<Vec<OwnedFd>, Problem> {
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
        members.places.resize(slots, None);
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
            places,
            count,
            key_place,
            backlog: before,
            ..
        } = &mut *members;
        let changed = std::mem::replace(before, backlog) != backlog;
        for (slot, (socket, place)) in sockets.iter().zip(places).enumerate() {
            match place {
                // To listen again on a listening socket changes its backlog, and nothing else.
                Some(_) if changed => listen(socket, backlog)?,
                None if slot < usize::from(slots) => {
                    listen(socket, backlog)?;
                    *place = Some(*count);
                    *count += 1;
                    if key_place.is_some() {
                        let _ = sys::lock_filter(&**socket);
                    }
                }
                Some(_) | None => {}
            }
        }
        // Where programs are refused, `steer` tells.
        let _ = turn_key(&mut members);
        Ok(())
    }

    pub(crate) fn steer(&self, rotation: &[u16]) -> Result<Steered, SteerProblem> {
        let mut members = self.members.borrow_mut();
        if members.count == 0 {
            // Before the first listen(2) there is no group to steer.
            return Ok(Steered::Unchanged);
        }
        turn_key(&mut members)?;
        let places = rotation
            .iter()
            .map(|slot| members.place(*slot))
            .collect::<Result<Vec<_>, _>>()?;
        members.attach(places)
    }

    /// Whether the program is the one for this rotation.
    pub(crate) fn is_steered_to(&self, rotation: &[u16]) -> bool {
        let members = self.members.borrow();
        rotation
            .iter()
            .map(|slot| members.place(*slot))
            .eq(members.steered.iter().map(|place| Ok(*place)))
    }

    /// Steers to the key, which throws away what asks for a connection. What is in a queue stays there.
    pub(crate) fn silence(&self) -> Result<Steered, SteerProblem> {
        let mut members = self.members.borrow_mut();
        match members.key_place {
            Some(place) if members.steered != [place] => members.attach(vec![place]),
            _ => Ok(Steered::Unchanged),
        }
    }
}

impl Drop for Slots {
    /// Sockets close one after the other, and the program fits no group that shrinks. Whoever came to one that is about
    /// to close would be reset; whoever is not heard asks again and is refused.
    fn drop(&mut self) {
        let members = self.members.get_mut();
        if members
            .key_place
            .is_some_and(|place| members.steered == [place])
        {
            for socket in &members.sockets {
                let _ = sys::ignore_travelled_packets(&**socket);
            }
        }
    }
}

impl Members {
    /// The place of a slot's socket.
    fn place(&self, slot: u16) -> Result<u16, SteerProblem> {
        let index = usize::from(slot);
        let index = if self.adopted {
            index % self.sockets.len()
        } else {
            index
        };
        self.places
            .get(index)
            .copied()
            .flatten()
            .ok_or(SteerProblem::NotOpen(slot))
    }

    fn attach(&mut self, places: Vec<u16>) -> Result<Steered, SteerProblem> {
        let key = self.key.as_ref().ok_or(SteerProblem::NoKey)?;
        let steered = steer::attach(key, &places).map_err(SteerProblem::System)?;
        if steered == Steered::Changed {
            self.steered = places;
        }
        Ok(steered)
    }
}

/// Has the key join the group, and locks the others. A program that leaves the key out must be there before, or the
/// kernel would choose it too; only a member can attach that one, so the lock comes last.
fn turn_key(members: &mut Members) -> Result<(), SteerProblem> {
    if members.scattered {
        return Err(SteerProblem::Scattered);
    }
    let Some(key) = members.key.clone() else {
        return Err(SteerProblem::NoKey);
    };
    if members.key_place.is_some() {
        return Ok(());
    }
    let system = SteerProblem::System;
    let places: Vec<u16> = members.places.iter().copied().flatten().collect();
    let listening = || {
        members
            .sockets
            .iter()
            .zip(&members.places)
            .filter(|(_, place)| place.is_some())
    };
    let Some((first, _)) = listening().next() else {
        return Ok(());
    };
    if !members.adopted {
        steer::attach(first, &places).map_err(system)?;
    }
    steer::deafen(&key);
    listen(&key, KEY_BACKLOG).map_err(system)?;
    if members.adopted
        && let Err(errno) = steer::attach(&key, &places)
    {
        // It leaves as the last member, so that nobody moves.
        members.key = None;
        return Err(system(errno));
    }
    for (socket, _) in listening() {
        // A worker that could change the program harms its own service; that is no reason not to serve.
        let _ = sys::lock_filter(&**socket);
    }
    members.key_place = Some(members.count);
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
