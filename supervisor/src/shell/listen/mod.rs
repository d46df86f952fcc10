//! Listening sockets: from addresses to the descriptors that workers inherit.
//!
//! [`Listeners`] knows every address of the server's life. A generation asks it to [prepare](Listeners::prepare)
//! its addresses and gets a [`ListenSet`], which keeps their sockets alive: an address that a later generation
//! does not name is closed when the last set that names it is dropped, so its queue is served as long as the old
//! workers live. An address that stays keeps its very sockets.
//!
//! A TCP address has one SO_REUSEPORT socket per slot. None is closed while the address lives: a handshake in
//! flight would die with it. That also keeps a socket's place in the kernel's group equal to its slot's number,
//! which the [steering program](ListenSet::steer) returns. A Unix address or an inherited descriptor is one socket,
//! shared by all slots.
//!
//! Nothing here accepts, logs, or decides which slots are open. Nothing blocks, except that host and user names
//! are looked up the C library's way, which may ask a server.

mod address;
mod error;
mod group;
mod inherited;
mod lock;
mod steer;
mod tcp;
mod unix;

pub use address::{Address, FdSource};
pub use error::{Act, ListenError, Problem};
pub use steer::{SteerError, SteerProblem, Steered};

use group::{Group, Key};
use prefork::environment::Inherited;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::{Rc, Weak};

/// All listening sockets of a server, over its whole life.
#[derive(Debug, Default)]
pub struct Listeners {
    runtime_dir: Option<PathBuf>,
    inherited: Vec<Inherited>,
    /// Those that some [`ListenSet`] names; the dead ones are forgotten at the next `prepare`.
    groups: Vec<Weak<Group>>,
}

/// The sockets of one generation. Dropping the last set that names an address closes the address.
#[derive(Debug)]
pub struct ListenSet {
    entries: Vec<Entry>,
    backlog: u32,
}

#[derive(Debug)]
struct Entry {
    group: Rc<Group>,
    /// The group's sockets when the set was made: one per slot, or one for all.
    sockets: Vec<Rc<OwnedFd>>,
}

impl Listeners {
    /// Knows no address yet. Locks against a second server are held in `runtime_dir`, if it is there and can be
    /// written; `inherited` is what `fd://` addresses may name.
    pub fn new(runtime_dir: Option<PathBuf>, inherited: Vec<Inherited>) -> Self {
        Self { runtime_dir, inherited, groups: Vec::new() }
    }

    /// Makes the sockets of a generation, all or nothing: binds what is new, and takes what exists as it is.
    /// Each TCP address gets sockets for at least `slots` slots. Nothing listens before [`ListenSet::open`].
    ///
    /// An address with port 0 gets a free port, which it keeps as long as a set names it. A host name stands for
    /// all its addresses, of which at least one must exist on this machine. To grow, prepare the same addresses
    /// with more slots.
    ///
    /// # Errors
    /// The first address that cannot be bound, and why. Nothing has changed then.
    pub fn prepare(
        &mut self,
        addresses: &[Address],
        backlog: u32,
        slots: u16,
    ) -> Result<ListenSet, ListenError> {
        let mut live: Vec<Rc<Group>> = self.groups.iter().filter_map(Weak::upgrade).collect();
        let mut chosen: Vec<Rc<Group>> = Vec::new();
        for address in addresses {
            for group in self.groups_of(address, &mut live)? {
                if !chosen.iter().any(|other| Rc::ptr_eq(other, &group)) {
                    chosen.push(group);
                }
            }
        }
        // Sockets for more slots are bound first and added last, so that a failure leaves every group as it was.
        let growth =
            chosen.iter().map(|group| group.more_sockets(slots)).collect::<Result<Vec<_>, ListenError>>()?;
        let grown = chosen.into_iter().zip(growth);
        let entries = grown.map(|(group, more)| Entry { sockets: group.add(more), group }).collect();
        self.groups = live.iter().map(Rc::downgrade).collect();
        Ok(ListenSet { entries, backlog })
    }

    /// The groups of one address, bound now unless they are `live`, where new ones are added.
    fn groups_of(&self, address: &Address, live: &mut Vec<Rc<Group>>) -> Result<Vec<Rc<Group>>, ListenError> {
        let error = |problem| ListenError::new(address, problem);
        match address {
            Address::Tcp { host, port } => {
                let targets = tcp::resolve(host, *port).map_err(error)?;
                let mut found = Vec::new();
                let mut missing = None;
                for target in &targets {
                    match self.get_or_bind(Key::Tcp(*target), live, |live| {
                        let ours = live.iter().any(|group| group.overlaps(*target));
                        Group::tcp(*target, ours, self.runtime_dir.as_deref())
                    }) {
                        Ok(group) => found.push(group),
                        // Such as localhost's ::1 where IPv6 is off.
                        Err(problem) if targets.len() > 1 && problem.is_no_such_address() => {
                            missing = Some(ListenError::new(&target, problem));
                        }
                        Err(problem) => return Err(ListenError::new(&target, problem)),
                    }
                }
                match missing {
                    Some(error) if found.is_empty() => Err(error),
                    _ => Ok(found),
                }
            }
            Address::Unix { path, mode, owner, group } => {
                let wanted =
                    unix::Wanted::new(path, *mode, owner.as_deref(), group.as_deref()).map_err(error)?;
                let found = self
                    .get_or_bind(Key::Unix(wanted.path.clone()), live, |_| {
                        Group::unix(&wanted, self.runtime_dir.as_deref())
                    })
                    .map_err(error)?;
                if found.has_permissions(&wanted) {
                    Ok(vec![found])
                } else {
                    Err(error(Problem::OtherPermissions))
                }
            }
            Address::Fd(source) => inherited::find(&self.inherited, source)
                .map_err(error)?
                .into_iter()
                .map(|socket| {
                    self.get_or_bind(inherited::key(socket), live, |_| Group::inherited(socket))
                        .map_err(error)
                })
                .collect(),
        }
    }

    fn get_or_bind(
        &self,
        key: Key,
        live: &mut Vec<Rc<Group>>,
        bind: impl FnOnce(&[Rc<Group>]) -> Result<Group, Problem>,
    ) -> Result<Rc<Group>, Problem> {
        if let Some(group) = live.iter().find(|group| group.answers_to(&key)) {
            return Ok(Rc::clone(group));
        }
        let group = Rc::new(bind(live)?);
        live.push(Rc::clone(&group));
        Ok(group)
    }
}

impl ListenSet {
    /// The sockets that a worker of `slot` accepts from, with their names for `LISTEN_FDNAMES`, in the order of
    /// the configuration. A slot that was not prepared has no TCP sockets.
    ///
    /// A TCP socket is called `tcp-127.0.0.1-8000` (`tcp-[__1]-8000`: names must not contain colons), a Unix
    /// socket `unix-/run/app.sock`, an inherited one keeps its name.
    pub fn for_slot(&self, slot: u16) -> Vec<(String, BorrowedFd<'_>)> {
        let own = self.entries.iter().filter_map(|entry| {
            let place = if entry.group.is_shared() { 0 } else { usize::from(slot) };
            entry.sockets.get(place).map(|socket| (entry.group.name().to_owned(), socket.as_fd()))
        });
        own.collect()
    }

    /// The listening sockets of other slots than `slot`, each slot's together: those of slots below `workers` first, beginning
    /// after `slot` and around the ring, then those of retired slots. With each the number of its slot.
    pub fn siblings(&self, slot: u16, workers: u16) -> Vec<(u16, BorrowedFd<'_>)> {
        let open = self.entries.iter().map(|entry| entry.group.open_slots()).max().unwrap_or(0);
        let ring = (slot + 1..workers).chain(0..slot.min(workers));
        let others = ring.chain(workers..open).filter(|other| *other != slot);
        others
            .flat_map(|other| {
                self.entries.iter().filter_map(move |entry| {
                    let listens = other < entry.group.open_slots();
                    let socket = entry.sockets.get(usize::from(other)).filter(|_| listens)?;
                    Some((other, socket.as_fd()))
                })
            })
            .collect()
    }

    /// Has the sockets of slots `0..slots` listen, in this order, with this set's backlog. Those that listen
    /// already go on. A slot that was opened stays open: to take it out of service, [steer](Self::steer) away.
    ///
    /// # Errors
    /// The address whose listen(2) failed. The sockets before it listen.
    pub fn open(&self, slots: u16) -> Result<(), ListenError> {
        self.entries.iter().try_for_each(|entry| entry.group.open(slots, self.backlog))
    }

    /// Has new connections go to the slots in `rotation` only, in equal shares. Live at once, for all generations
    /// that share the address; a connection that has begun its handshake stays where it is. An empty rotation
    /// changes nothing: there is nowhere to steer to. Shared sockets need no steering.
    ///
    /// # Errors
    /// When a slot in `rotation` is not open, or the kernel refuses the program. What was steered before remains.
    pub fn steer(&self, rotation: &[u16]) -> Result<Steered, SteerError> {
        let mut outcome = Steered::Unchanged;
        for entry in &self.entries {
            if entry.group.steer(rotation)? == Steered::Changed {
                outcome = Steered::Changed;
            }
        }
        Ok(outcome)
    }

    /// Where the server can be reached, in the order of the configuration, for people and for tests:
    /// `127.0.0.1:8000` (the real port when 0 was asked for), `[::1]:8000`, `unix:/run/app.sock`; for an
    /// inherited descriptor, the address that it is bound to.
    pub fn describe(&self) -> Vec<String> {
        self.entries.iter().map(|entry| entry.group.describe()).collect()
    }
}

#[cfg(test)]
mod tests;
