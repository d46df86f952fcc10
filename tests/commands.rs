//! The commands for a running server, from the operator's side: what they exit with, how long they
//! wait, and what they say of a server that does not answer as it should.

use nix::sys::signal::Signal;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use testkit::{LONG, Server, Setup};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).patient()
}

fn spawn(control: &Path, words: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_supervisor"));
    command
        .args(words)
        .arg("--control")
        .arg(control)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().expect("it can be run")
}

fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// Waits until a command has ended, at most this long.
#[track_caller]
fn finish(mut child: Child, what: &str, limit: Duration) -> Output {
    let mut ended = || child.try_wait().expect("a child of ours").is_some();
    let end = std::time::Instant::now() + limit;
    while !ended() {
        if std::time::Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            panic!("`{what}` has not ended within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().expect("its output")
}

/// Sends a line to the control socket, and returns the last line of the answer.
fn ask(server: &Server, request: &str) -> Value {
    let mut stream = UnixStream::connect(server.control()).expect("connect");
    writeln!(stream, "{request}").expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let last = answer.lines().last().expect("a line");
    serde_json::from_str(last).expect("JSON")
}

#[test]
fn a_stopped_supervisor_is_reported_within_a_bounded_time() {
    let server = setup().workers(1).start();
    let commands: [&[&str]; 8] = [
        &["status"],
        &["status", "--check"],
        &["config"],
        &["events"],
        &["scale", "1"],
        &["stop", "--wait"],
        &["reload", "--wait"],
        &["events", "--follow"],
    ];
    server.signal(Signal::SIGSTOP);
    testkit::wait_until("it is stopped", LONG, || server.process().is_stopped());
    let children = commands.map(|words| spawn(&server.control(), words));
    for (words, child) in commands.iter().zip(children) {
        let output = finish(child, &words.join(" "), LONG * 3);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
        let pid = format!("pid {}", server.process().0);
        assert!(
            said.contains("has not answered") && said.contains(&pid),
            "{words:?}: {said}"
        );
    }
    server.signal(Signal::SIGCONT);
    assert_eq!(
        server.state(),
        "serving",
        "a command that gave up is not obeyed"
    );
}

#[test]
fn status_check_succeeds_only_while_the_server_is_ready() {
    let check = |server: &Server| {
        let output = server.command(&["status", "--check"]);
        (output.status.code(), said(&output))
    };
    let script = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)\n\
                  import socket\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
                  s.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'].replace('@', '\\0'))\n\
                  time.sleep(600)\n";
    let mut server = setup()
        .workers(1)
        .args(["--ready", "notify"])
        .program(["python3", "-c", script])
        .spawn();
    testkit::wait_until("it answers", LONG, || server.try_status().is_some());
    let (code, text) = check(&server);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("not ready: its state is starting"), "{text}");
    server.file("go", "");
    server.wait_until_settled(LONG);
    assert_eq!(check(&server), (Some(0), "ready: serving\n".to_owned()));
    let json = server.command(&["status", "--check", "--json"]);
    let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json, serde_json::json!({"ready": true, "state": "serving"}));
    server.signal(Signal::SIGINT);
    server.wait_exit(LONG);
    let (code, text) = check(&server);
    assert!(code == Some(1) && text.contains("cannot reach"), "{text}");
}

#[test]
fn stop_wait_returns_when_the_supervisor_has_ended() {
    let mut server = setup().workers(1).args(["--app", "sleep"]).start();
    let mut client = server.connect();
    write!(client, "GET /?ms=1500 HTTP/1.1\r\nHost: a\r\n\r\n").expect("a request");
    testkit::wait_until("the request is in flight", LONG, || server.busy() == 1);
    let output = server.command(&["stop", "--wait"]);
    assert!(output.status.success(), "{output:?}");
    let exit = server.try_exit();
    assert!(exit.is_some_and(|exit| exit.success()), "it has ended");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn a_stream_of_events_ends_well_when_the_server_stops() {
    let mut server = setup().workers(1).start();
    let mut follow = spawn(&server.control(), &["events", "--follow", "--json"]);
    let mut lines = BufReader::new(follow.stdout.take().expect("a pipe")).lines();
    lines.next().expect("an event").expect("a line");
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit(LONG).success());
    let output = finish(follow, "events --follow", LONG);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let rest: Vec<String> = lines.map(|line| line.expect("a line")).collect();
    let last = rest.last().expect("an event");
    assert!(
        last.contains("\"kind\":"),
        "only events are printed: {last}"
    );

    let server = setup().workers(1).start();
    let mut follow = spawn(&server.control(), &["events", "--follow"]);
    let mut lines = BufReader::new(follow.stdout.take().expect("a pipe")).lines();
    lines.next().expect("an event").expect("a line");
    server.signal(Signal::SIGKILL);
    let output = finish(follow, "events --follow", LONG);
    assert_eq!(output.status.code(), Some(1), "it was killed: {output:?}");
}

#[test]
fn an_answer_of_another_version_or_program_is_refused_in_plain_words() {
    let directory = tempfile::tempdir().expect("a folder");
    let path = directory.path().join("other.sock");
    let listener = UnixListener::bind(&path).expect("bind");
    for (answer, words) in [
        (
            "{\"version\":2,\"ok\":true,\"status\":{\"state\":7}}\n",
            "speaks version 2 of the control protocol, and this command version 1",
        ),
        (
            "HTTP/1.1 400 Bad Request\r\n\r\n",
            "does another program listen",
        ),
        (
            "{\"version\":1,\"ok\":true,\"status\":{\"pid\":\"x\"}}\n",
            "other kinds of values",
        ),
    ] {
        let child = spawn(&path, &["status"]);
        let (mut stream, _) = listener.accept().expect("a client");
        let mut request = String::new();
        BufReader::new(&stream)
            .read_line(&mut request)
            .expect("a request");
        stream.write_all(answer.as_bytes()).expect("answer");
        drop(stream);
        let output = finish(child, "status", LONG);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words), "{said}");
        assert!(!said.contains(" at line "), "no text of the parser: {said}");
    }
}

#[test]
fn a_request_is_refused_for_what_it_does_not_know_and_for_slots_that_do_not_exist() {
    let server = setup().workers(2).start();
    for (request, words) in [
        (r#"{"command":"status","x":1}"#, "has no field `x`"),
        (r#"{"command":"config","wait":true}"#, "has no field `wait`"),
        (r#"{"command":"scale"}"#, "needs `workers`"),
        (r#"{"command":"drain","slot":77}"#, "no slot 77"),
        (r#"{"command":"restart-worker","slot":77}"#, "no slot 77"),
    ] {
        let answer = ask(&server, request);
        let reason = answer["error"].as_str().unwrap_or_default();
        assert_eq!(answer["ok"], false, "{request}: {answer}");
        assert!(reason.contains(words), "{request}: {reason}");
        assert!(!reason.contains(" at line "), "{request}: {reason}");
    }
    let old = server.workers()[1].process;
    let answer = ask(&server, r#"{"command":"restart-worker","slot":1}"#);
    assert_eq!(answer, serde_json::json!({"version": 1, "ok": true}));
    server.wait_for_replacement(1, old);
}

#[test]
fn what_a_reload_cannot_change_is_warned_of_each_time() {
    let config = |rest: &str| format!("workers = 1\nmin-ready = \"50ms\"\n{rest}");
    let mut server = setup().config(&config("name = \"shop\"\n")).start();
    let changed = config("name = \"blog\"\nlog-format = \"json\"\ncgroups = \"off\"\n");
    server.file("config.toml", &changed);
    for count in 1..=2 {
        server.reload();
        for name in ["name", "log-format", "cgroups"] {
            let warning = format!("{name}: the change has no effect before the next start");
            let lines = server.log().lines();
            let warned = lines.iter().filter(|line| line.contains(&warning)).count();
            assert_eq!(warned, count, "{lines:?}");
        }
    }
    assert_eq!(server.status()["instance"], "shop", "so it is found by it");
    server.file("config.toml", &config("name = \"shop\"\n"));
    server.reload();
    let warnings = "before the next start";
    let lines = server.log().lines();
    let warned = lines.iter().filter(|line| line.contains(warnings)).count();
    assert_eq!(warned, 6, "nothing is changed any more: {lines:?}");
}

#[test]
fn a_stray_word_or_number_gets_a_remedy() {
    let run = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_supervisor"));
        let output = command.args(words).output().expect("it can be run");
        (output.status.code(), said(&output))
    };
    for (words, remedy) in [
        (&["statsu"][..], "did you mean `supervisor status`?"),
        (&["restart"], "did you mean `supervisor restart-worker`?"),
        (
            &["scale", "x"],
            "`x` is no whole number (write one from 0 to 1024)",
        ),
        (&["drain", "-1"], "-1 is out of range (0 to 1024)"),
        (&["events", "-n", "x"], "`x` is no whole number"),
        (&["events", "--since", "x"], "`x` is no number of an event"),
        (&["app.py"], "a program comes after `--`"),
    ] {
        let (code, said) = run(words);
        assert_eq!(code, Some(2), "{words:?}: {said}");
        assert!(said.contains(remedy), "{words:?}: {said}");
    }
    let (code, help) = run(&["help", "scale"]);
    assert_eq!(code, Some(0), "{help}");
    assert!(help.contains("Usage: supervisor scale"), "{help}");
    let (_, all) = run(&["--help"]);
    for command in ["  help ", "  man ", "  completions "] {
        assert!(all.contains(command), "{command}: {all}");
    }
}

#[test]
fn a_shell_completes_values() {
    let complete = |option: &str| {
        let script = format!(
            "source <('{}' completions bash); COMP_WORDS=(supervisor {option} ''); COMP_CWORD=2; \
             _supervisor supervisor '' {option}; echo \"${{COMPREPLY[@]}}\"",
            env!("CARGO_BIN_EXE_supervisor")
        );
        let output = Command::new("bash").args(["-c", &script]).output();
        said(&output.expect("bash")).trim().to_owned()
    };
    assert_eq!(complete("--class"), "sync threads async");
    assert_eq!(complete("--private-tmp"), "on off");
    assert_eq!(complete("--log-format"), "text json");
    assert!(complete("--on-event-kinds").contains("reload-failed"));
}
