//! Listening sockets: from addresses to the descriptors that workers inherit.
//!
//! [`Listeners`] knows every address of the server's life. A generation asks it to [prepare](Listeners::prepare)
//! its addresses and gets a [`ListenSet`], which keeps their sockets alive: an address that a later generation
//! does not name is closed when the last set that names it is dropped, so its queue is served as long as the old
//! workers live. An address that stays keeps its very sockets.
//!
//! A TCP address has one SO_REUSEPORT socket per slot, and one more through which it is
//! [steered](ListenSet::steer). None is closed while the address lives: a handshake in flight would die with it.
//! A Unix address or an inherited descriptor is one socket, shared by all slots.
//!
//! Nothing here accepts, logs, or decides which slots are open. Nothing blocks, except that host and user names
//! are looked up the C library's way, which may ask a server.

pub(crate) mod address;
pub(crate) mod backlog;
pub(crate) mod bpf;
pub(crate) mod error;
pub(crate) mod group;
pub(crate) mod handover;
pub(crate) mod inherited;
pub(crate) mod lock;
pub(crate) mod repair;
pub(crate) mod rotation;
pub(crate) mod slots;
pub(crate) mod stored;
pub(crate) mod tcp;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod unix;

pub(crate) use crate::listen::bpf::{SteerError, Steered};
pub(crate) use crate::listen::stored::{Kept, inode};
pub(crate) use address::{Address, FdSource};
pub(crate) use error::{Act, ListenError, Problem};

pub(crate) use group::Group;
use group::Key;
use prefork_protocol::environment::Inherited;
use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::{Rc, Weak};

/// The name of what is given to a service manager only to see whether it keeps anything.
pub(crate) const PROBE: &str = "prefork-probe";

/// All listening sockets of a server, over its whole life.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    runtime_dir: Option<PathBuf>,
    inherited: Vec<Inherited>,
    kept: RefCell<Kept>,
    /// Those that some [`ListenSet`] names; the dead ones are forgotten at the next `prepare`.
    groups: Vec<Weak<Group>>,
}

/// The sockets of one generation. Dropping the last set that names an address closes the address.
#[derive(Debug)]
pub(crate) struct ListenSet {
    entries: Vec<Entry>,
    backlog: u32,
}

/// One address of the server, the same in all sets that name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AddressId(*const Group);

#[derive(Debug)]
struct Entry {
    group: Rc<Group>,
    /// The group's sockets when the set was made: one per slot, or one for all.
    sockets: Vec<Rc<OwnedFd>>,
}

impl Listeners {
    /// Knows no address yet. Locks against a second server are held in `runtime_dir`, if it is there and can be
    /// written; `inherited` is what `fd://` addresses may name.
    pub(crate) fn new(runtime_dir: Option<PathBuf>, inherited: Vec<Inherited>) -> Self {
        Self {
            runtime_dir,
            inherited,
            ..Self::default()
        }
    }

    /// Takes sockets that an earlier process had. Addresses that are prepared find them there, with their queues,
    /// and bind only what is missing.
    #[must_use]
    pub(crate) fn with_kept(self, kept: Kept) -> Self {
        Self {
            kept: RefCell::new(kept),
            ..self
        }
    }

    /// Closes the sockets of an earlier process that no address has claimed, and gives what is to be logged about
    /// those that were, and were not, taken over. To be called when the first generation is prepared.
    pub(crate) fn settle_kept(&mut self) -> Vec<String> {
        self.kept.get_mut().settle()
    }

    /// The names of the sockets that came from an earlier process, each with its socket's inode.
    pub(crate) fn kept_names(&self) -> Vec<(String, u64)> {
        self.kept.borrow().names().to_vec()
    }

    /// The listening sockets of all addresses that are served, with names under which a service manager can keep
    /// them for the next supervisor: those that must not be missing first.
    pub(crate) fn kept_sockets(&self) -> Vec<(String, Rc<OwnedFd>)> {
        self.groups
            .iter()
            .filter_map(Weak::upgrade)
            .flat_map(|group| group.kept_sockets())
            .collect()
    }

    /// Leaves the files of Unix sockets behind: somebody keeps the sockets.
    pub(crate) fn leave_files(&self) {
        self.groups
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|group| group.leave_file());
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
    pub(crate) fn prepare(
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
        let growth = chosen
            .iter()
            .map(|group| group.more_sockets(slots))
            .collect::<Result<Vec<_>, ListenError>>()?;
        let grown = chosen.into_iter().zip(growth);
        let entries = grown.map(|(group, more)| Entry {
            sockets: group.add(more),
            group,
        });
        let entries: Vec<Entry> = entries.collect();
        for group in entries.iter().map(|entry| &entry.group) {
            if let Some(limit) = group.limit(slots) {
                self.kept.get_mut().remark(format!(
                    "{} came back with sockets for {limit} slots, and no more can be bound (another user's, or a privilege is gone); further slots share them",
                    group.describe()
                ));
            }
        }
        self.groups = live.iter().map(Rc::downgrade).collect();
        Ok(ListenSet { entries, backlog })
    }

    /// Makes the sockets of addresses that no worker serves, all or nothing. They listen, and share their address with
    /// nobody. Whoever asks again for the same `purpose` gets the same.
    ///
    /// # Errors
    /// The first address that cannot be bound, and why. Nothing has changed then.
    pub(crate) fn prepare_alone(
        &mut self,
        purpose: &str,
        addresses: &[Address],
        backlog: u32,
    ) -> Result<ListenSet, ListenError> {
        let mut live: Vec<Rc<Group>> = self.groups.iter().filter_map(Weak::upgrade).collect();
        let mut chosen: Vec<Rc<Group>> = Vec::new();
        for address in addresses {
            let groups = match address {
                Address::Tcp { host, port } => {
                    let targets = tcp::resolve(host, *port)
                        .map_err(|problem| ListenError::new(address, problem))?;
                    let bind = |target: std::net::SocketAddr| {
                        let key = Key::Tcp(target);
                        let is_it = |group: &&Rc<Group>| {
                            group.answers_to(&key) && group.is_alone() && group.name() == purpose
                        };
                        if let Some(group) = live.iter().find(is_it) {
                            return Ok(Rc::clone(group));
                        }
                        let kept = self.kept.borrow_mut().take_alone(purpose, target);
                        let bound = Group::alone(
                            purpose,
                            target,
                            kept,
                            backlog,
                            self.runtime_dir.as_deref(),
                        );
                        let group =
                            Rc::new(bound.map_err(|problem| ListenError::new(&target, problem))?);
                        live.push(Rc::clone(&group));
                        Ok(group)
                    };
                    targets
                        .into_iter()
                        .map(bind)
                        .collect::<Result<Vec<_>, _>>()?
                }
                Address::Unix { .. } | Address::Fd(_) => self.groups_of(address, &mut live)?,
            };
            chosen.extend(groups);
        }
        let entries = chosen.into_iter().map(|group| Entry {
            sockets: group.add(Vec::new()),
            group,
        });
        let set = ListenSet {
            entries: entries.collect(),
            backlog,
        };
        set.open(1)?;
        self.groups = live.iter().map(Rc::downgrade).collect();
        Ok(set)
    }

    /// The groups of one address, bound now unless they are `live`, where new ones are added.
    fn groups_of(
        &self,
        address: &Address,
        live: &mut Vec<Rc<Group>>,
    ) -> Result<Vec<Rc<Group>>, ListenError> {
        let error = |problem| ListenError::new(address, problem);
        match address {
            Address::Tcp { host, port } => {
                let targets = tcp::resolve(host, *port).map_err(error)?;
                let mut found = Vec::new();
                let mut missing = None;
                for target in &targets {
                    match self.get_or_bind(Key::Tcp(*target), live, |live| {
                        let kept = self.kept.borrow_mut().take_tcp(*target);
                        if let Some((address, parts)) = kept {
                            return Group::tcp_again(
                                *target,
                                address,
                                parts,
                                self.runtime_dir.as_deref(),
                            );
                        }
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
            Address::Unix {
                path,
                mode,
                owner,
                group,
            } => {
                let wanted = unix::Wanted::new(path, *mode, owner.as_deref(), group.as_deref())
                    .map_err(error)?;
                let found = self
                    .get_or_bind(Key::Unix(wanted.path.clone()), live, |_| self.unix(&wanted))
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

    fn unix(&self, wanted: &unix::Wanted) -> Result<Group, Problem> {
        let directory = self.runtime_dir.as_deref();
        let kept = self.kept.borrow_mut().take_file(&wanted.path);
        if let Some((identity, socket)) = kept {
            if let Some(group) = Group::unix_again(wanted, identity, socket, directory)? {
                return Ok(group);
            }
            self.kept.borrow_mut().remark(format!(
                "closing the kept socket of unix:{}: its file is gone (RuntimeDirectoryPreserve=restart leaves it)",
                wanted.path.display()
            ));
        }
        Group::unix(wanted, directory)
    }

    fn get_or_bind(
        &self,
        key: Key,
        live: &mut Vec<Rc<Group>>,
        bind: impl FnOnce(&[Rc<Group>]) -> Result<Group, Problem>,
    ) -> Result<Rc<Group>, Problem> {
        if let Some(group) = live
            .iter()
            .find(|group| group.answers_to(&key) && !group.is_alone())
        {
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
    pub(crate) fn for_slot(&self, slot: u16) -> Vec<(String, BorrowedFd<'_>)> {
        let own = self.entries.iter().filter_map(|entry| {
            let index = match entry.group.limit(slot + 1) {
                _ if entry.group.is_shared() => 0,
                Some(limit) => slot % limit,
                None => slot,
            };
            entry
                .sockets
                .get(usize::from(index))
                .map(|socket| (entry.group.name().to_owned(), socket.as_fd()))
        });
        own.collect()
    }

    /// The listening sockets of other slots than `slot`, each slot's together: those of slots below `workers` first, beginning
    /// after `slot` and around the ring, then those of retired slots. With each the number of its slot.
    pub(crate) fn siblings(&self, slot: u16, workers: u16) -> Vec<(u16, BorrowedFd<'_>)> {
        let open = self
            .entries
            .iter()
            .map(|entry| entry.group.open_slots())
            .max()
            .unwrap_or(0);
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
    pub(crate) fn open(&self, slots: u16) -> Result<(), ListenError> {
        self.entries
            .iter()
            .try_for_each(|entry| entry.group.open(slots, self.backlog))
    }

    /// Has new connections go to the slots in `rotation` only, in equal shares. Live at once, for all generations
    /// that share the address; a connection that has begun its handshake stays where it is. An empty rotation
    /// changes nothing: there is nowhere to steer to. Shared sockets need no steering.
    ///
    /// # Errors
    /// When a slot in `rotation` is not open, or the kernel refuses the program. What was steered before remains.
    #[cfg(test)]
    pub(crate) fn steer(&self, rotation: &[u16]) -> Result<Steered, SteerError> {
        let mut outcome = Steered::Unchanged;
        for entry in &self.entries {
            if entry.group.steer(rotation)? == Steered::Changed {
                outcome = Steered::Changed;
            }
        }
        Ok(outcome)
    }

    /// The addresses of this set, in the order of the configuration.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = AddressId> + '_ {
        self.entries
            .iter()
            .map(|entry| AddressId(Rc::as_ptr(&entry.group)))
    }

    /// As [`steer`](Self::steer), for one address of this set. With `None`, nobody is connected to the address any more, while whoever is in a queue of it, or has begun to connect, stays there. A client that
    /// begins later asks again every few seconds, and is refused when the address is closed. What is so already is
    /// not done again.
    ///
    /// # Errors
    /// As [`steer`](Self::steer).
    pub(crate) fn steer_address(
        &self,
        address: AddressId,
        rotation: Option<&[u16]>,
    ) -> Result<Steered, SteerError> {
        let entry = self
            .entries
            .iter()
            .find(|entry| Rc::as_ptr(&entry.group) == address.0);
        entry.map_or(Ok(Steered::Unchanged), |entry| match rotation {
            Some(rotation) => entry.group.keep_steered(rotation),
            None => entry.group.silence(),
        })
    }

    /// Where the server can be reached, in the order of the configuration, for people and for tests:
    /// `127.0.0.1:8000` (the real port when 0 was asked for), `[::1]:8000`, `unix:/run/app.sock`; for an
    /// inherited descriptor, the address that it is bound to.
    pub(crate) fn describe(&self) -> Vec<String> {
        self.entries
            .iter()
            .map(|entry| entry.group.describe())
            .collect()
    }
}
