//! Listening sockets: from addresses to the descriptors that workers inherit.
//!
//! [`Listeners`] knows every address that the server has served. A generation asks it to
//! [prepare](Listeners::prepare) its addresses and gets a [`ListenSet`], which keeps their sockets
//! alive. An address that a later generation does not name is closed when the last set that names
//! it is dropped, so its queue is served as long as the old workers live. An address that stays
//! keeps the same sockets.
//!
//! A TCP address has one SO_REUSEPORT socket per slot, and a steering socket, through which it is
//! [steered](ListenSet::steer_address). None is closed while the address lives: a handshake in
//! flight would die with it. A Unix address or an inherited descriptor is one socket, shared by all
//! slots.
//!
//! Nothing here accepts, logs, or decides which slots are open. Nothing blocks, except that host
//! and user names are resolved by the C library, which may ask a server.

mod accept_queue;
mod address;
mod address_sockets;
mod bpf;
mod error;
mod inherited;
mod lock;
mod probe;
mod rebind;
mod reuseport_group;
mod shutdown_order;
mod socket_label;
mod stored;
mod tcp;
#[cfg(test)]
mod tests;
mod unix;
mod upgrade_state;

pub(crate) use address_sockets::AddressSockets;
pub(crate) use bpf::{SteerError, Steered};
pub(crate) use error::{ListenError, ListenProblem};
pub(crate) use probe::{Free, probe};
pub(crate) use stored::StoredSockets;

use crate::config::Bind;
use address::AddressKey;
use prefork_protocol::environment::Inherited;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::path::PathBuf;
use std::rc::{Rc, Weak};

/// All listening sockets of a server, over its whole life.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    runtime_dir: Option<PathBuf>,
    inherited: Vec<Inherited>,
    stored: RefCell<StoredSockets>,
    /// Those that some [`ListenSet`] names; dropped ones are removed by the next `prepare`.
    addresses: Vec<Weak<AddressSockets>>,
}

/// The sockets of one generation. Dropping the last set that names an address closes it.
#[derive(Debug)]
pub(crate) struct ListenSet {
    entries: Vec<Entry>,
    backlog: u32,
}

/// One address of the server, the same in all sets that name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AddressId(*const AddressSockets);

#[derive(Debug)]
struct Entry {
    address: Rc<AddressSockets>,
    /// The name that this generation gives it, for workers.
    label: Option<String>,
    /// The address's sockets when the set was made: one per slot, or one for all.
    sockets: Vec<Rc<OwnedFd>>,
}

impl Listeners {
    /// Creates an empty set of listeners. Locks against a second server are held in `runtime_dir`,
    /// if it exists and is writable; `inherited` is what `fd://` addresses may name.
    pub(crate) fn new(runtime_dir: Option<PathBuf>, inherited: Vec<Inherited>) -> Self {
        Self {
            runtime_dir,
            inherited,
            ..Self::default()
        }
    }

    /// Adds the stored sockets of an earlier process. Preparing an address reuses them, with their
    /// queues, and binds only what is missing.
    #[must_use]
    pub(crate) fn with_stored(self, stored: StoredSockets) -> Self {
        Self {
            stored: RefCell::new(stored),
            ..self
        }
    }

    /// Closes stored sockets that no address has claimed. Returns the lines to log about stored
    /// sockets. Call it once the first generation is prepared.
    pub(crate) fn close_unclaimed(&mut self) -> Vec<String> {
        self.stored.get_mut().close_unclaimed()
    }

    /// Returns the names of the sockets that came from an earlier process, each with its inode.
    pub(crate) fn stored_names(&self) -> Vec<(String, u64)> {
        self.stored.borrow().names().to_vec()
    }

    /// Returns the listening sockets of all addresses that are served, with the names under which a
    /// service manager can store them. Those that must not be missing come first.
    pub(crate) fn storable_sockets(&self) -> Vec<(String, Rc<OwnedFd>)> {
        self.addresses
            .iter()
            .filter_map(Weak::upgrade)
            .flat_map(|group| group.storable_sockets())
            .collect()
    }

    /// Leaves the files of Unix sockets behind, because their sockets are stored.
    pub(crate) fn leave_files(&self) {
        self.addresses
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|group| group.leave_file());
    }

    /// Creates the sockets of a generation, all or nothing: binds what is new, and reuses what
    /// exists. Each TCP address gets sockets for at least `slots` slots. Nothing listens before
    /// [`ListenSet::open`].
    ///
    /// An address with port 0 gets a free port, which it keeps as long as a set names it. A host
    /// name stands for all its addresses, of which at least one must exist on this machine. To
    /// grow, prepare the same addresses with more slots.
    ///
    /// # Errors
    /// The first address that cannot be bound, and why. Nothing has changed then.
    pub(crate) fn prepare(
        &mut self,
        addresses: &[Bind],
        backlog: u32,
        slots: u16,
    ) -> Result<ListenSet, ListenError> {
        let mut live: Vec<Rc<AddressSockets>> =
            self.addresses.iter().filter_map(Weak::upgrade).collect();
        let mut chosen: Vec<(Rc<AddressSockets>, Option<&str>)> = Vec::new();
        for address in addresses {
            for group in self.sockets_of(address, &mut live)? {
                if !chosen.iter().any(|(other, _)| Rc::ptr_eq(other, &group)) {
                    chosen.push((group, address.name()));
                }
            }
        }
        // Bind sockets for more slots first and add them last, so that a failure changes no
        // address.
        let growth = chosen
            .iter()
            .map(|(group, _)| group.more_sockets(slots))
            .collect::<Result<Vec<_>, ListenError>>()?;
        let grown = chosen.into_iter().zip(growth);
        let entries = grown.map(|((group, name), more)| Entry {
            sockets: group.add(more),
            address: group,
            label: name.map(str::to_owned),
        });
        let entries: Vec<Entry> = entries.collect();
        for group in entries.iter().map(|entry| &entry.address) {
            if let Some(limit) = group.limit(slots) {
                self.stored.get_mut().remark(format!(
                    "{} came back with sockets for {limit} slots, and no more can be bound \
                     (another user's, or a privilege is gone); further slots share them",
                    group.describe()
                ));
            }
        }
        self.addresses = live.iter().map(Rc::downgrade).collect();
        Ok(ListenSet { entries, backlog })
    }

    /// Creates the sockets of addresses that no worker serves, all or nothing. They listen, and
    /// share their address with no other socket. Asking again for the same `purpose` returns the
    /// same sockets.
    ///
    /// # Errors
    /// The first address that cannot be bound, and why. Nothing has changed then.
    pub(crate) fn prepare_exclusive(
        &mut self,
        purpose: &str,
        addresses: &[Bind],
        backlog: u32,
    ) -> Result<ListenSet, ListenError> {
        let mut live: Vec<Rc<AddressSockets>> =
            self.addresses.iter().filter_map(Weak::upgrade).collect();
        let mut chosen: Vec<Rc<AddressSockets>> = Vec::new();
        for address in addresses {
            let groups = match address {
                Bind::Tcp { host, port } => {
                    let targets = tcp::resolve(host, *port)
                        .map_err(|problem| ListenError::of(address, problem))?;
                    bind_present(&targets, |target| {
                        let key = AddressKey::Tcp(target);
                        let is_it = |group: &&Rc<AddressSockets>| {
                            group.answers_to(&key)
                                && group.is_exclusive()
                                && group.name() == purpose
                        };
                        if let Some(group) = live.iter().find(is_it) {
                            return Ok(Rc::clone(group));
                        }
                        let stored = self.stored.borrow_mut().take_exclusive(purpose, target);
                        let bound = AddressSockets::exclusive(
                            purpose,
                            target,
                            stored,
                            backlog,
                            self.runtime_dir.as_deref(),
                        );
                        let group = Rc::new(bound?);
                        live.push(Rc::clone(&group));
                        Ok(group)
                    })?
                }
                Bind::Unix { .. } | Bind::Fd(_) | Bind::Inherited(_) | Bind::Named(..) => {
                    self.sockets_of(address, &mut live)?
                }
            };
            chosen.extend(groups);
        }
        let entries = chosen.into_iter().map(|group| Entry {
            sockets: group.add(Vec::new()),
            address: group,
            label: None,
        });
        let set = ListenSet {
            entries: entries.collect(),
            backlog,
        };
        set.open(1)?;
        self.addresses = live.iter().map(Rc::downgrade).collect();
        Ok(set)
    }

    /// Returns the sockets of one configured address, which may resolve to several. Those that
    /// are not `live` are bound now, and added there.
    fn sockets_of(
        &self,
        address: &Bind,
        live: &mut Vec<Rc<AddressSockets>>,
    ) -> Result<Vec<Rc<AddressSockets>>, ListenError> {
        let error = |problem| ListenError::of(address, problem);
        match address {
            Bind::Named(address, _) => self.sockets_of(address, live),
            Bind::Tcp { host, port } => {
                let targets = tcp::resolve(host, *port).map_err(error)?;
                bind_present(&targets, |target| {
                    get_or_bind(&AddressKey::Tcp(target), live, |live| {
                        let stored = self.stored.borrow_mut().take_tcp(target);
                        if let Some((address, parts)) = stored {
                            return AddressSockets::tcp_stored(
                                target,
                                address,
                                parts,
                                self.runtime_dir.as_deref(),
                            );
                        }
                        let ours = live.iter().any(|group| group.overlaps(target));
                        AddressSockets::tcp(target, ours, self.runtime_dir.as_deref())
                    })
                })
            }
            Bind::Unix {
                path,
                mode,
                owner,
                group,
            } => {
                let wanted = unix::Wanted::new(path, *mode, owner.as_deref(), group.as_deref())
                    .map_err(error)?;
                let found = self.unix(&wanted, live).map_err(error)?;
                if found.has_permissions(&wanted) {
                    Ok(vec![found])
                } else {
                    Err(error(ListenProblem::OtherPermissions))
                }
            }
            Bind::Fd(_) | Bind::Inherited(_) => inherited::find(&self.inherited, address)
                .map_err(error)?
                .into_iter()
                .map(|socket| {
                    get_or_bind(&inherited::key(socket), live, |_| {
                        AddressSockets::inherited(socket)
                    })
                    .map_err(error)
                })
                .collect(),
        }
    }

    /// Returns the live Unix socket that this path leads to, or binds one. A path may lead to a
    /// socket by another spelling, such as /var/run for /run: bound again, it would replace that
    /// one. A socket whose file is gone is of no use to clients, so it is bound again.
    fn unix(
        &self,
        wanted: &unix::Wanted,
        live: &mut Vec<Rc<AddressSockets>>,
    ) -> Result<Rc<AddressSockets>, ListenProblem> {
        if let Some(known) = live.iter().find(|group| group.is_file_at(&wanted.path)) {
            return Ok(Rc::clone(known));
        }
        let key = AddressKey::Unix(wanted.path.clone());
        // The lock is its predecessor's as long as that one lives.
        let again = live.iter().any(|group| group.answers_to(&key));
        let directory = self.runtime_dir.as_deref().filter(|_| !again);
        let bound = Rc::new(self.bind_unix(wanted, directory)?);
        live.push(Rc::clone(&bound));
        Ok(bound)
    }

    fn bind_unix(
        &self,
        wanted: &unix::Wanted,
        directory: Option<&Path>,
    ) -> Result<AddressSockets, ListenProblem> {
        let stored = self.stored.borrow_mut().take_file(&wanted.path);
        if let Some((identity, socket)) = stored {
            if let Some(group) = AddressSockets::unix_stored(wanted, identity, socket, directory)? {
                return Ok(group);
            }
            self.stored.borrow_mut().remark(format!(
                "closing the stored socket of unix:{}: its file is gone \
                 (RuntimeDirectoryPreserve=restart keeps it)",
                wanted.path.display()
            ));
        }
        AddressSockets::unix(wanted, directory)
    }
}

/// Binds what a name resolves to, without those of several addresses that this machine does not
/// have, such as localhost's `::1` where IPv6 is off.
fn bind_present(
    targets: &[SocketAddr],
    mut bind: impl FnMut(SocketAddr) -> Result<Rc<AddressSockets>, ListenProblem>,
) -> Result<Vec<Rc<AddressSockets>>, ListenError> {
    let mut found = Vec::new();
    let mut missing = None;
    for target in targets {
        match bind(*target) {
            Ok(group) => found.push(group),
            Err(problem) if targets.len() > 1 && problem.is_no_such_address() => {
                missing = Some(ListenError::new(target, problem));
            }
            Err(problem) => return Err(ListenError::new(target, problem)),
        }
    }
    match missing {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

impl Entry {
    /// Returns the name that workers know it by.
    fn name(&self) -> &str {
        self.label.as_deref().unwrap_or(self.address.name())
    }
}

impl ListenSet {
    /// Returns the Unix sockets whose files are gone.
    pub(crate) fn lost_files(&self) -> impl Iterator<Item = String> {
        self.entries
            .iter()
            .filter(|entry| entry.address.lost_file())
            .map(|entry| entry.address.describe())
    }

    /// Returns the sockets that a worker of `slot` accepts from, with their names for
    /// `LISTEN_FDNAMES`, in the order of the configuration. A slot that was not prepared has no TCP
    /// sockets.
    ///
    /// A TCP socket is called `tcp-127.0.0.1-8000` (`tcp-[__1]-8000`: names must not contain
    /// colons), a Unix socket `unix-/run/app.sock`, an inherited one keeps its name; unless the
    /// configuration names it.
    pub(crate) fn for_slot(&self, slot: u16) -> Vec<(String, BorrowedFd<'_>)> {
        let own = self.entries.iter().filter_map(|entry| {
            let index = match entry.address.limit(slot + 1) {
                _ if entry.address.is_shared() => 0,
                Some(limit) => slot % limit,
                None => slot,
            };
            entry
                .sockets
                .get(usize::from(index))
                .map(|socket| (entry.name().to_owned(), socket.as_fd()))
        });
        own.collect()
    }

    /// Returns the listening sockets of all slots but `slot`, each with the number of its slot:
    /// those of slots below `workers` first, beginning after `slot` and wrapping around, then those
    /// of retired slots.
    pub(crate) fn siblings(&self, slot: u16, workers: u16) -> Vec<(u16, BorrowedFd<'_>)> {
        let open = self
            .entries
            .iter()
            .map(|entry| entry.address.open_slots())
            .max()
            .unwrap_or(0);
        let ring = (slot + 1..workers).chain(0..slot.min(workers));
        let others = ring.chain(workers..open).filter(|other| *other != slot);
        others
            .flat_map(|other| {
                self.entries.iter().filter_map(move |entry| {
                    let listens = other < entry.address.open_slots();
                    let socket = entry.sockets.get(usize::from(other)).filter(|_| listens)?;
                    Some((other, socket.as_fd()))
                })
            })
            .collect()
    }

    /// Makes the sockets of slots `0..slots` listen, in this order, with this set's backlog. Those
    /// that listen already are unaffected. A slot that was opened stays open: to take it out of
    /// service, [steer](Self::steer_address) away.
    ///
    /// # Errors
    /// The address whose listen(2) failed. The sockets before it listen.
    pub(crate) fn open(&self, slots: u16) -> Result<(), ListenError> {
        self.entries
            .iter()
            .try_for_each(|entry| entry.address.open(slots, self.backlog))
    }

    /// Steers all addresses of this set: new connections go to the slots in `rotation` only, in
    /// equal shares. It takes effect at once, for all generations that share the address; a
    /// connection that has begun its handshake stays where it is. An empty rotation changes
    /// nothing: there is nowhere to steer to. Shared sockets need no steering.
    ///
    /// # Errors
    /// When a slot in `rotation` is not open, or the kernel refuses the program. The previous
    /// steering remains in effect.
    #[cfg(test)]
    pub(crate) fn steer(&self, rotation: &[u16]) -> Result<Steered, SteerError> {
        let mut outcome = Steered::Unchanged;
        for entry in &self.entries {
            if entry.address.steer(rotation)? == Steered::Changed {
                outcome = Steered::Changed;
            }
        }
        Ok(outcome)
    }

    /// Returns the addresses of this set, in the order of the configuration.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = AddressId> + '_ {
        self.entries
            .iter()
            .map(|entry| AddressId(Rc::as_ptr(&entry.address)))
    }

    /// Steers one address of this set to the slots in `rotation`, unless it is steered so already.
    /// It takes effect at once, for all generations that share the address; a connection that has
    /// begun its handshake stays where it is.
    ///
    /// `None` blackholes the address: connections in its queues, and handshakes in flight, stay
    /// there. A client that connects later retries every few seconds, and is refused when the
    /// address is closed.
    ///
    /// # Errors
    /// When a slot in `rotation` is not open, or the kernel refuses the program. The previous
    /// steering remains in effect.
    pub(crate) fn steer_address(
        &self,
        address: AddressId,
        rotation: Option<&[u16]>,
    ) -> Result<Steered, SteerError> {
        let entry = self
            .entries
            .iter()
            .find(|entry| Rc::as_ptr(&entry.address) == address.0);
        entry.map_or(Ok(Steered::Unchanged), |entry| match rotation {
            Some(rotation) => entry.address.steer_if_changed(rotation),
            None => entry.address.blackhole(),
        })
    }

    /// Returns where the server can be reached, in the order of the configuration, for messages:
    /// `127.0.0.1:8000` (the real port when 0 was asked for), `[::1]:8000`, `unix:/run/app.sock`;
    /// for an inherited descriptor, the address that it is bound to.
    pub(crate) fn describe(&self) -> Vec<String> {
        self.entries
            .iter()
            .map(|entry| entry.address.describe())
            .collect()
    }
}

/// Returns the live sockets of an address, or binds them and adds them to `live`.
fn get_or_bind(
    key: &AddressKey,
    live: &mut Vec<Rc<AddressSockets>>,
    bind: impl FnOnce(&[Rc<AddressSockets>]) -> Result<AddressSockets, ListenProblem>,
) -> Result<Rc<AddressSockets>, ListenProblem> {
    let known = |sockets: &&Rc<AddressSockets>| sockets.answers_to(key) && !sockets.is_exclusive();
    if let Some(known) = live.iter().find(known) {
        return Ok(Rc::clone(known));
    }
    let bound = Rc::new(bind(live)?);
    live.push(Rc::clone(&bound));
    Ok(bound)
}
