//! What the lines of `scripts/loosen.conf` achieve. They are read from that file.

use super::{PLAIN, begin, body, configure, v4};
use std::path::Path;
use testkit::unit::install;
use testkit::{root, wait_until};

/// The lines under the comment that begins like this, without their `#`.
fn lines(comment: &str) -> String {
    let text = std::fs::read_to_string(root().join("scripts/loosen.conf")).expect("the drop-in");
    let (_, rest) = text
        .split_once(comment)
        .unwrap_or_else(|| panic!("no comment `{comment}`"));
    let lines = rest
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with('#'));
    lines
        .map(|line| line.trim_start_matches('#'))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The pids that answer.
fn workers() -> Vec<String> {
    let status = testkit::unit::said(&["supervisor", "status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let slots = status["slots"].as_array().expect("slots");
    slots
        .iter()
        .map(|slot| slot["workers"][0]["pid"].to_string())
        .collect()
}

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_delegated() {
    configure("");
    begin(&lines("# A control group for each worker"));
    let group =
        |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let is_apart = || {
        let own = group(&PLAIN.pid());
        let all: Vec<String> = workers().iter().map(|pid| group(pid)).collect();
        own.trim_end().ends_with("prefork.service/supervisor")
            && all
                .iter()
                .all(|group| group.contains("prefork.service/worker-"))
            && all[0] != all[1]
    };
    assert!(is_apart(), "{:?} {}", workers(), PLAIN.journal());
    PLAIN.must("reload");
    wait_until("groups of the new workers", testkit::LONG, is_apart);
    assert_eq!(body(&v4()), "Hello, client!");
    PLAIN.must("restart");
    assert!(is_apart(), "also where an earlier supervisor was");
    PLAIN.must("stop");
}

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_other_user() {
    configure("user = \"nobody\"\ndirectory = \"/\"");
    let needed = lines("# `supervisor --user`");
    install(Path::new(env!("CARGO_BIN_EXE_supervisor")));
    // What is missing is named; it was a panic once.
    PLAIN.drop_in(&needed.replace(" setfsuid setfsgid", ""));
    assert!(!PLAIN.try_to("start"));
    assert!(
        PLAIN
            .journal()
            .contains("allow setgroups, setfsgid and setfsuid"),
        "{}",
        PLAIN.journal()
    );
    PLAIN.must("stop");
    begin(&needed);
    let user = |pid: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .expect("a line");
        line.split_whitespace().next().expect("a number").to_owned()
    };
    assert_eq!(user(&PLAIN.pid()), "0");
    for pid in workers() {
        assert_eq!(user(&pid), "65534");
    }
    PLAIN.must("reload");
    assert_eq!(body(&v4()), "Hello, client!");
    PLAIN.must("stop");
}
