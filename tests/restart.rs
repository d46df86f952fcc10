//! A supervisor that is restarted, or dies, under a real systemd that stores its listening sockets.
//!
//! Each scenario is an ignored test of this very program, which runs inside a throw-away systemd.

use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::load::{Failure, Plan, Report, start};
use testkit::{Address, LONG, http, root, wait_until};

const UNIT: &str = "prefork.service";
const CONFIG: &str = "/etc/prefork/config.toml";
const UNIX: &str = "/run/prefork/app.sock";

fn under_systemd(test: &str, scenario: &str) {
    let binary = Path::new(env!("CARGO_BIN_EXE_supervisor"));
    let this = std::env::current_exe().expect("this program has a path");
    let arguments = ["--exact", scenario, "--ignored", "--nocapture"].map(std::ffi::OsStr::new);
    let units = [root().join("scripts/prefork.service")];
    testkit::systemd::run(
        test,
        &units,
        &[binary.parent().expect("a directory")],
        &this,
        &arguments,
    );
}

#[test]
fn systemctl_restart_loses_no_connection() {
    under_systemd("restart", "inside_restarts");
}

#[test]
fn a_killed_supervisor_refuses_no_connection() {
    under_systemd("a killed supervisor", "inside_kills");
}

#[test]
fn an_address_that_goes_with_a_restart_is_closed() {
    under_systemd("a changed address", "inside_changes_addresses");
}

#[test]
fn admin_addresses_are_there_all_the_time_too() {
    under_systemd("admin addresses", "inside_keeps_admin_addresses");
}

#[test]
fn a_unit_without_a_store_restarts_as_ever() {
    under_systemd("no store", "inside_without_a_store");
}

#[test]
fn sockets_of_another_user_are_taken_as_they_are() {
    under_systemd("another user", "inside_changes_users");
}

// ---- inside

fn systemctl(words: &[&str]) -> bool {
    Command::new("systemctl")
        .args(words)
        .status()
        .expect("systemctl runs")
        .success()
}

fn property(name: &str) -> String {
    let output = Command::new("systemctl")
        .args(["show", "-P", name, UNIT])
        .output()
        .expect("systemctl runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn journal() -> String {
    let output = Command::new("journalctl")
        .args(["--no-pager", "-u", UNIT])
        .output()
        .expect("journalctl runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stored() -> u32 {
    property("NFileDescriptorStore").parse().expect("a number")
}

/// Installs the server with this configuration and these changes to its unit, and starts it.
fn install(config: &str, changes: &str) {
    assert!(
        testkit::systemd::is_inside(),
        "this would change the machine"
    );
    let place = Path::new("/usr/local/bin/supervisor");
    std::fs::copy(env!("CARGO_BIN_EXE_supervisor"), place).expect("copied");
    std::fs::create_dir_all("/etc/prefork").expect("a directory");
    std::fs::write(CONFIG, config).expect("written");
    change_unit(changes);
    assert!(systemctl(&["start", UNIT]), "{}", journal());
}

fn change_unit(changes: &str) {
    let directory = PathBuf::from(format!("/run/systemd/system/{UNIT}.d"));
    std::fs::create_dir_all(&directory).expect("a directory");
    // Tests restart more often than an operator should.
    let text = format!("[Unit]\nStartLimitIntervalSec=0\n[Service]\n{changes}\n");
    std::fs::write(directory.join("test.conf"), text).expect("written");
    assert!(systemctl(&["daemon-reload"]));
}

fn address(text: &str) -> Address {
    text.parse().expect("an address")
}

fn restart() {
    assert!(systemctl(&["restart", UNIT]), "{}", journal());
}

/// No connection was refused, and every queued one was answered.
fn assert_none_refused(report: &Report) {
    for failure in [
        Failure::Refused,
        Failure::ConnectReset,
        Failure::ConnectTimeout,
        Failure::ConnectOther,
        Failure::BacklogFull,
        Failure::ResponseTimeout,
        Failure::BadResponse,
    ] {
        assert_eq!(report.count(failure), 0, "{report}\n{}", journal());
    }
}

const THREE: &str = "bind = [\"127.0.0.1:8000\", \"[::1]:8000\", \"unix:/run/prefork/app.sock\"]\n\
                     workers = 4\nmin-ready = \"100ms\"\n";

fn three() -> [Address; 3] {
    ["127.0.0.1:8000", "[::1]:8000", &format!("unix:{UNIX}")].map(address)
}

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_restarts() {
    install(THREE, "");
    wait_until("the sockets to be stored", LONG, || stored() == 11);
    let loads =
        three().map(|address| start(Plan::rate(&address, 150.0).http("/", Some("Hello, client!"))));
    let clients =
        start(Plan::fresh(&address("127.0.0.1:8000"), 4).http("/", Some("Hello, client!")));
    // Two more slots, whose sockets are parked afterwards.
    for more in 1..=2 {
        assert!(systemctl(&[
            "kill",
            "--kill-whom=main",
            "--signal=TTIN",
            UNIT
        ]));
        wait_until("a slot more", LONG, || stored() == 11 + 2 * more);
    }
    for round in 0..5 {
        restart();
        clients.wait_for_more(100);
        assert_eq!(
            stored(),
            15,
            "after restart {round}: neither more nor fewer\n{}",
            journal()
        );
    }
    // The loads' own connections end before the server.
    for load in loads.into_iter().chain([clients]) {
        let report = load.finish();
        println!("{report}");
        report.assert_flawless();
    }
    assert!(!journal().contains("cannot steer"), "{}", journal());
    assert!(systemctl(&["stop", UNIT]));
    wait_until("the addresses to be free", LONG, || {
        three().iter().all(|address| address.connect().is_err())
    });
    assert_eq!(stored(), 0);
}

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_kills() {
    install(THREE, "");
    wait_until("the sockets to be stored", LONG, || stored() == 11);
    let loads =
        three().map(|address| start(Plan::rate(&address, 150.0).http("/", Some("Hello, client!"))));
    for _ in 0..5 {
        let pid = property("MainPID");
        assert!(
            Command::new("kill")
                .args(["-KILL", &pid])
                .status()
                .expect("kill runs")
                .success()
        );
        wait_until("another supervisor that serves", LONG, || {
            property("MainPID") != pid && property("ActiveState") == "active"
        });
        for load in &loads {
            load.wait_for_more(100);
        }
        assert_eq!(stored(), 11);
    }
    for load in loads {
        let report = load.finish();
        println!("{report}");
        assert_none_refused(&report);
        // Queued requests are answered; only the active ones of a killed worker are lost.
        assert_eq!(report.answered + report.failed(), report.requests);
        assert!(report.failed() <= 5 * 4 * 4, "{report}");
    }
}

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_changes_addresses() {
    install(THREE, "");
    wait_until("the sockets to be stored", LONG, || stored() == 11);
    let [v4, v6, unix] = three();
    std::fs::write(
        CONFIG,
        "bind = \"127.0.0.1:8000\"\nworkers = 2\nmin-ready = \"100ms\"\n",
    )
    .expect("written");
    let load = start(Plan::rate(&v4, 150.0).http("/", Some("Hello, client!")));
    restart();
    load.wait_for_more(50);
    wait_until("the other sockets to be closed", LONG, || stored() == 5);
    wait_until("no server there", LONG, || {
        v6.connect().is_err() && unix.connect().is_err()
    });
    assert!(
        journal().contains("closing stored socket [::1]:8000: no longer configured"),
        "{}",
        journal()
    );
    // A reload does the same.
    std::fs::write(CONFIG, THREE).expect("written");
    assert!(systemctl(&["reload", UNIT]), "{}", journal());
    wait_until("all sockets to be stored again", LONG, || stored() == 11);
    for address in three() {
        assert_eq!(http::get(&address, "/").expect("an answer").status, 200);
    }
    std::fs::write(
        CONFIG,
        "bind = \"127.0.0.1:8000\"\nworkers = 2\nmin-ready = \"100ms\"\n",
    )
    .expect("written");
    assert!(systemctl(&["reload", UNIT]), "{}", journal());
    wait_until("the other sockets to be closed", LONG, || stored() == 5);
    wait_until("no server there", LONG, || {
        v6.connect().is_err() && unix.connect().is_err()
    });
    restart();
    let report = load.finish();
    report.assert_flawless();
}

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_keeps_admin_addresses() {
    let config = "bind = \"127.0.0.1:8000\"\nworkers = 2\nmin-ready = \"100ms\"\n\
                  admin = \"127.0.0.1:9100\"\nagent = \"127.0.0.1:9101\"\n";
    install(config, "");
    // Two slots and the key; and these two.
    wait_until("the sockets to be stored", LONG, || stored() == 5);
    let probes = start(Plan::rate(&address("127.0.0.1:9100"), 20.0).http("/healthz", Some("ok\n")));
    for round in 0..3 {
        restart();
        probes.wait_for_more(20);
        assert_eq!(
            stored(),
            5,
            "after restart {round}: neither more nor fewer\n{}",
            journal()
        );
    }
    let report = probes.finish();
    println!("{report}");
    report.assert_flawless();
    std::fs::write(
        CONFIG,
        "bind = \"127.0.0.1:8000\"\nworkers = 2\nmin-ready = \"100ms\"\n",
    )
    .expect("written");
    restart();
    wait_until("the other sockets to be closed", LONG, || stored() == 3);
    assert!(address("127.0.0.1:9100").connect().is_err());
}

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_without_a_store() {
    install(THREE, "FileDescriptorStoreMax=0");
    for _ in 0..2 {
        for address in three() {
            assert_eq!(http::get(&address, "/").expect("an answer").status, 200);
        }
        restart();
    }
    assert_eq!(stored(), 0);
    assert!(!journal().contains("stored"), "{}", journal());
    // The directory itself stays, and shows whether the file is removed.
    change_unit("FileDescriptorStoreMax=0\nRuntimeDirectoryPreserve=yes");
    restart();
    assert!(Path::new(UNIX).exists());
    assert!(systemctl(&["stop", UNIT]));
    assert!(!Path::new(UNIX).exists(), "the socket is not stored");
}

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_changes_users() {
    let config = "bind = \"127.0.0.1:8000\"\nworkers = 2\nmax-workers = 8\nmin-ready = \"100ms\"\n";
    install(config, "DynamicUser=no");
    wait_until("the sockets to be stored", LONG, || stored() == 3);
    let v4 = address("127.0.0.1:8000");
    let load = start(Plan::rate(&v4, 150.0).http("/", Some("Hello, client!")));
    change_unit("DynamicUser=no\nUser=nobody");
    restart();
    load.wait_for_more(50);
    assert!(
        journal().contains("further slots share them"),
        "{}",
        journal()
    );
    let pid = property("MainPID");
    for workers in [3, 4] {
        assert!(systemctl(&[
            "kill",
            "--kill-whom=main",
            "--signal=TTIN",
            UNIT
        ]));
        // Two signals that wait together are one.
        wait_until("one worker more", LONG, || {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            children.unwrap_or_default().split_whitespace().count() == workers
        });
    }
    load.wait_for_more(100);
    restart();
    load.finish().assert_flawless();
    assert_eq!(stored(), 3);
    assert!(!journal().contains("cannot steer"), "{}", journal());
}
