//! Sockets that come back from an earlier process.

use super::steering::{connect, held, slots, taker};
use super::*;
use std::os::fd::AsFd;

/// What a service manager hands to the next process: copies, in any order.
fn copies(listeners: &Listeners) -> Vec<Inherited> {
    let copy = |(name, socket): (String, Rc<OwnedFd>)| {
        inherited(&name, socket.try_clone().expect("a copy"))
    };
    let mut all: Vec<_> = listeners.storable_sockets().into_iter().map(copy).collect();
    all.reverse();
    let middle = all.len() / 2;
    all.rotate_left(middle);
    all
}

fn next(sockets: Vec<Inherited>) -> Listeners {
    let (others, stored) = StoredSockets::sort(sockets);
    assert!(others.is_empty(), "{others:?}");
    fresh().with_stored(stored)
}

/// Every slot of a set gets connections when it is asked to, and no other.
fn steers(set: &ListenSet, count: u16) {
    let workers = held(set, count);
    for slot in (0..count).chain((0..count).rev()) {
        assert_eq!(set.steer(&[slot]), Ok(Steered::Changed));
        for _ in 0..5 {
            let _client = connect(port(set));
            assert_eq!(taker(&workers), slot);
        }
    }
}

#[test]
fn the_next_process_takes_over_sockets_indices_and_queues() {
    let mut old = fresh();
    let address = tcp("127.0.0.1", 0);
    let set = old
        .prepare(std::slice::from_ref(&address), 64, 2)
        .expect("bound");
    set.open(2).expect("listening");
    let set = old
        .prepare(std::slice::from_ref(&address), 64, 6)
        .expect("grown");
    set.open(4).expect("listening");
    set.steer(&[1]).expect("steered");
    let (before, number) = (inodes(&set, 4), port(&set));
    let stored = copies(&old);
    assert_eq!(
        stored.len(),
        5,
        "four slots that listen, and the steering socket"
    );
    drop((set, old));
    // No server runs now, and no client is refused.
    let _waiting = connect(number);

    let mut new = next(stored);
    let set = new
        .prepare(&[tcp("127.0.0.1", 0)], 64, 5)
        .expect("taken over");
    assert_eq!(new.close_unclaimed(), Vec::<String>::new());
    assert_eq!((inodes(&set, 4), port(&set)), (before, number));
    set.open(2).expect("listening");
    assert_eq!(slots(&set).open_slots(), 4, "two are parked");
    assert_eq!(taker(&held(&set, 4)), 1, "the waiting connection is served");
    set.open(5).expect("one more listens");
    steers(&set, 5);

    // And once more; with the number of the port this time.
    let stored = copies(&new);
    assert_eq!(stored.len(), 6);
    drop((set, new));
    let mut new = next(stored);
    let set = new
        .prepare(&[tcp("127.0.0.1", number)], 128, 6)
        .expect("taken over");
    set.open(6).expect("listening");
    steers(&set, 6);
    assert_eq!(copies(&new).len(), 7);
}

#[test]
fn an_address_that_is_no_longer_configured_is_closed_and_logged() {
    let mut old = fresh();
    let set = old.prepare(&[tcp("127.0.0.1", 0)], 64, 2).expect("bound");
    set.open(2).expect("listening");
    let number = port(&set);
    let stored = copies(&old);
    drop((set, old));
    let mut new = next(stored);
    let _set = new.prepare(&[tcp("127.0.0.1", 0)].map(|_| tcp("::1", 0)), 64, 2);
    let said = new.close_unclaimed();
    assert_eq!(
        said,
        [format!(
            "closing stored socket 127.0.0.1:{number}: no longer configured"
        )]
    );
    assert_eq!(
        new.stored_names().len(),
        3,
        "so that they are removed from the store"
    );
    eventually(|| match TcpStream::connect(("127.0.0.1", number)) {
        Ok(_) => Err("it still listens"),
        Err(_) => Ok(()),
    });
}

#[test]
fn a_wrong_name_is_not_believed_and_names_of_others_are_left_alone() {
    let here = TcpListener::bind("127.0.0.1:0").expect("bound");
    let number = here.local_addr().expect("bound").port();
    let other = TcpListener::bind("127.0.0.1:0").expect("bound");
    let (datagrams, _peer) = UnixStream::pair().expect("a pair");
    let sockets = vec![
        inherited(&format!("prefork-slot-0-0-tcp-127.0.0.1-{number}"), other),
        inherited(
            &format!("prefork-slot-1-1-tcp-127.0.0.1-{number}"),
            datagrams,
        ),
        inherited(
            "prefork-slot-1",
            TcpListener::bind("127.0.0.1:0").expect("bound"),
        ),
        inherited("web", here),
    ];
    let (others, stored) = StoredSockets::sort(sockets);
    assert_eq!(others.len(), 1);
    assert_eq!(others[0].name, "web");
    let said = fresh().with_stored(stored).close_unclaimed();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(
        said.iter()
            .all(|line| line.ends_with("it is not what its name says")),
        "{said:?}"
    );
}

#[test]
fn a_missing_steering_socket_is_replaced() {
    let mut old = fresh();
    let set = old.prepare(&[tcp("127.0.0.1", 0)], 64, 3).expect("bound");
    set.open(3).expect("listening");
    let mut stored = copies(&old);
    stored.retain(|socket| !socket.name.contains("key"));
    assert_eq!(stored.len(), 3);
    drop((set, old));
    let mut new = next(stored);
    let set = new
        .prepare(&[tcp("127.0.0.1", 0)], 64, 4)
        .expect("taken over");
    set.open(4).expect("listening");
    steers(&set, 4);
}

#[test]
fn when_others_than_the_last_are_missing_steering_is_refused() {
    let mut old = fresh();
    let set = old.prepare(&[tcp("127.0.0.1", 0)], 64, 3).expect("bound");
    set.open(3).expect("listening");
    let mut stored = copies(&old);
    stored.retain(|socket| !socket.name.contains("slot-1-"));
    drop((set, old));
    let mut new = next(stored);
    let set = new
        .prepare(&[tcp("127.0.0.1", 0)], 64, 3)
        .expect("taken over");
    set.open(3).expect("listening");
    let refused = set.steer(&[1]).expect_err("indices are unknown");
    assert!(
        refused.to_string().contains("FileDescriptorStoreMax="),
        "{refused}"
    );
    let workers = held(&set, 3);
    let mut seen = [0; 3];
    for _ in 0..300 {
        let _client = connect(port(&set));
        seen[usize::from(taker(&workers))] += 1;
    }
    assert!(
        seen.iter().filter(|count| **count > 0).count() >= 2,
        "{seen:?}"
    );
}

#[test]
fn a_unix_socket_comes_back_with_its_file_and_queue() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("app.sock");
    let mut old = fresh();
    let set = old.prepare(&[unix(&path)], 64, 1).expect("bound");
    set.open(1).expect("listening");
    let stored = copies(&old);
    old.leave_files();
    drop((set, old));
    assert!(path.exists(), "left for the next one");
    let _waiting = UnixStream::connect(&path).expect("no server runs, and it waits");
    let mut new = next(stored);
    let wanted = Bind::Unix {
        path: path.clone(),
        mode: Some(0o600),
        owner: None,
        group: None,
    };
    let set = new
        .prepare(std::slice::from_ref(&wanted), 64, 1)
        .expect("taken over");
    set.open(1).expect("listening");
    assert_eq!(
        path.metadata().expect("there").permissions().mode() & 0o777,
        0o600,
        "as is wanted now"
    );
    assert_eq!(accept_one(&[set.for_slot(0).remove(0).1.as_fd()]), 0);
    assert!(new.close_unclaimed().is_empty());
    drop((set, new));
    assert!(!path.exists(), "it is not stored");
}

#[test]
fn a_unix_socket_whose_file_is_gone_is_bound_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("app.sock");
    let mut old = fresh();
    let set = old.prepare(&[unix(&path)], 64, 1).expect("bound");
    set.open(1).expect("listening");
    let stored = copies(&old);
    drop((set, old));
    assert!(!path.exists());
    let mut new = next(stored);
    let set = new.prepare(&[unix(&path)], 64, 1).expect("bound");
    set.open(1).expect("listening");
    let said = new.close_unclaimed();
    assert!(
        said.len() == 1 && said[0].contains("RuntimeDirectoryPreserve"),
        "{said:?}"
    );
    UnixStream::connect(&path).expect("reachable");
}
