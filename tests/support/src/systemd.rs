//! A real systemd, in namespaces of its own.

use crate::{root, skipped};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a program under a throw-away systemd that has these units. Directories in `shown` look
/// inside as they do outside. Skips `test`, and says so, where that is not possible.
///
/// # Panics
/// When the program fails, with all that it said.
#[track_caller]
pub fn run(test: &str, units: &[PathBuf], shown: &[&Path], program: &Path, arguments: &[&OsStr]) {
    boot(test, &[], units, shown, program, arguments);
}

/// As [`run`], under a newer systemd than the machine's: the one that `scripts/newer-systemd` has
/// fetched.
///
/// # Panics
/// As [`run`].
#[track_caller]
pub fn run_newer(
    test: &str,
    units: &[PathBuf],
    shown: &[&Path],
    program: &Path,
    arguments: &[&OsStr],
) {
    let packages = fetched("newer-systemd");
    if packages.is_empty() {
        return skipped(
            test,
            "no newer systemd is there (scripts/newer-systemd fetches one)",
        );
    }
    boot(test, &packages, units, shown, program, arguments);
}

/// Returns the Debian packages that the script of this name in `scripts/` has fetched, in order of
/// their names; none when it has not been run to its end.
pub fn fetched(script: &str) -> Vec<PathBuf> {
    let directory = root().join("target").join(script);
    if !directory.join("complete").exists() {
        return Vec::new();
    }
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut packages: Vec<_> = files
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "deb"))
        .collect();
    packages.sort();
    packages
}

#[track_caller]
fn boot(
    test: &str,
    packages: &[PathBuf],
    units: &[PathBuf],
    shown: &[&Path],
    program: &Path,
    arguments: &[&OsStr],
) {
    if !nix::unistd::geteuid().is_root() {
        return skipped(
            test,
            "needs root, to boot a systemd in namespaces of its own",
        );
    }
    if !Path::new("/usr/lib/systemd/systemd").exists()
        && !Path::new("/lib/systemd/systemd").exists()
    {
        return skipped(test, "systemd is not installed");
    }
    let output = Command::new(root().join("scripts/with-systemd"))
        .arg("--timeout=120")
        .args(
            packages
                .iter()
                .map(|package| format!("--deb={}", package.display())),
        )
        .args(
            shown
                .iter()
                .map(|directory| format!("--bind={}", directory.display())),
        )
        .args(units)
        .arg("--")
        .arg(program)
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("the script can be run");
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    if output.status.code() == Some(125) || output.status.code() == Some(2) {
        // A container may forbid what a systemd needs; that says nothing about the server.
        let last = error.lines().last().unwrap_or_default();
        return skipped(test, &format!("systemd did not boot here: {last}"));
    }
    assert!(output.status.success(), "{said}\n{error}");
}

/// Whether this process runs under a systemd that [`run`] has booted, where it may do anything.
pub fn is_inside() -> bool {
    let environment = std::fs::read("/proc/1/environ").unwrap_or_default();
    environment
        .split(|byte| *byte == 0)
        .any(|variable| variable == b"container=throw-away")
}
