//! Sockets whose files are removed while the server runs, as at a logout or by a cleaner of
//! temporary files.

use nix::sys::signal::Signal::SIGKILL;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use testkit::process::Process;
use testkit::{LONG, Server, Setup, http, wait_for, wait_until};

/// Says that it is ready, and feeds the watchdog as long as it can.
const FEEDS: &str = "
import os, socket, time
address = os.environ['NOTIFY_SOCKET']
address = '\\0' + address[1:] if address[0] == '@' else address
def say(text):
    try:
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(text, address)
    except OSError:
        pass
say(b'READY=1')
while True:
    say(b'WATCHDOG=1')
    time.sleep(0.05)
";

/// A server of programs that feed the watchdog, whose runtime directory can be removed.
fn setup() -> (Setup, PathBuf) {
    let setup = Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .workers(2)
        .no_control()
        .args([
            "--min-ready",
            "50ms",
            "--ready",
            "notify",
            "--hang-timeout",
            "2s",
        ])
        .program(["python3", "-c", FEEDS]);
    let directory = setup.path("run");
    std::fs::create_dir(&directory).expect("a directory");
    let control = directory.join("prefork.sock");
    // Where the kit asks.
    std::os::unix::fs::symlink(&control, setup.path("prefork.sock")).expect("a link");
    let setup = setup.env("XDG_RUNTIME_DIR", &directory);
    (
        setup.args(["--control".into(), control.into_os_string()]),
        directory,
    )
}

fn notify_socket(directory: &PathBuf) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.find(|path| path.to_string_lossy().contains("/notify-"))
}

/// Asserts that these workers live on for longer than any watchdog waits.
#[track_caller]
fn assert_not_judged(server: &Server, workers: &[Process]) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while std::time::Instant::now() < end {
        assert!(
            workers.iter().all(|worker| worker.runs()),
            "{:?}",
            server.log().lines()
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn a_runtime_directory_that_was_removed_is_made_again() {
    let (setup, directory) = setup();
    let mut server = setup.start();
    let before = server.ready();
    std::fs::remove_dir_all(&directory).expect("ours");
    wait_until("a control socket", LONG, || server.try_status().is_some());
    wait_until("a notification socket", LONG, || {
        notify_socket(&directory).is_some()
    });
    server.wait_for_log("was gone (it or its directory was removed); made it again");
    assert_not_judged(&server, &before);
    before[0].signal(SIGKILL);
    server.wait_for_replacement(0, before[0]);
    assert_eq!(server.ready()[1], before[1]);
    // Workers that go on feeding it are judged again.
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(server.wait_exit(LONG).success());
    assert_eq!(notify_socket(&directory), None);
}

#[test]
fn a_runtime_directory_that_cannot_be_made_again_costs_no_worker() {
    let (setup, directory) = setup();
    let mut server = setup.start();
    let before = server.ready();
    std::fs::remove_dir_all(&directory).expect("ours");
    std::fs::write(&directory, "in the way").expect("ours");
    server.wait_for_log("is gone (it or its directory was removed) and cannot be made again");
    server.wait_for_log("the control socket is gone: cannot make the control socket");
    before[0].signal(SIGKILL);
    // Its successor gets another address.
    wait_until("a third worker", LONG, || {
        server.log().count("is ready") >= 3
    });
    assert_not_judged(&server, &before[1..]);
    std::fs::remove_file(&directory).expect("ours");
    server.wait_until_settled(LONG);
    let after = server.ready();
    assert_eq!(after[1], before[1]);
    assert_not_judged(&server, &after);
}

#[test]
fn the_file_of_a_listening_socket_that_was_removed_is_made_again() {
    let mut server = Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .workers(2)
        .args(["--min-ready", "50ms"])
        .bind_unix()
        .start();
    let path = server.path("http.sock");
    std::fs::remove_file(&path).expect("it is there");
    server.wait_for_log("is gone, and no client can connect");
    wait_for("an answer", LONG, || http::get(&server.address(), "/").ok());
    server.wait_until_settled(LONG);
    // A reload by hand does the same.
    std::fs::remove_file(&path).expect("it is there");
    server.reload();
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn notification_sockets_of_servers_that_were_killed_are_removed() {
    let (setup, directory) = setup();
    let path = |number: u32| directory.join(format!("notify-{number}.sock"));
    drop(UnixDatagram::bind(path(4_194_305)).expect("bound"));
    let lives = UnixDatagram::bind(path(4_194_306)).expect("bound");
    std::fs::write(path(4_194_307), "no socket").expect("ours");
    let server = setup.start();
    assert!(!path(4_194_305).exists());
    assert!(path(4_194_306).exists() && path(4_194_307).exists());
    drop((server, lives));
}
