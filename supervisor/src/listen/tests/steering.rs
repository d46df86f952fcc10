//! Which slots get new connections, and which process may decide that. Real sockets on the
//! loopback device.

use super::*;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, SockRef, Socket, Type};

/// The only group of a set.
pub(crate) fn slots(set: &ListenSet) -> &reuseport_group::ReuseportGroup {
    set.entries[0].address.slots().expect("a TCP address")
}

/// The packets that a socket threw away.
fn drops(socket: &OwnedFd) -> u32 {
    prefork_os::testing::dropped_packets(socket).expect("counted")
}

/// A program that returns `index`, whatever comes.
fn attach(socket: &OwnedFd, index: u32) -> nix::Result<()> {
    let mut code = [libc::sock_filter {
        code: bpf::opcode(libc::BPF_RET | libc::BPF_K),
        jt: 0,
        jf: 0,
        k: index,
    }];
    let program = libc::sock_fprog {
        len: 1,
        filter: code.as_mut_ptr(),
    };
    setsockopt(socket, sockopt::AttachReusePortCbpf, &program)
}

fn set_int(socket: &OwnedFd, option: libc::c_int, value: libc::c_int) -> nix::Result<()> {
    prefork_os::testing::set_socket_option(socket, option, value)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

/// A connection that leaves nothing behind when it is dropped, so that ports do not run out.
pub(crate) fn connect(port: u16) -> TcpStream {
    let client = TcpStream::connect(("127.0.0.1", port)).expect("connected");
    SockRef::from(&client)
        .set_linger(Some(Duration::ZERO))
        .expect("lingers not");
    client
}

/// Copies of the slots' sockets, as workers hold them.
pub(crate) fn held(set: &ListenSet, count: u16) -> Vec<OwnedFd> {
    let copy = |slot| {
        set.for_slot(slot)
            .remove(0)
            .1
            .try_clone_to_owned()
            .expect("a copy")
    };
    (0..count).map(copy).collect()
}

/// The slot that a connection went to.
pub(crate) fn taker(held: &[OwnedFd]) -> u16 {
    let sockets: Vec<_> = held.iter().map(AsFd::as_fd).collect();
    u16::try_from(accept_one(&sockets)).expect("a slot")
}

#[test]
fn a_worker_cannot_change_who_gets_connections_and_the_supervisor_can() {
    let set = fresh()
        .prepare(&[tcp("127.0.0.1", 0)], 64, 3)
        .expect("bound");
    set.open(2).expect("listening");
    set.open(3).expect("listening");
    assert_eq!(set.steer(&[1]), Ok(Steered::Changed));
    let workers = held(&set, 3);
    for worker in &workers {
        assert_eq!(attach(worker, 0), Err(Errno::EPERM));
        assert_eq!(
            set_int(worker, libc::SO_LOCK_FILTER, 0),
            Err(Errno::EPERM),
            "locked for good"
        );
        let nothing = socket2::SockFilter::new(6, 0, 0, 0);
        let refused = SockRef::from(worker)
            .attach_filter(&[nothing])
            .expect_err("locked");
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    }
    for slot in [1, 2, 0] {
        set.steer(&[slot]).expect("steered");
        let _client = connect(port(&set));
        assert_eq!(taker(&workers), slot);
    }
    // The kernel (6.18) locks the program against replacement only. Without one it chooses by
    // hash, the steering socket too, which drops the attempt, so that the client retries. The next
    // rotation attaches the program again.
    assert_eq!(
        set_int(&workers[0], libc::SO_DETACH_REUSEPORT_BPF, 1),
        Ok(())
    );
    set.steer(&[2]).expect("steered");
    for _ in 0..50 {
        let _client = connect(port(&set));
        assert_eq!(taker(&workers), 2);
    }
}

#[test]
fn no_client_can_connect_to_the_steering_socket() {
    let set = fresh()
        .prepare(&[tcp("127.0.0.1", 0)], 64, 2)
        .expect("bound");
    set.open(2).expect("listening");
    let steering = slots(&set).steering_socket();
    let index = slots(&set).steering_index().expect("it is a member");
    attach(&steering, u32::from(index)).expect("the steering socket is not locked");
    let client = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).expect("a socket");
    let address = SocketAddr::from(([127, 0, 0, 1], port(&set)));
    client.connect(&address.into()).expect_err("in progress");
    assert!(drops(&steering) > 0, "its SYN is thrown away");
    set.steer(&[1]).expect("steered");
    // The client asks again after a second, and is served.
    assert_eq!(taker(&held(&set, 2)), 1);
    assert!(client.peer_addr().is_ok());
}

#[test]
fn a_socket_drops_connections_without_privileges_too() {
    for host in ["127.0.0.1", "::1"] {
        let Ok(listener) = TcpListener::bind((host, 0)) else {
            continue;
        };
        let address = listener.local_addr().expect("bound");
        let socket = OwnedFd::from(listener);
        prefork_os::ignore_travelled_packets(&socket).expect("no privilege is needed");
        let client = Socket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking(),
            None,
        );
        client
            .expect("a socket")
            .connect(&address.into())
            .expect_err("in progress");
        assert!(drops(&socket) > 0, "{address}");
    }
}

#[test]
fn ten_thousand_connections_never_reach_the_steering_socket() {
    let mut listeners = fresh();
    let mut set = listeners
        .prepare(&[tcp("127.0.0.1", 0)], 64, 2)
        .expect("bound");
    set.open(2).expect("listening");
    let mut open = 2_u16;
    let mut rotation: Vec<u16> = vec![0, 1];
    set.steer(&rotation).expect("steered");
    let mut workers = held(&set, open);
    for round in 0..1000_u16 {
        match round % 10 {
            // More slots listen before anybody is steered there.
            3 if open < 40 => {
                set = listeners
                    .prepare(&[tcp("127.0.0.1", 0)], 64, open + 1)
                    .expect("grown");
                set.open(open + 1).expect("listening");
                open += 1;
                workers = held(&set, open);
            }
            5 => rotation = (0..open).filter(|slot| (slot + round) % 3 != 0).collect(),
            7 => rotation = vec![round % open],
            // Nowhere to steer to: everything stays.
            8 => assert_eq!(set.steer(&[]), Ok(Steered::Unchanged)),
            9 => rotation = (0..open).collect(),
            _ => {}
        }
        if !matches!(round % 10, 3 | 8) {
            assert_eq!(set.steer(&rotation), Ok(Steered::Changed));
        }
        for _ in 0..10 {
            let _client = connect(port(&set));
            let slot = taker(&workers);
            assert!(
                rotation.contains(&slot),
                "slot {slot} of {rotation:?} in round {round}"
            );
        }
    }
    assert_eq!(open, 40);
    assert_eq!(drops(&slots(&set).steering_socket()), 0);
}

#[test]
fn connections_race_with_steering_and_growth_and_all_arrive() {
    let mut listeners = fresh();
    let mut set = listeners
        .prepare(&[tcp("127.0.0.1", 0)], 512, 2)
        .expect("bound");
    set.open(2).expect("listening");
    set.steer(&[0, 1]).expect("steered");
    let number = port(&set);
    let clients = std::thread::spawn(move || (0..2000).for_each(|_| drop(connect(number))));
    let mut taken = 0_u16;
    let mut open = 2_u16;
    while taken < 2000 {
        if open < 30 {
            open += 1;
            set = listeners
                .prepare(&[tcp("127.0.0.1", 0)], 512, open)
                .expect("grown");
            set.open(open).expect("listening");
        }
        set.steer(&[taken % open, 1]).expect("steered");
        for worker in held(&set, open) {
            while let Ok(connection) = nix::sys::socket::accept(worker.as_raw_fd()) {
                nix::unistd::close(connection).expect("close");
                taken += 1;
            }
        }
    }
    clients.join().expect("all connected");
    assert_eq!(drops(&slots(&set).steering_socket()), 0);
}

#[test]
fn a_kernel_that_refuses_the_program_gets_no_steering_socket_and_spreads_connections() {
    let set = fresh()
        .prepare(&[tcp("127.0.0.1", 0)], 64, 3)
        .expect("bound");
    let workers = held(&set, 3);
    prefork_os::lock_filter(&workers[0]).expect("locked, so that the program is refused");
    set.open(3).expect("it listens all the same");
    let refused = set.steer(&[1]).expect_err("refused");
    assert_eq!(refused.problem, SteerProblem::System(Errno::EPERM));
    assert_eq!(slots(&set).steering_index(), None);
    let mut seen = [0; 3];
    for _ in 0..200 {
        let _client = connect(port(&set));
        seen[usize::from(taker(&workers))] += 1;
    }
    assert!(seen.iter().all(|count| *count > 10), "{seen:?}");
}

#[test]
fn all_connections_can_go_to_one_slot() {
    let set = fresh()
        .prepare(&[tcp("127.0.0.1", 0)], 64, 4)
        .expect("bound");
    set.open(4).expect("listening");
    set.steer(&[0]).expect("steered");
    let workers = held(&set, 4);
    for _ in 0..100 {
        let _client = connect(port(&set));
        assert_eq!(taker(&workers), 0);
    }
}

#[test]
fn a_slot_that_is_taken_again_has_kept_its_queue() {
    let mut listeners = fresh();
    let set = listeners
        .prepare(&[tcp("127.0.0.1", 0)], 64, 3)
        .expect("bound");
    set.open(3).expect("listening");
    set.steer(&[2]).expect("steered");
    // One is in the queue before its slot is retired, and one has only begun: both wait there.
    let mut waiting = vec![connect(port(&set))];
    let address = SocketAddr::from(([127, 0, 0, 1], port(&set)));
    let begun = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).expect("a socket");
    begun.connect(&address.into()).expect_err("in progress");
    set.steer(&[0, 1]).expect("steered away");
    waiting.push(begun.into());
    for _ in 0..100 {
        let _client = connect(port(&set));
        assert!(
            taker(&held(&set, 3)) < 2,
            "the parked slot gets nothing new"
        );
    }
    // A reload with fewer slots keeps the sockets too, and so does one with more.
    let fewer = listeners
        .prepare(&[tcp("127.0.0.1", 0)], 64, 2)
        .expect("reused");
    fewer.open(2).expect("listening");
    drop(set);
    fewer.steer(&[0, 1]).expect("steered");
    let again = listeners
        .prepare(&[tcp("127.0.0.1", 0)], 64, 3)
        .expect("reused");
    drop(fewer);
    again.open(3).expect("listening");
    again.steer(&[0, 1, 2]).expect("steered");
    let parked = held(&again, 3).remove(2);
    for _ in &waiting {
        assert_eq!(accept_one(&[parked.as_fd()]), 0);
    }
}
