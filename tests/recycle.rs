//! Workers that are replaced before they have leaked too much, and a pre-stop delay: under load,
//! and nothing is lost.

use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};
use testkit::load::{Plan, run};
use testkit::{LONG, Server, Setup, wait_for, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--min-ready", "50ms"])
}

fn ids(server: &Server) -> BTreeSet<u64> {
    server.workers().iter().map(|worker| worker.id).collect()
}

fn deaths(server: &Server, cause: &str) -> u64 {
    server.status()["deaths"][cause]
        .as_u64()
        .expect("every cause is counted")
}

#[test]
fn recycling_by_requests_under_load_loses_nothing_and_takes_out_one_slot_at_a_time() {
    let server = setup().workers(4).args(["--max-requests", "300"]).start();
    let first = ids(&server);
    let address = server.address();
    let load = std::thread::spawn(move || run(&Plan::fresh(&address, 4).count(6000)));
    let mut most = 0;
    while !load.is_finished() {
        let status = server.status();
        most = most.max(status["unavailable"].as_u64().expect("a number"));
        assert_eq!(status["max_unavailable"], 1);
    }
    load.join().expect("the load").assert_flawless();
    assert!(most <= 1, "{most} slots were out at a time");
    wait_until("every slot's first worker is gone", LONG, || {
        ids(&server).is_disjoint(&first)
    });
    let recycled = deaths(&server, "recycle");
    assert!(
        (8..=25).contains(&recycled),
        "6000 requests at 240 to 300 each: {recycled} recycled"
    );
    let told = server.wait_for_log("is being recycled: it has served");
    assert!(
        told.contains("it serves until its replacement is ready"),
        "{told}"
    );
    assert_eq!(server.status()["deaths"]["exit"], 0);
}

#[test]
fn clients_that_stay_connected_lose_nothing_when_their_worker_is_recycled() {
    // A client that is not scheduled for half a second may ask just as its idle connection ends.
    let limits = [
        "--max-requests",
        "500",
        "--max-unavailable",
        "2",
        "--drain-idle",
        "5s",
    ];
    let server = setup().workers(4).args(limits).start();
    let first = ids(&server);
    run(&Plan::kept_alive(&server.address(), 8).count(8000)).assert_flawless();
    wait_until("every slot's first worker is gone", LONG, || {
        ids(&server).is_disjoint(&first)
    });
    assert_eq!(server.status()["deaths"]["drain-timeout"], 0);
}

#[test]
fn recycling_by_age_needs_no_load() {
    let server = setup()
        .workers(2)
        .args(["--max-age", "1s", "--max-unavailable", "50%"])
        .start();
    let first = ids(&server);
    wait_until("both are replaced", LONG, || {
        ids(&server).is_disjoint(&first)
    });
    assert!(deaths(&server, "recycle") >= 2);
    server.wait_for_log("old (limit ");
}

#[test]
fn recycling_by_memory_measures_any_program_from_outside() {
    let program = "import os, socket, sys
held = []
listener = socket.socket(fileno=3)
listener.setblocking(True)
while True:
    client, _ = listener.accept()
    client.recv(4096)
    held.append(bytearray(os.urandom(1 << 20) * 24))
    client.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok')
    client.close()
";
    let words = ["python3", "-c", program];
    let server = setup()
        .workers(1)
        .args(["--max-memory", "60MiB", "--ready", "listen"])
        .program(words)
        .start();
    let first = ids(&server);
    // The first time it may not be its program yet.
    let memory = || server.status()["slots"][0]["workers"][0]["memory"].as_u64();
    let memory = wait_for("its memory", LONG, || {
        memory().filter(|bytes| *bytes > 1 << 20)
    });
    assert!(memory < 40 << 20, "{memory} bytes at first");
    for _ in 0..4 {
        assert_eq!(server.get("/").body, "ok");
    }
    wait_until("it is replaced", LONG, || ids(&server).is_disjoint(&first));
    let told = server.wait_for_log("MiB of memory (limit ");
    assert!(told.contains("is being recycled: it uses"), "{told}");
    assert_eq!(deaths(&server, "recycle"), 1);
    assert_eq!(server.get("/").body, "ok");
}

#[test]
fn memory_is_that_of_the_whole_process_tree() {
    // A master with two workers, one of which has a session of its own.
    let program = "import os, time
for own in [False, True]:
    if os.fork() == 0:
        if own: os.setsid()
        held = os.urandom(1 << 20) * 40
        open('filled.%d' % own, 'w').close()
        time.sleep(600)
time.sleep(600)
";
    let server = setup()
        .workers(1)
        .args(["--max-memory", "10GiB", "--ready", "after=100ms"])
        .program(["python3", "-c", program])
        .start();
    let memory = || server.status()["slots"][0]["workers"][0]["memory"].as_u64();
    let filled = |name: &str| server.path(name).exists();
    wait_until("its workers have their memory", LONG, || {
        filled("filled.0") && filled("filled.1")
    });
    wait_until("all of it is measured", LONG, || {
        memory().is_some_and(|bytes| (80 << 20..160 << 20).contains(&bytes))
    });
}

#[test]
fn a_replacement_that_fails_leaves_the_old_worker_serving() {
    let broken = setup();
    let flag = broken.path("broken");
    let program = format!(
        "import os, socket, sys, time
if os.path.exists('{}'): sys.exit(3)
listener = socket.socket(fileno=3)
listener.setblocking(True)
while True:
    client, _ = listener.accept()
    client.recv(4096)
    client.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok')
    client.close()
",
        flag.display()
    );
    let server = broken
        .workers(1)
        .args(["--max-age", "5s", "--ready", "listen"])
        .program(["python3", "-c", &program])
        .start();
    let first = ids(&server);
    std::fs::write(&flag, "").expect("a flag");
    server.wait_for_log("could not be replaced and keeps serving: ");
    wait_until("it is tried again", LONG, || {
        server.log().count("keeps serving: ") > 2
    });
    assert_eq!(
        (
            ids(&server).intersection(&first).count(),
            server.get("/").body.as_str()
        ),
        (1, "ok")
    );
    std::fs::remove_file(&flag).expect("no flag");
    wait_until("it is replaced", LONG, || ids(&server).is_disjoint(&first));
    assert_eq!(server.get("/").body, "ok");
}

#[test]
fn a_pre_stop_delay_passes_before_the_stop_and_every_request_is_served_meanwhile() {
    let mut server = setup().workers(2).args(["--pre-stop-delay", "8s"]).start();
    assert_eq!(server.status()["ready"], true);
    server.signal(SIGTERM);
    let asked = Instant::now();
    server.wait_for_log("stopping in 8s");
    let status = server.status();
    assert_eq!(
        (&status["ready"], &status["state"]),
        (&false.into(), &"pre-stop".into())
    );
    // It heals meanwhile, and serves.
    let victim = server.workers().into_iter().next().expect("a worker");
    victim.process.signal(SIGKILL);
    server.wait_for_replacement(victim.slot, victim.process);
    run(&Plan::fresh(&server.address(), 2).count(50)).assert_flawless();
    let refused = server.command(&["scale", "3"]);
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("the server stops"),
        "{refused:?}"
    );
    assert!(server.wait_exit(LONG).success());
    assert!(
        asked.elapsed() >= Duration::from_secs(8),
        "{:?}",
        asked.elapsed()
    );
}

#[test]
fn a_second_term_does_not_wait_for_the_delay_and_lets_requests_end() {
    let mut server = setup()
        .workers(1)
        .args(["--app", "sleep", "--pre-stop-delay", "10m"])
        .start();
    let mut client = server.connect();
    client
        .write_all(b"GET /?ms=5000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .expect("sent");
    wait_until("the request to be in flight", LONG, || server.busy() == 1);
    server.signal(SIGTERM);
    server.wait_for_log("stopping in 600s");
    server.signal(SIGTERM);
    assert!(server.wait_exit(LONG).success());
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut client, &mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn a_limit_that_cannot_be_counted_is_a_warning() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_supervisor"))
        .args(["check", "--max-requests", "100", "--", "/bin/sleep", "1"])
        .output()
        .expect("check");
    let words = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(
        words.contains("--max-requests: has no effect on an external program"),
        "{words}"
    );
    for wrong in ["0", "200%", "x"] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_supervisor"))
            .args(["check", "--max-unavailable", wrong])
            .output()
            .expect("check");
        assert_eq!(output.status.code(), Some(2));
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("is no number of slots"),
            "{output:?}"
        );
    }
}
