//! A unit under a systemd that [`systemd::run`](crate::systemd::run) has booted. For programs that
//! run inside.

use crate::wait::{LONG, wait_until};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The place that the shipped units name.
pub const BINARY: &str = "/usr/local/bin/supervisor";

/// A unit, by its name.
#[derive(Debug, Clone, Copy)]
pub struct Unit(pub &'static str);

/// Puts the binary where the units look for it. Running processes keep the old one.
///
/// # Panics
/// When this is no throw-away systemd, or it cannot be written.
pub fn install(binary: &Path) {
    assert!(crate::systemd::is_inside(), "this would change the machine");
    let new = format!("{BINARY}.new");
    std::fs::create_dir_all("/etc/prefork").expect("a directory");
    std::fs::copy(binary, &new).expect("copied");
    std::fs::rename(&new, BINARY).expect("replaced");
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be run.
pub fn command(words: &[&str]) -> Output {
    Command::new(words[0])
        .args(&words[1..])
        .output()
        .unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

/// What a command says on standard output.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn said(words: &[&str]) -> String {
    let output = command(words);
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

impl Unit {
    /// `systemctl VERB`; whether it returned 0.
    pub fn try_to(&self, verb: &str) -> bool {
        command(&["systemctl", verb, self.0]).status.success()
    }

    /// `systemctl VERB`.
    ///
    /// # Panics
    /// When it fails; with the journal.
    #[track_caller]
    pub fn must(&self, verb: &str) {
        assert!(
            self.try_to(verb),
            "systemctl {verb} {}: {}",
            self.0,
            self.journal()
        );
    }

    /// A property, as `systemctl show` tells it.
    pub fn property(&self, name: &str) -> String {
        said(&["systemctl", "show", "-P", name, self.0])
    }

    /// The main process.
    pub fn pid(&self) -> String {
        self.property("MainPID")
    }

    /// Whether it serves, by systemd's word. A reload that is going on counts.
    pub fn is_active(&self) -> bool {
        ["active", "reloading"].contains(&self.property("ActiveState").as_str())
    }

    /// How many descriptors systemd keeps for it.
    ///
    /// # Panics
    /// When systemd does not tell.
    pub fn stored(&self) -> u32 {
        self.property("NFileDescriptorStore")
            .parse()
            .expect("a number")
    }

    /// Its whole journal.
    pub fn journal(&self) -> String {
        said(&["journalctl", "--no-pager", "--output=cat", "--unit", self.0])
    }

    /// Its journal, entry by entry, with all fields.
    ///
    /// # Panics
    /// When journalctl writes no JSON.
    pub fn entries(&self) -> Vec<serde_json::Value> {
        let text = said(&[
            "journalctl",
            "--no-pager",
            "--output=json",
            "--all",
            "--unit",
            self.0,
        ]);
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    /// Changes it by a drop-in; none of these tests is about restarting too often.
    ///
    /// # Panics
    /// When that cannot be written, or systemd does not take it.
    pub fn drop_in(&self, service: &str) {
        assert!(crate::systemd::is_inside(), "this would change the machine");
        let directory = PathBuf::from(format!("/run/systemd/system/{}.d", self.0));
        std::fs::create_dir_all(&directory).expect("a directory");
        let text = format!("[Unit]\nStartLimitIntervalSec=0\n[Service]\n{service}\n");
        std::fs::write(directory.join("test.conf"), text).expect("written");
        said(&["systemctl", "daemon-reload"]);
    }

    /// Waits for another main process than `pid`, which serves.
    pub fn wait_for_another(&self, pid: &str) {
        wait_until("another supervisor that serves", LONG, || {
            self.pid() != pid && self.property("ActiveState") == "active"
        });
    }
}
