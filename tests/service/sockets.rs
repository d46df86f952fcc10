//! Sockets of several units, in any order: each is served under its own name.

use super::{CONFIG, PLAIN, address, body, write};
use std::path::Path;
use testkit::unit::{command, install};
use testkit::{LONG, wait_until};

/// Name, lines of the socket unit, and where it listens.
const SOCKETS: [(&str, &str, &str); 6] = [
    ("red", "ListenStream=127.0.0.1:8101", "127.0.0.1:8101"),
    (
        "green",
        "ListenStream=127.0.0.1:8102\nReusePort=yes",
        "127.0.0.1:8102",
    ),
    (
        "blue",
        "ListenStream=/run/blue.sock\nSocketMode=0666",
        "unix:/run/blue.sock",
    ),
    (
        "grey",
        "ListenStream=[::1]:8103\nReusePort=yes\nNonBlocking=yes",
        "[::1]:8103",
    ),
    ("pink", "ListenStream=/run/pink.sock", "unix:/run/pink.sock"),
    // Two sockets of one name.
    (
        "gold",
        "ListenStream=127.0.0.1:8104\nListenStream=127.0.0.1:8105",
        "127.0.0.1:8105",
    ),
];

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_many_sockets() {
    std::fs::copy(testkit::program("names.py"), "/opt/names.py").expect("copied");
    let config = |names: &[&str]| {
        let binds: Vec<String> = names
            .iter()
            .map(|name| format!("\"fd://{name}\""))
            .collect();
        let text = "workers = 2\nmin-ready = \"50ms\"\nready = \"after=100ms\"";
        write(
            CONFIG,
            &format!(
                "bind = [{}]\n{text}\ncommand = [\"/usr/bin/python3\", \"/opt/names.py\"]\n",
                binds.join(",")
            ),
        );
    };
    let check = |names: &[&str]| {
        for (name, _, place) in SOCKETS.iter().filter(|(name, _, _)| names.contains(name)) {
            (0..4).for_each(|_| assert_eq!(body(&address(place)), *name));
        }
    };
    let mut order: Vec<usize> = (0..SOCKETS.len()).collect();
    config(&["red", "green", "blue", "grey", "pink", "gold"]);
    install(Path::new(env!("CARGO_BIN_EXE_supervisor")));
    for round in 0..5 {
        // Units of other names each time: systemd's own order depends on them.
        let unit = |place: usize| format!("web{}.socket", (place * 7 + round * 5) % 97);
        for (place, (name, lines, _)) in SOCKETS.iter().enumerate() {
            let text = format!(
                "[Socket]\n{lines}\nFileDescriptorName={name}\nService={}\n",
                PLAIN.0
            );
            write(&format!("/run/systemd/system/{}", unit(place)), &text);
        }
        order.rotate_left(1);
        order.swap(0, 3);
        let units: Vec<String> = order.iter().map(|place| unit(*place)).collect();
        PLAIN.drop_in(&format!("Sockets={}", units.join(" ")));
        for name in &units {
            assert!(
                command(&["systemctl", "start", name]).status.success(),
                "{name}"
            );
        }
        let mut names: Vec<&str> = order.iter().map(|place| SOCKETS[*place].0).collect();
        config(&names);
        // The first connection starts the service.
        assert_eq!(
            body(&address("127.0.0.1:8101")),
            "red",
            "{}",
            PLAIN.journal()
        );
        wait_until("an active service", LONG, || {
            PLAIN.property("ActiveState") == "active"
        });
        check(&names);
        names.reverse();
        config(&names);
        PLAIN.must("reload");
        check(&names);
        PLAIN.must("restart");
        check(&names);
        // Only some of them: the others' connections wait with systemd's copy of the socket.
        names.truncate(3);
        config(&names);
        PLAIN.must("reload");
        check(&names);
        // A name that no socket has.
        config(&["red", "violet"]);
        assert!(!PLAIN.try_to("reload"));
        assert!(PLAIN.journal().contains("violet"), "{}", PLAIN.journal());
        check(&names);
        for name in units.iter().map(String::as_str).chain([PLAIN.0]) {
            command(&["systemctl", "stop", name]);
        }
        for name in &units {
            std::fs::remove_file(format!("/run/systemd/system/{name}")).expect("removed");
        }
    }
}
