//! The supervisor as the first process of a container.

use nix::sys::signal::Signal;
use std::process::{Command, Stdio};
use testkit::load::{Plan, run, start};
use testkit::process::Process;
use testkit::{LONG, Server, Setup, root, skipped, wait_for, wait_until};

/// A server that is process 1 of a new PID namespace; `None`, with a note, where there can be none.
fn first_process(test: &str, prepare: impl FnOnce(Setup) -> Setup) -> Option<(Server, Process)> {
    let unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    if !Command::new(unshare[0])
        .args(&unshare[1..])
        .arg("true")
        .status()
        .is_ok_and(|status| status.success())
    {
        skipped(test, "no PID namespace can be made (needs root)");
        return None;
    }
    let setup = prepare(Server::setup(env!("CARGO_BIN_EXE_supervisor"))).wrapped(unshare);
    let server = setup.start();
    let first = server
        .process()
        .children()
        .into_iter()
        .next()
        .expect("unshare has forked");
    Some((server, first))
}

/// Has a process that the server did not start run a script in its namespace, as `docker exec`
/// does.
fn unrelated(first: Process, script: &str) -> std::process::Child {
    Command::new("nsenter")
        .args([
            "--pid",
            "--mount",
            "--target",
            &first.0.to_string(),
            "sh",
            "-c",
            script,
        ])
        .stdin(Stdio::null())
        .spawn()
        .expect("nsenter belongs to util-linux")
}

#[test]
fn ten_thousand_orphans_are_buried_while_it_serves() {
    let setup = |setup: Setup| setup.workers(2).args(["--log-level", "debug"]);
    let Some((server, first)) = first_process("orphans", setup) else {
        return;
    };
    let idle = first.children().len();
    let load = start(Plan::fresh(&server.address(), 4).http("/", Some("Hello, client!")));
    // Each `( : & )` leaves a process behind whose parent is gone.
    let mut maker = unrelated(
        first,
        "i=0; while [ $i -lt 10000 ]; do ( : & ); i=$((i + 1)); done",
    );
    assert!(maker.wait().expect("our child").success());
    wait_until("all orphans to be reaped", LONG, || {
        first.children().len() == idle
    });
    load.wait_for_more(20);
    load.finish().assert_flawless();
    let reaped = || {
        server
            .log()
            .lines()
            .iter()
            .filter(|line| line.contains(" orphan "))
            .count()
    };
    wait_until("each of them to be reaped by the supervisor", LONG, || {
        reaped() >= 10_000
    });
}

#[test]
fn unrelated_processes_get_none_of_its_signals_and_it_stops_in_time() {
    let setup = |setup: Setup| {
        setup
            .workers(2)
            .args(["--app", "sleep", "--min-ready", "50ms"])
    };
    let Some((mut server, first)) = first_process("signals", setup) else {
        return;
    };
    let mut unrelated_process = unrelated(first, "exec sleep 1000");
    let generation = server.generation();
    for signal in [Signal::SIGUSR1, Signal::SIGTTIN, Signal::SIGTTOU] {
        first.signal(signal);
    }
    first.signal(Signal::SIGHUP);
    server.wait_for_generation_after(generation);
    assert!(
        unrelated_process.try_wait().expect("our child").is_none(),
        "it runs on"
    );
    let load = start(
        Plan::fresh(&server.address(), 8)
            .http("/?ms=5000", None)
            .count(8),
    );
    wait_until("eight requests in flight", LONG, || server.busy() == 8);
    first.signal(Signal::SIGTERM);
    load.wait().assert_flawless();
    assert!(
        server.wait_exit(LONG).success(),
        "it waits for no unrelated process"
    );
    // The kernel ends whatever is left in the namespace.
    wait_for("the unrelated process's end", LONG, || {
        unrelated_process.try_wait().expect("our child")
    });
}

#[test]
fn what_workers_leave_is_killed_and_what_unrelated_processes_leave_is_not() {
    let setup = |setup: Setup| {
        let program = testkit::program("crashing.py").into_os_string();
        setup
            .workers(1)
            .args(["--min-ready", "50ms"])
            .program(["python3".into(), program])
    };
    let Some((mut server, first)) = first_process("leftovers", setup) else {
        return;
    };
    // `docker exec` may leave a process behind; it becomes process 1's child.
    let mut maker = unrelated(first, "( setsid sleep 1001 & )");
    assert!(maker.wait().expect("our child").success());
    let child = |seconds: &str| {
        let command = format!("sleep {seconds}");
        first
            .children()
            .into_iter()
            .find(|process| process.command_line().trim_end() == command)
    };
    let strangers = wait_for("the stranger's child", LONG, || child("1001"));
    // Five in sessions of their own with the worker's environment, some behind a parent; and one
    // that hides whose it is: process 1 cannot know that it is no stranger, so it lives.
    let program = "
def leave(seconds, environment, parent=False):
    pid = os.fork()
    if pid == 0:
        connection.close()
        os.setsid()
        if os.fork(): os._exit(0)
        if parent and os.fork():
            while True: __import__('time').sleep(100)
        os.execvpe('sleep', ['sleep', seconds], environment)
    os.waitpid(pid, 0)
for number in range(5): leave('1002', os.environ, number % 2 == 1)
leave('1003', {k: v for k, v in os.environ.items() if k != 'PREFORK_WORKER'})
";
    let digits = testkit::hex(program);
    testkit::http::get(&server.address(), &format!("/{digits}")).expect("an answer");
    let hidden = wait_for("the process that hides", LONG, || child("1003"));
    let generation = server.generation();
    first.signal(Signal::SIGHUP);
    server.wait_for_generation_after(generation);
    // Three sleepers, two parents and two sleepers behind them.
    wait_until("seven are killed", LONG, || {
        server.log().count(" had left behind") == 7
    });
    wait_until("only three are left", LONG, || first.children().len() == 3);
    assert!(strangers.runs() && hidden.runs());
}

/// The instructions of the file: name and argument, continuation lines joined.
fn instructions(text: &str) -> Vec<(String, String)> {
    let joined = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .collect::<Vec<_>>()
        .join("\n");
    let joined = joined.replace("\\\n", " ");
    let lines = joined
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    let split = |line: &str| {
        let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        (
            name.to_owned(),
            argument.split_whitespace().collect::<Vec<_>>().join(" "),
        )
    };
    lines.map(split).collect()
}

#[test]
fn the_containerfile_builds_of_what_is_there_and_its_command_serves_and_stops() {
    let text = std::fs::read_to_string(root().join("Containerfile")).expect("the file");
    let all = instructions(&text);
    let known = [
        "FROM",
        "WORKDIR",
        "COPY",
        "RUN",
        "USER",
        "ENV",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
        "LABEL",
    ];
    for (name, argument) in &all {
        assert!(
            known.contains(&name.as_str()),
            "unknown instruction {name} {argument}"
        );
    }
    let last = all
        .iter()
        .rposition(|(name, _)| name == "FROM")
        .expect("it has stages");
    let of = |name: &str| {
        let found = all[last..]
            .iter()
            .find(|(instruction, _)| instruction == name);
        found.map_or_else(
            || panic!("the last stage has no {name}"),
            |(_, argument)| argument.clone(),
        )
    };
    // What is copied from the checkout is there, and what is copied from the builder was built
    // there.
    for (_, argument) in all.iter().filter(|(name, _)| name == "COPY") {
        let words: Vec<_> = argument.split(' ').collect();
        for source in words[..words.len() - 1]
            .iter()
            .filter(|word| !word.starts_with("--"))
        {
            if argument.contains("--from=") {
                assert_eq!(*source, "/src/target/dist/supervisor");
            } else {
                assert!(root().join(source).exists(), "COPY {source}");
            }
        }
    }
    assert!(all[..last].iter().any(|(name, argument)| name == "RUN"
        && argument.contains("cargo build --profile dist --locked")));
    assert_eq!(of("STOPSIGNAL"), "SIGTERM");
    let user = of("USER");
    assert!(
        user.split(':')
            .all(|part| part.parse::<u32>().is_ok_and(|id| id > 0)),
        "a number, not root: {user}"
    );
    let words = |name: &str| -> Vec<String> {
        serde_json::from_str(&of(name)).unwrap_or_else(|_| panic!("{name} is not in exec form"))
    };
    let (entry, arguments) = (words("ENTRYPOINT"), words("CMD"));
    assert_eq!(entry, ["/usr/local/bin/supervisor"]);
    let environment: Vec<(String, String)> = of("ENV")
        .split(' ')
        .map(|pair| {
            pair.split_once('=')
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .expect("KEY=VALUE")
        })
        .collect();
    let grace = environment
        .iter()
        .find(|(key, _)| key == "SUPERVISOR_GRACEFUL_TIMEOUT")
        .expect("a grace");
    assert_eq!(grace.1, "8s", "below the ten seconds that engines give");

    // The same words and variables as process 1, with nothing else in the environment, but on a
    // free port.
    let port: u16 = of("EXPOSE").parse().expect("a port");
    let arguments = arguments
        .iter()
        .map(|word| word.replace(&format!("0.0.0.0:{port}"), "127.0.0.1:0"));
    let arguments: Vec<_> = arguments.collect();
    assert!(
        arguments.contains(&"127.0.0.1:0".to_owned()),
        "it listens at the exposed port: {arguments:?}"
    );
    let prepare = |setup: Setup| {
        let setup = environment
            .iter()
            .fold(setup, |setup, (key, value)| setup.env(key, value));
        setup.args(arguments.clone())
    };
    let Some((mut server, first)) = first_process("Containerfile", prepare) else {
        return;
    };
    run(&Plan::fresh(&server.address(), 2)
        .http("/", Some("Hello, client!"))
        .count(20))
    .assert_flawless();
    first.signal(Signal::SIGTERM);
    assert!(server.wait_exit(LONG).success());
}
