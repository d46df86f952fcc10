//! Addresses: which are taken, which are refused, and what happens to them over the server's life.

use nix::sys::signal::Signal::SIGHUP;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use testkit::load::{Plan, run, start};
use testkit::{Address, LONG, Server, Setup, http, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).patient()
}

fn served(address: &Address) {
    run(&Plan::fresh(address, 4)
        .http("/", Some("Hello, client!"))
        .count(40))
    .assert_flawless();
}

#[test]
fn one_server_listens_on_many_addresses() {
    let setup = setup()
        .workers(2)
        .bind("127.0.0.1:0")
        .bind("[::1]:0")
        .bind_unix();
    let server = setup.start();
    let addresses = server.addresses();
    assert_eq!(addresses.len(), 3, "{addresses:?}");
    addresses.iter().for_each(served);
    server.wait_for_log(&format!("listening on {}", addresses[0]));
}

#[test]
fn a_name_is_resolved() {
    let server = setup().workers(1).bind("localhost:0").start();
    server.addresses().iter().for_each(served);
}

#[test]
fn a_second_instance_is_refused_with_the_address() {
    let server = setup().workers(2).start();
    let address = server.address();
    let (status, log) = setup().workers(1).bind(&address.to_string()).run();
    assert_eq!(status.code(), Some(1), "{log:#?}");
    assert!(
        log.iter().any(|line| line.contains(&address.to_string())),
        "{log:#?}"
    );
    served(&address);
}

#[test]
fn an_address_that_another_program_has_is_refused() {
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = other.local_addr().expect("a bound socket").to_string();
    let (status, log) = setup().workers(1).bind(&address).run();
    assert_eq!(status.code(), Some(1), "{log:#?}");
    assert!(log.iter().any(|line| line.contains(&address)), "{log:#?}");
}

#[test]
fn a_stale_unix_socket_is_replaced() {
    let setup = setup().workers(1);
    let path = setup.path("http.sock");
    drop(UnixListener::bind(&path).expect("a socket"));
    assert!(path.exists(), "dropping it leaves the file");
    let server = setup.bind_unix().start();
    served(&server.address());
}

#[test]
fn a_unix_socket_in_use_is_refused() {
    let first = setup().workers(1).bind_unix().start();
    let address = first.address();
    let (status, log) = setup().workers(1).bind(&address.to_string()).run();
    assert_eq!(status.code(), Some(1), "{log:#?}");
    assert!(
        log.iter().any(|line| line.contains("http.sock")),
        "{log:#?}"
    );
    served(&address);
}

#[test]
fn a_file_that_is_no_socket_is_refused_and_left_alone() {
    let setup = setup().workers(1).bind_unix();
    setup.file("http.sock", "precious");
    let mut server = setup.spawn();
    assert_eq!(server.wait_exit(LONG).code(), Some(1));
    server.wait_for_log("http.sock");
    assert_eq!(
        std::fs::read_to_string(server.path("http.sock")).expect("still there"),
        "precious"
    );
}

#[test]
fn a_unix_socket_gets_its_mode_and_goes_with_the_server() {
    let setup = setup().workers(1);
    let path = setup.path("http.sock");
    let mut server = setup
        .bind(&format!("unix:{},mode=0600", path.display()))
        .start();
    let mode = std::fs::metadata(&path)
        .expect("the socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    served(&Address::Unix(path.clone()));
    server.signal(nix::sys::signal::Signal::SIGTERM);
    server.wait_exit(LONG);
    assert!(!path.exists(), "its file is removed");
}

#[test]
fn an_inherited_descriptor_is_served() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = Address::Tcp(listener.local_addr().expect("a bound socket"));
    let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\"";
    let wrapper = ["sh", "-c", script, "sh"];
    let mut server = setup()
        .workers(2)
        .wrapped(wrapper)
        .input(listener)
        .bind("fd://3")
        .start();
    served(&address);
    let load = start(Plan::fresh(&address, 8).http("/", Some("Hello, client!")));
    server.reload();
    load.finish().assert_flawless();
}

#[test]
fn sockets_handed_over_by_systemd_are_served_by_name() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = Address::Tcp(listener.local_addr().expect("a bound socket"));
    let script =
        "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web; exec \"$@\"";
    let wrapper = ["sh", "-c", script, "sh"];
    let mut server = setup()
        .workers(2)
        .wrapped(wrapper)
        .input(listener)
        .bind("fd://web")
        .start();
    served(&address);
    let load = start(Plan::fresh(&address, 8).http("/", Some("Hello, client!")));
    server.reload();
    load.finish().assert_flawless();
}

#[test]
fn a_descriptor_that_is_no_listening_socket_is_refused() {
    let (status, log) = setup().workers(1).bind("fd://0").run();
    assert_ne!(status.code(), Some(0), "{log:#?}");
    assert!(log.iter().any(|line| line.contains("fd://0")), "{log:#?}");
}

#[test]
fn a_reload_adds_and_removes_addresses_and_loses_nothing() {
    let free = |_| {
        TcpListener::bind("127.0.0.1:0")
            .expect("a port")
            .local_addr()
            .expect("a bound socket")
            .to_string()
    };
    let [one, two, three] = [1, 2, 3].map(free);
    let config = |binds: &[&str]| format!("workers = 2\nmin-ready = \"50ms\"\nbind = {binds:?}\n");
    let mut server = setup().no_bind().config(&config(&[&one, &two])).start();
    let [one, two, three] =
        [one, two, three].map(|text| text.parse::<Address>().expect("an address"));
    let load = start(Plan::kept_alive(&one, 8).http("/", Some("Hello, client!")));
    server.file(
        "config.toml",
        &config(&[&one.to_string(), &three.to_string()]),
    );
    server.reload();
    served(&one);
    served(&three);
    wait_until("the removed address to be closed", LONG, || {
        two.connect().is_err()
    });
    server.file(
        "config.toml",
        &config(&[&one.to_string(), &two.to_string()]),
    );
    server.reload();
    served(&two);
    load.finish().assert_flawless();
}

/// Who is connected when an address is removed is served, whichever slot's queue it waits in, also
/// while workers leave one by one and when the last of them leaves late. No connection is accepted
/// only to be reset.
fn a_removed_address_serves_its_queue(surge: &str) {
    let free = |_| {
        TcpListener::bind("127.0.0.1:0")
            .expect("a port")
            .local_addr()
            .expect("a bound socket")
            .to_string()
    };
    let [stays, goes] = [1, 2].map(free);
    let config = |binds: &[&str]| {
        format!(
            "workers = 4\nsurge = {surge}\nmin-ready = \"50ms\"\napp = \"sleep\"\nbind = \
             {binds:?}\n"
        )
    };
    let mut server = setup().no_bind().config(&config(&[&stays, &goes])).start();
    let [kept, removed] = [&stays, &goes].map(|text| text.parse::<Address>().expect("an address"));
    // Slow requests keep old workers for a while after others have left.
    let slow = start(Plan::fresh(&removed, 8).http("/?ms=700", None));
    let load = start(Plan::rate(&removed, 400.0).http("/?ms=1", None));
    let other = start(Plan::rate(&kept, 100.0).http("/?ms=1", None));
    load.wait_for_more(200);
    server.file("config.toml", &config(&[&stays]));
    server.reload();
    wait_until("the removed address to be closed", LONG, || {
        load.failed() > 50
    });
    for load in [slow, load] {
        let report = load.finish();
        let refused = report.count(testkit::load::Failure::Refused);
        assert_eq!(
            (report.failed(), report.answered + refused),
            (refused, report.requests),
            "{report}"
        );
        assert!(report.answered > 0 && refused > 0, "{report}");
    }
    other.finish().assert_flawless();
}

#[test]
fn a_removed_address_serves_its_queue_when_all_workers_are_replaced_together() {
    a_removed_address_serves_its_queue("\"all\"");
}

#[test]
fn a_removed_address_serves_its_queue_when_workers_are_replaced_one_by_one() {
    a_removed_address_serves_its_queue("1");
}

#[test]
fn an_address_that_cannot_be_bound_fails_the_reload_only() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken
        .local_addr()
        .map(|address| (taken, address.to_string()))
        .expect("a bound socket");
    let free = TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("a bound socket")
        .to_string();
    let config = |binds: &[&str]| format!("workers = 2\nmin-ready = \"50ms\"\nbind = {binds:?}\n");
    let server = setup().no_bind().config(&config(&[&free])).start();
    let before = server.ready();
    server.file("config.toml", &config(&[&free, &taken.1]));
    server.signal(SIGHUP);
    server.wait_for_log(&taken.1);
    wait_until("the old state", LONG, || server.is_settled());
    assert_eq!(server.ready(), before);
    assert_eq!(
        http::get(&server.address(), "/").expect("an answer").status,
        200
    );
}

#[test]
fn a_unix_socket_under_two_spellings_is_one() {
    let setup = setup().workers(1);
    std::os::unix::fs::symlink(".", setup.path("same")).expect("a link");
    let plain = format!("unix:{}", setup.path("http.sock").display());
    let linked = format!("unix:{}", setup.path("same/http.sock").display());
    let config = |addresses: &[&String]| format!("bind = {addresses:?}\n");
    let mut server = setup.no_bind().config(&config(&[&plain, &linked])).start();
    assert_eq!(server.addresses().len(), 1);
    assert_eq!(server.get("/").status, 200);
    let clients = ["http.sock", "same/http.sock"].map(|name| Address::Unix(server.path(name)));
    for kept in [&linked, &plain] {
        server.file("config.toml", &config(&[kept]));
        server.reload();
        for client in &clients {
            assert_eq!(http::get(client, "/").expect("an answer").status, 200);
        }
    }
}
