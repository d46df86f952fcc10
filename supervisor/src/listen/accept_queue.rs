//! The lengths of accept queues, from the kernel, without the worker's help.

use super::ListenSet;
use prefork_os::listen_queue;
use std::os::fd::AsFd;

impl ListenSet {
    /// Returns how many connections wait to be accepted from the sockets that are this slot's own;
    /// `None` when it has none, or none that listens. A queue that all slots share says nothing
    /// about one of them.
    pub(crate) fn queue_length(&self, slot: u16) -> Option<u32> {
        let own = self
            .entries
            .iter()
            .filter(|entry| !entry.address.is_shared());
        let sockets = own.filter_map(|entry| entry.sockets.get(usize::from(slot)));
        // A socket that does not listen yet has no queue, and is no error.
        let lengths = sockets.filter_map(|socket| listen_queue(socket.as_fd()).ok().flatten());
        lengths
            .map(|queue| queue.length)
            .reduce(u32::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Listeners;
    use crate::config::Bind;
    use std::net::{SocketAddr, TcpStream};
    use std::time::{Duration, Instant};

    /// The queue grows when the handshake's last packet has been handled, a moment after the client
    /// has connected.
    fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(
                Instant::now() < end,
                "{what} did not come about within 20 s"
            );
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_slots_queue_is_counted_until_it_is_accepted() {
        let address = Bind::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 0,
        };
        let set = Listeners::new(None, Vec::new())
            .prepare(&[address], 64, 3)
            .expect("bound");
        assert_eq!(set.queue_length(0), None, "it does not listen yet");
        set.open(2).expect("listening");
        set.steer(&[1]).expect("steered");
        let address: SocketAddr = set.describe()[0].parse().expect("an address");
        let clients: Vec<_> = (0..3)
            .map(|_| TcpStream::connect(address).expect("connected"))
            .collect();
        wait_for("a queue of three", || set.queue_length(1) == Some(3));
        assert_eq!(
            (
                set.queue_length(0),
                set.queue_length(2),
                set.queue_length(9)
            ),
            (Some(0), None, None)
        );
        for (_, socket) in set.for_slot(1) {
            let copy = socket.try_clone_to_owned().expect("a copy");
            std::net::TcpListener::from(copy)
                .accept()
                .expect("a connection");
        }
        wait_for("a queue of two", || set.queue_length(1) == Some(2));
        drop(clients);
        assert_eq!(
            set.queue_length(1),
            Some(2),
            "a closed connection still waits to be accepted"
        );
    }

    #[test]
    fn a_socket_that_all_slots_share_has_no_queue_of_a_slot() {
        let dir = tempfile::tempdir().expect("a directory");
        let address = Bind::Unix {
            path: dir.path().join("app.sock"),
            mode: None,
            owner: None,
            group: None,
        };
        let set = Listeners::new(None, Vec::new())
            .prepare(&[address], 64, 2)
            .expect("bound");
        set.open(2).expect("listening");
        assert_eq!(set.queue_length(0), None);
    }
}
