//! The suite itself, against the real server: a good one passes, and one that loses requests does
//! not.

use serde_json::Value;
use std::process::{Command, Output};

fn chaos(words: &[&str]) -> (Output, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaos"));
    // Less than usual: this is the unoptimised build.
    command
        .args(["--json", "--workers", "4", "--load", "0.3"])
        .args(words);
    let output = command.output().expect("the binary can be run");
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output, report)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_short_run_is_flawless_and_its_seed_decides_what_is_done() {
    let kinds = |report: &Value| {
        let operations = report["operations"]
            .as_object()
            .expect("operations by kind")
            .clone();
        operations
            .keys()
            .filter(|kind| *kind != "settle")
            .cloned()
            .collect::<Vec<_>>()
    };
    let (first, report) = chaos(&["--steps", "5", "--seed", "3"]);
    assert!(first.status.success(), "{}\n{report:#}", text(&first));
    assert_eq!((&report["seed"], &report["steps"]), (&3.into(), &5.into()));
    assert!(
        report["requests"]["verified"].as_u64() > Some(100),
        "{report:#}"
    );
    let (again, repeated) = chaos(&["--steps", "5", "--seed", "3"]);
    assert!(again.status.success(), "{}\n{repeated:#}", text(&again));
    assert_eq!(kinds(&report), kinds(&repeated));
}

#[test]
fn killed_workers_cost_what_they_held_and_nothing_else() {
    let (output, report) = chaos(&["--steps", "4", "--seed", "5", "--only", "kill,abort"]);
    assert!(output.status.success(), "{}\n{report:#}", text(&output));
    let kills = report["kills"].as_array().expect("a list");
    assert!(kills.len() >= 4, "{report:#}");
    assert!(
        kills.iter().any(|kill| kill["held"].as_u64() > Some(0)),
        "{report:#}"
    );
}

#[test]
fn a_server_that_cuts_its_clients_off_is_found_out() {
    // Draining workers are killed at once, whatever they have in flight.
    let words = [
        "--seed",
        "5",
        "--steps",
        "6",
        "--only",
        "reload,scale",
        "--log",
        "/dev/null",
    ];
    let (output, report) =
        chaos(&[&words[..], &["--word=--graceful-timeout", "--word=0s"]].concat());
    assert_eq!(output.status.code(), Some(1), "{report:#}");
    assert!(
        report["requests"]["unexplained"].as_u64() > Some(0),
        "{report:#}"
    );
    let study = text(&output);
    assert!(
        study.contains("the same plan again: --seed 5") && study.contains("step 1"),
        "{study}"
    );
}

#[test]
fn what_cannot_be_asked_is_said() {
    let output = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(["--shapes", "round"])
        .output();
    let output = output.expect("the binary can be run");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output).contains("there is no shape round"),
        "{}",
        text(&output)
    );
}
