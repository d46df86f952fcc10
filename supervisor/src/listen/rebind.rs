//! Rebinds slots whose listening socket was shut down.
//!
//! shutdown(2), or connect(2) to no address, ends a listening socket for all processes that hold
//! it, and a worker holds its slot's. Such a socket leaves the kernel's group, whose last member
//! takes its index, and accepts nothing any more. The slot gets a new socket, and the workers that
//! hold the old one must be replaced.

use super::error::Operation;
use super::reuseport_group::{Members, ReuseportGroup, listen, listens};
use super::{AddressSockets, ListenError, ListenProblem, ListenSet, bpf, tcp};
use std::rc::Rc;

impl ListenSet {
    /// Whether a socket of this slot was shut down.
    pub(crate) fn is_shut(&self, slot: u16) -> bool {
        let own = |group: &AddressSockets| group.slots().is_some_and(|slots| slots.is_shut(slot));
        self.entries.iter().any(|entry| own(&entry.address))
    }

    /// Replaces sockets that were shut down, in the kernel's group and in this set. Call it on all
    /// sets of a server; the first call binds. The addresses must be
    /// [steered](Self::steer_address) again afterwards.
    ///
    /// # Errors
    /// The address for which no new socket can be bound; its slots share what is left.
    pub(crate) fn rebind_shut_down(&mut self) -> Result<(), ListenError> {
        for entry in &mut self.entries {
            if let Some(slots) = entry.address.slots() {
                slots
                    .rebind_shut_down()
                    .map_err(|problem| ListenError::new(&entry.address.describe(), problem))?;
                let known = entry.sockets.len();
                entry.sockets = slots.sockets();
                entry.sockets.truncate(known);
            }
        }
        Ok(())
    }
}

impl ReuseportGroup {
    fn is_shut(&self, slot: u16) -> bool {
        let members = self.members.borrow();
        let slot = usize::from(slot);
        members.indices.get(slot).is_some_and(Option::is_some) && !listens(&members.sockets[slot])
    }

    fn rebind_shut_down(&self) -> Result<(), ListenProblem> {
        let mut members = self.members.borrow_mut();
        let members = &mut *members;
        let shut =
            |slot: &usize| members.indices[*slot].is_some() && !listens(&members.sockets[*slot]);
        let mut lost: Vec<usize> = (0..members.indices.len()).filter(shut).collect();
        // The indices of the others depend on the order in which these left.
        let in_order = match &members.shutdowns {
            Some(shutdowns) if lost.len() > 1 => shutdowns.slots(members.indices.len()),
            _ => Vec::new(),
        };
        let position = |slot: &usize| in_order.iter().position(|other| other == slot);
        let known = lost.len() <= 1 || lost.iter().all(|slot| position(slot).is_some());
        lost.sort_by_key(position);
        for slot in &lost {
            members.leave(*slot);
        }
        if !known {
            members.scatter();
        }
        for slot in lost {
            let socket = tcp::bind(self.address)?;
            members
                .join(slot, socket)
                .map_err(|errno| ListenProblem::System {
                    operation: Operation::Listen,
                    errno,
                })?;
        }
        Ok(())
    }
}

impl Members {
    /// Takes note of a slot's socket that has left the group: the last member has taken its index.
    fn leave(&mut self, slot: usize) {
        let Some(index) = self.indices[slot].take() else {
            return;
        };
        self.count -= 1;
        if let Some(shutdowns) = &self.shutdowns {
            shutdowns.forget(&self.sockets[slot]);
        }
        let last = Some(self.count);
        let others = self.indices.iter_mut().chain([&mut self.steering_index]);
        others
            .filter(|other| **other == last)
            .for_each(|other| *other = Some(index));
        // The program fits the old indices only.
        self.steered.clear();
    }

    /// Gives a slot another socket, which joins the group as its last member.
    fn join(&mut self, slot: usize, socket: std::os::fd::OwnedFd) -> Result<(), nix::errno::Errno> {
        listen(&socket, self.backlog)?;
        if self.steering_index.is_some() {
            let _ = prefork_os::lock_filter(&socket);
        }
        self.sockets[slot] = Rc::new(socket);
        self.watch(slot);
        self.indices[slot] = Some(self.count);
        self.count += 1;
        Ok(())
    }

    /// Gives up steering, since the indices are unknown: all slots get connections, and the
    /// steering socket leaves the group.
    fn scatter(&mut self) {
        self.scattered = true;
        if let Some(steering) = self.steering.take() {
            let others = self.count - u16::from(self.steering_index.take().is_some());
            let _ = bpf::attach(&steering, &(0..others).collect::<Vec<_>>());
            self.count = others;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ListenSet, Listeners};
    use crate::config::Bind;
    use std::io::Read;
    use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
    use std::os::fd::BorrowedFd;

    fn set(slots: u16) -> (ListenSet, SocketAddr) {
        let address = Bind::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 0,
        };
        let mut listeners = Listeners::new(None, Vec::new());
        let set = listeners.prepare(&[address], 64, slots).expect("bound");
        set.open(slots).expect("listening");
        let address = set.describe()[0].parse().expect("an address");
        (set, address)
    }

    fn listener(set: &ListenSet, slot: u16) -> TcpListener {
        let sockets: Vec<(String, BorrowedFd<'_>)> = set.for_slot(slot);
        TcpListener::from(sockets[0].1.try_clone_to_owned().expect("a copy"))
    }

    /// Demands that connections which are steered to a slot are accepted from its socket, and from
    /// no other.
    fn assert_steered(set: &ListenSet, address: SocketAddr, slots: u16) {
        for slot in 0..slots {
            set.steer(&[slot]).expect("steered");
            for _ in 0..8 {
                let client = TcpStream::connect(address).expect("no connection is dropped");
                let listener = listener(set, slot);
                listener.set_nonblocking(false).expect("our own");
                let (server, peer) = listener.accept().expect("a connection");
                assert_eq!(peer, client.local_addr().expect("connected"), "slot {slot}");
                drop(server);
                let mut end = Vec::new();
                let mut client = client;
                client.read_to_end(&mut end).expect("an orderly end");
            }
        }
    }

    #[test]
    fn a_socket_that_was_shut_down_is_replaced_whichever_it_is() {
        for victim in 0..4 {
            let (mut set, address) = set(4);
            set.steer(&[0, 1, 2, 3]).expect("steered");
            let shut =
                |set: &ListenSet| (0..4).filter(|slot| set.is_shut(*slot)).collect::<Vec<_>>();
            assert!(shut(&set).is_empty());
            let old = listener(&set, victim);
            socket2::SockRef::from(&old)
                .shutdown(Shutdown::Both)
                .expect("shut down");
            assert_eq!(shut(&set), [victim]);
            set.rebind_shut_down().expect("rebound");
            assert!(shut(&set).is_empty());
            assert_steered(&set, address, 4);
        }
    }

    #[test]
    fn sockets_that_were_shut_down_one_after_the_other_are_replaced() {
        let (mut set, address) = set(4);
        set.steer(&[0, 1, 2, 3]).expect("steered");
        for victim in [2, 0, 3, 2] {
            socket2::SockRef::from(&listener(&set, victim))
                .shutdown(Shutdown::Both)
                .expect("shut down");
            set.rebind_shut_down().expect("rebound");
        }
        assert_steered(&set, address, 4);
    }

    #[test]
    fn sockets_that_were_shut_down_together_are_replaced_in_any_order() {
        for victims in [[2, 0, 3], [0, 2, 1], [3, 2, 1], [0, 1, 2], [1, 3, 0]] {
            let (mut set, address) = set(4);
            set.steer(&[0, 1, 2, 3]).expect("steered");
            for round in 0..2 {
                for victim in victims.iter().take(3 - round) {
                    socket2::SockRef::from(&listener(&set, *victim))
                        .shutdown(Shutdown::Both)
                        .expect("shut down");
                }
                set.rebind_shut_down().expect("rebound");
                assert_steered(&set, address, 4);
            }
        }
    }

    #[test]
    fn all_sockets_that_were_shut_down_together_are_replaced() {
        let (mut set, address) = set(3);
        set.steer(&[0, 1, 2]).expect("steered");
        for victim in [1, 2, 0] {
            socket2::SockRef::from(&listener(&set, victim))
                .shutdown(Shutdown::Both)
                .expect("shut down");
        }
        set.rebind_shut_down().expect("rebound");
        assert_steered(&set, address, 3);
    }

    #[test]
    fn where_the_order_is_unknown_every_slot_gets_a_share() {
        let (mut set, address) = set(4);
        set.steer(&[0, 1, 2, 3]).expect("steered");
        for victim in [2, 0] {
            let slots = set.entries[0].address.slots().expect("slots of its own");
            slots.members.borrow_mut().shutdowns = None;
            socket2::SockRef::from(&listener(&set, victim))
                .shutdown(Shutdown::Both)
                .expect("shut down");
        }
        set.rebind_shut_down().expect("rebound");
        assert!((0..4).all(|slot| !set.is_shut(slot)));
        assert!(set.steer(&[0, 1]).is_err(), "the indices are unknown");
        let _clients: Vec<_> = (0..64)
            .map(|_| TcpStream::connect(address).expect("no connection is dropped"))
            .collect();
        assert_eq!(
            (0..4)
                .filter_map(|slot| set.queue_length(slot))
                .sum::<u32>(),
            64
        );
    }
}
