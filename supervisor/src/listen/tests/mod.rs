mod steering;
mod stored;
use super::bpf::SteerProblem;
use super::error::Operation;
use super::*;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

fn tcp(host: &str, port: u16) -> Bind {
    Bind::Tcp {
        host: host.to_owned(),
        port,
    }
}

fn unix(path: &Path) -> Bind {
    Bind::Unix {
        path: path.to_owned(),
        mode: None,
        owner: None,
        group: None,
    }
}

fn inherited(name: &str, socket: impl Into<OwnedFd>) -> Inherited {
    Inherited {
        name: name.to_owned(),
        socket: socket.into(),
    }
}

fn fresh() -> Listeners {
    Listeners::new(None, Vec::new())
}

fn port(set: &ListenSet) -> u16 {
    let text = set.describe();
    text[0].parse::<SocketAddr>().expect("an address").port()
}

fn inodes(set: &ListenSet, slots: u16) -> Vec<u64> {
    let sockets = (0..slots).flat_map(|slot| set.for_slot(slot));
    sockets
        .map(|(_, socket)| nix::sys::stat::fstat(socket).expect("fstat").st_ino)
        .collect()
}

/// Waits until one of `sockets` has a connection, accepts it, and tells whose it was.
fn accept_one(sockets: &[BorrowedFd<'_>]) -> usize {
    let mut waited: Vec<_> = sockets
        .iter()
        .map(|socket| PollFd::new(*socket, PollFlags::POLLIN))
        .collect();
    assert!(
        poll(&mut waited, PollTimeout::from(20_000_u16)).expect("poll") > 0,
        "no connection within 20 s"
    );
    let ready = waited
        .iter()
        .position(|socket| socket.any() == Some(true))
        .expect("one is ready");
    nix::unistd::close(nix::sys::socket::accept(sockets[ready].as_raw_fd()).expect("accept"))
        .expect("close");
    ready
}

/// A fork of another test holds copies of our descriptors until its exec, a matter of microseconds.
fn eventually<T, E: std::fmt::Debug>(mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if Instant::now() > end => panic!("{error:?}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}

#[test]
fn slots_share_one_port_and_take_turns() {
    let set = fresh()
        .prepare(&[tcp("127.0.0.1", 0)], 64, 4)
        .expect("bound");
    set.open(4).expect("listening");
    let sockets: Vec<_> = (0..4).map(|slot| set.for_slot(slot).remove(0).1).collect();
    assert_eq!(
        set.for_slot(0)[0].0,
        format!("tcp-127.0.0.1-{}", port(&set))
    );
    assert!(set.for_slot(4).is_empty());
    assert_eq!(set.steer(&[0, 1, 2, 3]), Ok(Steered::Changed));
    let mut seen = [0; 4];
    for _ in 0..200 {
        let _client = TcpStream::connect(("127.0.0.1", port(&set))).expect("connected");
        seen[accept_one(&sockets)] += 1;
    }
    assert!(seen.iter().all(|count| *count > 10), "{seen:?}");
}

#[test]
fn steering_reaches_the_slots_it_names_and_no_other() {
    let mut listeners = fresh();
    let first = listeners
        .prepare(&[tcp("127.0.0.1", 0)], 64, 2)
        .expect("bound");
    first.open(2).expect("listening");
    let set = listeners
        .prepare(&[tcp("127.0.0.1", 0)], 64, 5)
        .expect("bound");
    set.open(3).expect("listening");
    set.open(2).expect("no change");
    set.open(5).expect("listening");
    drop(first);
    let sockets: Vec<_> = (0..5).map(|slot| set.for_slot(slot).remove(0).1).collect();
    for rotation in [
        &[0_u16][..],
        &[1],
        &[2],
        &[3],
        &[4],
        &[0, 4],
        &[2, 1],
        &[0, 1, 3, 4],
    ] {
        assert_eq!(set.steer(rotation), Ok(Steered::Changed));
        for _ in 0..20 {
            let _client = TcpStream::connect(("127.0.0.1", port(&set))).expect("connected");
            let slot = u16::try_from(accept_one(&sockets)).expect("a slot");
            assert!(
                rotation.contains(&slot),
                "slot {slot} is not in {rotation:?}"
            );
        }
    }
    assert_eq!(set.steer(&[]), Ok(Steered::Unchanged));
    let error = set.steer(&[0, 5]).expect_err("not open");
    assert_eq!(error.problem, SteerProblem::NotOpen(5));
}

#[test]
fn a_second_server_is_refused_with_and_without_a_lock() {
    let directory = tempfile::tempdir().expect("directory");
    let lock = |directory: &Path| Some(directory.to_owned());
    let set = Listeners::new(lock(directory.path()), Vec::new())
        .prepare(&[tcp("127.0.0.1", 0)], 64, 1)
        .expect("bound");
    set.open(1).expect("listening");
    let address = tcp("127.0.0.1", port(&set));
    let refused = fresh()
        .prepare(std::slice::from_ref(&address), 64, 1)
        .expect_err("refused");
    let sentence = format!(
        "cannot bind {address}: address in use (another supervisor or program listens there; \
         `ss -ltnp 'sport = :{}'` names it)",
        port(&set)
    );
    assert_eq!(refused.to_string(), sentence);
    let refused = Listeners::new(lock(directory.path()), Vec::new())
        .prepare(std::slice::from_ref(&address), 64, 1)
        .expect_err("refused");
    let holder = Some(std::process::id());
    assert_eq!(
        refused.problem,
        ListenProblem::PortInUse {
            port: port(&set),
            holder
        }
    );
    assert!(
        refused.to_string().contains("another supervisor, pid "),
        "{refused}"
    );
    drop(set);
    assert_eq!(
        directory.path().read_dir().expect("list").count(),
        0,
        "the lock is gone"
    );
    // The port is free again, unless another test got it by chance.
    let _ = fresh().prepare(&[address], 64, 1);
}

#[test]
fn a_missing_runtime_directory_is_no_obstacle() {
    let nowhere = Some(PathBuf::from("/nonexistent/directory"));
    let set = Listeners::new(nowhere, Vec::new()).prepare(&[tcp("127.0.0.1", 0)], 64, 1);
    assert!(set.is_ok());
}

#[test]
fn preparing_is_all_or_nothing() {
    let directory = tempfile::tempdir().expect("directory");
    let other = TcpListener::bind("127.0.0.1:0").expect("another program");
    let taken = tcp("127.0.0.1", other.local_addr().expect("bound").port());
    let mut listeners = fresh();
    let path = directory.path().join("app.sock");
    let old = listeners
        .prepare(&[tcp("127.0.0.1", 0)], 64, 2)
        .expect("bound");
    let before = inodes(&old, 2);
    let refused = listeners.prepare(&[tcp("127.0.0.1", 0), unix(&path), taken.clone()], 64, 4);
    assert_eq!(refused.expect_err("refused").address, taken.to_string());
    assert!(
        !path.exists(),
        "what was bound before the failure is undone"
    );
    let again = listeners
        .prepare(&[tcp("127.0.0.1", 0)], 64, 2)
        .expect("as before");
    assert_eq!(inodes(&again, 2), before);
}

#[test]
fn an_address_that_stays_keeps_its_sockets_and_one_that_goes_lives_as_long_as_its_set() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("app.sock");
    let mut listeners = fresh();
    let old = listeners
        .prepare(&[tcp("127.0.0.1", 0), unix(&path)], 64, 2)
        .expect("bound");
    old.open(2).expect("listening");
    let asked_by_number = tcp("127.0.0.1", port(&old));
    let new = listeners
        .prepare(&[asked_by_number, tcp("127.0.0.1", 0)], 64, 3)
        .expect("reused");
    assert_eq!(new.describe().len(), 1, "one address, asked for twice");
    assert_eq!(
        inodes(&new, 2),
        [inodes(&old, 2)[0], inodes(&old, 2)[2]],
        "the same sockets"
    );
    UnixStream::connect(&path).expect("parked, so still reachable");
    drop(old);
    assert!(!path.exists(), "closed with the last set that named it");
    let back = listeners
        .prepare(&[unix(&path)], 64, 1)
        .expect("bound again");
    assert!(path.exists());
    drop(back);
    drop(new);
    assert!(
        listeners
            .addresses
            .iter()
            .all(|group| group.upgrade().is_none())
    );
}

#[test]
fn an_address_may_widen_to_all_addresses_and_narrow_again() {
    let mut listeners = fresh();
    let narrow = listeners
        .prepare(&[tcp("127.0.0.1", 0)], 64, 2)
        .expect("bound");
    narrow.open(2).expect("listening");
    let port = port(&narrow);
    let wide = listeners
        .prepare(&[tcp("0.0.0.0", port)], 64, 2)
        .expect("bound beside it");
    wide.open(2).expect("listening");
    drop(narrow);
    let narrow = listeners
        .prepare(&[tcp("127.0.0.1", port)], 64, 2)
        .expect("bound beside it");
    narrow.open(2).expect("listening");
    assert_ne!(inodes(&wide, 2), inodes(&narrow, 2));
}

#[test]
fn a_changed_backlog_reaches_the_open_sockets() {
    let mut listeners = fresh();
    let small = listeners
        .prepare(&[tcp("127.0.0.1", 0)], 1, 1)
        .expect("bound");
    small.open(1).expect("listening");
    let large = listeners
        .prepare(&[tcp("127.0.0.1", 0)], 50, 1)
        .expect("reused");
    large.open(1).expect("listening");
    // A queue of one takes two connections, and lets further ones wait in vain.
    let address = SocketAddr::from(([127, 0, 0, 1], port(&large)));
    let client =
        |_| TcpStream::connect_timeout(&address, Duration::from_secs(20)).expect("connected");
    let clients: Vec<_> = (0..20).map(client).collect();
    let socket = large.for_slot(0).remove(0).1;
    for _ in &clients {
        accept_one(&[socket]);
    }
}

#[test]
fn tcp_errors_name_the_address_and_the_remedy() {
    let sentence = |host: &str, port| {
        fresh()
            .prepare(&[tcp(host, port)], 64, 1)
            .expect_err("refused")
            .to_string()
    };
    let text = sentence("192.0.2.1", 8000);
    assert!(
        text.starts_with(
            "cannot bind 192.0.2.1:8000: no such address on this machine (`ip address`"
        ),
        "{text}"
    );
    let text = sentence("", 8000);
    assert!(text.starts_with("cannot bind :8000: "), "{text}");
    let text = sentence("no such host", 8000);
    assert!(text.ends_with("(check the host name)"), "{text}");
    let denied = ListenProblem::System {
        operation: Operation::BindTcp,
        errno: nix::errno::Errno::EACCES,
    };
    let text = ListenError::new(&"0.0.0.0:80", denied).to_string();
    assert_eq!(
        text,
        "cannot bind 0.0.0.0:80: permission denied \
         (run as root, or grant CAP_NET_BIND_SERVICE, or choose a port above 1023)"
    );
}

#[test]
fn a_name_stands_for_all_its_addresses_that_exist_here() {
    let set = fresh()
        .prepare(&[tcp("localhost", 0)], 64, 1)
        .expect("bound");
    set.open(1).expect("listening");
    for address in set.describe() {
        let address: SocketAddr = address.parse().expect("an address");
        assert!(address.ip().is_loopback());
        TcpStream::connect(address).expect("reachable");
    }
}

#[test]
fn v6_sockets_leave_v4_alone() {
    let Ok(set) = fresh().prepare(&[tcp("::1", 0)], 64, 1) else {
        return;
    };
    assert!(set.describe()[0].starts_with("[::1]:"));
    let (name, socket) = set.for_slot(0).remove(0);
    assert_eq!(name, format!("tcp-[__1]-{}", port(&set)));
    assert!(socket2::SockRef::from(&socket).only_v6().expect("option"));
    assert!(
        socket2::SockRef::from(&socket)
            .tcp_nodelay()
            .expect("option")
    );
    assert!(
        socket2::SockRef::from(&socket)
            .nonblocking()
            .expect("flags")
    );
}

#[test]
fn one_unix_socket_under_two_spellings_is_one_address() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("app.sock");
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(directory.path(), &link).expect("a link");
    let other = link.join("app.sock");
    let mut listeners = fresh();
    let both = listeners
        .prepare(&[unix(&path), unix(&other)], 64, 2)
        .expect("bound");
    both.open(2).expect("listening");
    assert_eq!(both.describe().len(), 1);
    UnixStream::connect(&other).expect("served");
    let second = listeners
        .prepare(&[unix(&other)], 64, 2)
        .expect("the same socket");
    assert_eq!(inodes(&second, 2), inodes(&both, 2));
    drop(both);
    UnixStream::connect(&path).expect("it serves under both names still");
    drop(second);
    assert!(!path.exists());
}

#[test]
fn a_unix_socket_gets_its_mode_and_owner_and_replaces_a_stale_one() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("app.sock");
    drop(UnixListener::bind(&path).expect("another program, dead by now"));
    // Only root can give a file away.
    let me = nix::unistd::geteuid();
    let owner = if me.is_root() { 65534 } else { me.as_raw() };
    let group = nix::unistd::getegid().to_string();
    let address = Bind::Unix {
        path: path.clone(),
        mode: Some(0o620),
        owner: Some(owner.to_string()),
        group: Some(group.clone()),
    };
    let mut listeners = fresh();
    let set = eventually(|| listeners.prepare(std::slice::from_ref(&address), 64, 4));
    let file = path.metadata().expect("there");
    assert_eq!(
        (file.permissions().mode() & 0o7777, file.uid()),
        (0o620, owner)
    );
    set.open(4).expect("listening");
    assert_eq!(inodes(&set, 2)[0], inodes(&set, 2)[1], "one for all");
    assert_eq!(set.describe(), [format!("unix:{}", path.display())]);
    assert_eq!(set.steer(&[0]), Ok(Steered::Unchanged));
    UnixStream::connect(&path).expect("connected");
    accept_one(&[set.for_slot(3).remove(0).1]);

    assert_eq!(
        fresh()
            .prepare(&[unix(&path)], 64, 1)
            .expect_err("live")
            .problem,
        ListenProblem::SocketInUse
    );
    let other = Bind::Unix {
        path: path.clone(),
        mode: Some(0o600),
        owner: None,
        group: None,
    };
    assert_eq!(
        listeners
            .prepare(&[other], 64, 1)
            .expect_err("changed")
            .problem,
        ListenProblem::OtherPermissions
    );
    drop(set);
    assert!(!path.exists());
}

#[test]
fn a_unix_socket_file_of_another_process_stays() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("app.sock");
    let set = fresh().prepare(&[unix(&path)], 64, 1).expect("bound");
    let inode = path.metadata().expect("there").ino();
    std::fs::rename(&path, directory.path().join("kept")).expect("moved");
    let _other = UnixListener::bind(&path).expect("another program");
    assert_ne!(path.metadata().expect("there").ino(), inode);
    drop(set);
    assert!(path.metadata().expect("left alone").file_type().is_socket());
}

#[test]
fn unix_errors_name_the_path_and_the_remedy() {
    let directory = tempfile::tempdir().expect("directory");
    let at = |name: &str| directory.path().join(name);
    let problem = |path: &Path| fresh().prepare(&[unix(path)], 64, 1).expect_err("refused");
    std::fs::write(at("file"), "precious").expect("write");
    std::os::unix::fs::symlink(at("file"), at("link")).expect("link");
    let text = problem(&at("file")).to_string();
    assert!(
        text.ends_with(
            "the path is a regular file, not a socket (remove it, or choose another path)"
        ),
        "{text}"
    );
    assert_eq!(
        problem(&at("link")).problem,
        ListenProblem::NotASocket("a symbolic link")
    );
    assert_eq!(
        problem(directory.path()).problem,
        ListenProblem::NotASocket("a directory")
    );
    assert_eq!(
        std::fs::read_to_string(at("file")).expect("read"),
        "precious"
    );
    let _datagrams = UnixDatagram::bind(at("datagrams")).expect("another program");
    assert_eq!(
        problem(&at("datagrams")).problem,
        ListenProblem::SocketInUse
    );
    let text = problem(&at("none/app.sock")).to_string();
    assert!(
        text.ends_with("No such file or directory (create its directory first)"),
        "{text}"
    );
    let long = at(&"x".repeat(108));
    assert!(
        matches!(problem(&long).problem, ListenProblem::PathTooLong { length, .. } if length > 108)
    );
    let owned = |owner: Option<&str>, group: Option<&str>| Bind::Unix {
        path: at("owned"),
        mode: None,
        owner: owner.map(str::to_owned),
        group: group.map(str::to_owned),
    };
    let refused = |address| {
        fresh()
            .prepare(&[address], 64, 1)
            .expect_err("refused")
            .to_string()
    };
    assert!(refused(owned(Some("no-such-user"), None)).contains("there is no user no-such-user"));
    assert!(
        refused(owned(None, Some("no-such-group"))).contains("there is no group no-such-group")
    );
    assert!(!at("owned").exists());
    let busy = UnixListener::bind(at("busy")).expect("another program");
    assert_eq!(
        problem(&at("busy")).to_string().matches("ss -lxp").count(),
        1
    );
    drop(busy);
}

#[test]
fn a_lock_keeps_a_second_server_from_a_socket_that_does_not_listen_yet() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("app.sock");
    let server = || Listeners::new(Some(directory.path().to_owned()), Vec::new());
    let _set = server().prepare(&[unix(&path)], 64, 1).expect("bound");
    assert_eq!(
        server()
            .prepare(&[unix(&path)], 64, 1)
            .expect_err("locked")
            .problem,
        ListenProblem::SocketInUse
    );
}

#[test]
fn inherited_sockets_are_found_by_number_and_name_generation_after_generation() {
    let web = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = web.local_addr().expect("bound");
    let directory = tempfile::tempdir().expect("directory");
    let second = UnixListener::bind(directory.path().join("s")).expect("bound");
    let number = web.as_raw_fd();
    let mut listeners = Listeners::new(None, vec![inherited("web", web), inherited("web", second)]);
    let by_number = Bind::Fd(number);
    let by_name = Bind::Inherited("web".to_owned());
    let first = listeners
        .prepare(std::slice::from_ref(&by_number), 64, 4)
        .expect("found");
    first.open(4).expect("it listens");
    assert_eq!(first.describe(), [address.to_string()]);
    assert_eq!(first.for_slot(3)[0].0, "web");
    let socket = first.for_slot(3).remove(0).1;
    assert!(
        socket2::SockRef::from(&socket)
            .nonblocking()
            .expect("flags")
    );
    assert_ne!(socket.as_raw_fd(), number, "a copy");
    drop(first);
    let both = listeners
        .prepare(&[by_name, by_number], 64, 1)
        .expect("found again");
    assert_eq!(
        both.describe(),
        [
            address.to_string(),
            format!("unix:{}", directory.path().join("s").display())
        ]
    );
    let _client = TcpStream::connect(address).expect("connected");
    accept_one(&[both.for_slot(0).remove(0).1]);
}

#[test]
fn inherited_descriptors_of_other_kinds_are_refused() {
    let file = std::fs::File::open("/dev/null").expect("open");
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
    let (stream, _peer) = UnixStream::pair().expect("pair");
    let sockets = vec![
        inherited("file", file),
        inherited("udp", datagrams),
        inherited("stream", stream),
    ];
    let mut listeners = Listeners::new(None, sockets);
    let mut sentence = |name: &str| {
        let address = Bind::Inherited(name.to_owned());
        listeners
            .prepare(&[address], 64, 1)
            .expect_err("refused")
            .to_string()
    };
    assert_eq!(
        sentence("file"),
        "cannot use fd://file: it is no socket (pass a listening stream socket)"
    );
    assert_eq!(
        sentence("udp"),
        "cannot use fd://udp: it is no stream socket (pass a listening stream socket)"
    );
    assert_eq!(
        sentence("stream"),
        "cannot use fd://stream: it is not listening (pass a listening stream socket)"
    );
    let text = sentence("web");
    assert!(
        text.contains("named file, ") && text.contains("named stream; LISTEN_FDS"),
        "{text}"
    );
    let refused = fresh().prepare(&[Bind::Fd(3)], 64, 1).expect_err("refused");
    assert!(
        refused
            .to_string()
            .starts_with("cannot use fd://3: no such descriptor was inherited (none was;")
    );
}
