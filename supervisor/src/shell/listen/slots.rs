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
use super::steer::{self, SteerProblem, Steered};
use super::tcp;
use nix::errno::Errno;
use prefork::sys;
use socket2::SockRef;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// The key's queue stays empty.
const KEY_BACKLOG: u32 = 0;

#[derive(Debug)]
pub(super) struct Slots {
    address: SocketAddr,
    /// Closed first, lest it fill the gap of a slot's socket that is closed before it.
    key: OwnedFd,
    members: RefCell<Members>,
}

#[derive(Debug, Default)]
struct Members {
    /// By slot.
    sockets: Vec<Rc<OwnedFd>>,
    /// By slot: the place of its socket, if it listens.
    places: Vec<Option<u16>>,
    /// The key's place, if it listens. The slots' sockets are locked then.
    key: Option<u16>,
    /// How many members the group has, which is the next one's place.
    count: u16,
    backlog: u32,
}

impl Slots {
    /// Binds the key and the first slot's socket. A port of 0 becomes a free one.
    pub(super) fn bind(asked: SocketAddr) -> Result<Self, Problem> {
        let first = tcp::bind(asked)?;
        let address = tcp::local_address(&first)?;
        let key = tcp::bind(address)?;
        let this = Self { address, key, members: RefCell::default() };
        this.add(vec![first]);
        Ok(this)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    #[cfg(test)]
    pub(super) fn key(&self) -> &OwnedFd {
        &self.key
    }

    #[cfg(test)]
    pub(super) fn place_of_key(&self) -> Option<u16> {
        self.members.borrow().key
    }

    /// Binds the sockets that are missing for `slots` slots. Only [`add`](Self::add) makes them the group's.
    pub(super) fn more(&self, slots: u16) -> Result<Vec<OwnedFd>, Problem> {
        let there = self.members.borrow().sockets.len();
        (there..usize::from(slots)).map(|_| tcp::bind(self.address)).collect()
    }

    pub(super) fn add(&self, more: Vec<OwnedFd>) {
        let mut members = self.members.borrow_mut();
        members.sockets.extend(more.into_iter().map(Rc::new));
        let slots = members.sockets.len();
        members.places.resize(slots, None);
    }

    /// All sockets, by slot.
    pub(super) fn sockets(&self) -> Vec<Rc<OwnedFd>> {
        self.members.borrow().sockets.clone()
    }

    /// Has the sockets of the first `slots` slots listen, with this backlog. Those that listen already go on.
    pub(super) fn open(&self, slots: u16, backlog: u32) -> Result<(), Errno> {
        let mut members = self.members.borrow_mut();
        let Members { sockets, places, count, key, backlog: before } = &mut *members;
        let changed = std::mem::replace(before, backlog) != backlog;
        for (slot, (socket, place)) in sockets.iter().zip(places).enumerate() {
            match place {
                // To listen again on a listening socket changes its backlog, and nothing else.
                Some(_) if changed => listen(socket, backlog)?,
                None if slot < usize::from(slots) => {
                    listen(socket, backlog)?;
                    *place = Some(*count);
                    *count += 1;
                    if key.is_some() {
                        let _ = sys::lock_filter(&**socket);
                    }
                }
                Some(_) | None => {}
            }
        }
        // Where programs are refused, `steer` tells.
        let _ = self.turn_key(&mut members);
        Ok(())
    }

    pub(super) fn steer(&self, rotation: &[u16]) -> Result<Steered, SteerProblem> {
        let mut members = self.members.borrow_mut();
        if members.count == 0 {
            // Before the first listen(2) there is no group to steer.
            return Ok(Steered::Unchanged);
        }
        self.turn_key(&mut members).map_err(SteerProblem::System)?;
        let place = |slot: &u16| {
            members.places.get(usize::from(*slot)).copied().flatten().ok_or(SteerProblem::NotOpen(*slot))
        };
        let places = rotation.iter().map(place).collect::<Result<Vec<_>, _>>()?;
        steer::attach(&self.key, &places).map_err(SteerProblem::System)
    }

    /// Has the key join the group, and locks the others. A program that leaves the key out must be there before,
    /// or the kernel would choose it too; only a member can attach that one, so the lock comes last.
    fn turn_key(&self, members: &mut Members) -> Result<(), Errno> {
        let places: Vec<u16> = members.places.iter().copied().flatten().collect();
        let listening = || members.sockets.iter().zip(&members.places).filter(|(_, place)| place.is_some());
        let Some((first, _)) = listening().next().filter(|_| members.key.is_none()) else { return Ok(()) };
        steer::attach(first, &places)?;
        steer::deafen(&self.key).map_err(errno)?;
        listen(&self.key, KEY_BACKLOG)?;
        for (socket, _) in listening() {
            // A worker that could change the program harms its own service; that is no reason not to serve.
            let _ = sys::lock_filter(&**socket);
        }
        members.key = Some(members.count);
        members.count += 1;
        Ok(())
    }
}

pub(super) fn listen(socket: &OwnedFd, backlog: u32) -> Result<(), Errno> {
    SockRef::from(socket).listen(i32::try_from(backlog).unwrap_or(i32::MAX)).map_err(errno)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}
