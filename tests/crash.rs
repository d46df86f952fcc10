//! Workers that die or hang, and a supervisor that does.

use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP};
use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};
use testkit::load::{Failure, Plan, run, start};
use testkit::{Address, LONG, Server, Setup, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor"))
}

#[test]
fn a_killed_worker_is_replaced_and_only_what_it_held_is_lost() {
    const CLIENTS: usize = 16;
    let server = setup().workers(4).start();
    let load = start(Plan::fresh(&server.address(), CLIENTS).http("/", Some("Hello, client!")));
    load.wait_for_more(100);
    for worker in server.workers() {
        let others: Vec<_> = server
            .ready()
            .into_iter()
            .filter(|other| *other != worker.process)
            .collect();
        worker.process.signal(SIGKILL);
        server.wait_for_replacement(worker.slot, worker.process);
        assert!(
            others.iter().all(|other| server.ready().contains(other)),
            "the others stay"
        );
        load.wait_for_more(100);
    }
    let report = load.finish();
    let held = report.count(Failure::ReadReset)
        + report.count(Failure::EofEarly)
        + report.count(Failure::WriteReset)
        + report.count(Failure::CloseReset);
    assert_eq!(
        report.failed(),
        held,
        "nothing that no worker held: {report}"
    );
    assert!(held <= 4 * CLIENTS as u64, "{report}");
    run(&Plan::fresh(&server.address(), 8).count(200)).assert_flawless();
}

#[test]
fn the_first_death_is_replaced_at_once() {
    let server = setup().workers(2).start();
    let worker = server.workers().remove(0);
    let began = Instant::now();
    worker.process.signal(SIGKILL);
    server.wait_for_replacement(worker.slot, worker.process);
    let took = began.elapsed();
    println!("killed to ready, as seen from outside: {took:?}");
    let line = server.wait_for_log("killed by SIGKILL");
    assert!(line.contains("replacing it at once"), "{line}");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn requests_of_another_worker_survive_a_death() {
    // On a busy machine one worker could steal all requests of the other.
    let server = setup()
        .workers(2)
        .args(["--app", "sleep", "--accept", "own"])
        .start();
    let load = start(
        Plan::fresh(&server.address(), 16)
            .http("/?ms=6000", None)
            .timeout(2 * LONG)
            .count(16),
    );
    wait_until("sixteen requests in both workers", LONG, || {
        let workers = server.workers();
        server.busy() == 16 && workers.iter().all(|worker| worker.busy > 0)
    });
    let victim = server.workers().remove(0);
    victim.process.signal(SIGKILL);
    let report = load.wait();
    assert!(
        report.answered > 0 && !report.pids.contains_key(&victim.process.0.to_string()),
        "{report}"
    );
    assert_eq!(report.answered + report.failed(), 16, "{report}");
    assert_eq!(
        report.count(Failure::ResponseTimeout) + report.count(Failure::Refused),
        0,
        "{report}"
    );
}

#[test]
fn a_stopped_worker_is_aborted_killed_and_replaced() {
    let server = setup().workers(4).args(["--hang-timeout", "1s"]).start();
    let worker = server.workers().remove(1);
    worker.process.signal(SIGSTOP);
    server.wait_for_replacement(worker.slot, worker.process);
    wait_until("the hung worker's end", LONG, || !worker.process.runs());
    server.wait_for_log(&format!("{}", worker.process.0));
    assert_eq!(server.ready().len(), 4);
    run(&Plan::fresh(&server.address(), 8).count(200)).assert_flawless();
}

#[test]
fn while_a_worker_hangs_new_connections_are_served() {
    let server = setup().workers(2).args(["--hang-timeout", "3s"]).start();
    let worker = server.workers().remove(0);
    worker.process.signal(SIGSTOP);
    // A sibling takes what waits for the hung one. What it had accepted itself when it was stopped
    // stays with it.
    let report = run(&Plan::fresh(&server.address(), 8)
        .http("/", Some("Hello, client!"))
        .count(200));
    report.assert_flawless();
    server.wait_for_replacement(worker.slot, worker.process);
}

#[test]
fn a_supervisor_that_was_stopped_itself_kills_no_worker() {
    let server = setup().workers(2).args(["--hang-timeout", "2s"]).start();
    let before = server.ready();
    server.signal(SIGSTOP);
    wait_until("it to stop", LONG, || server.process().is_stopped());
    // Longer than the time after which a silent worker is killed; workers go on and beat meanwhile.
    std::thread::sleep(Duration::from_secs(5));
    server.signal(SIGCONT);
    run(&Plan::fresh(&server.address(), 8).count(100)).assert_flawless();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(server.ready(), before);
}

#[test]
fn stopping_all_processes_together_is_a_pause_and_kills_none() {
    let server = setup().workers(2).args(["--hang-timeout", "2s"]).start();
    let before = server.ready();
    let all_processes = || before.iter().copied().chain([server.process()]);
    all_processes().for_each(|process| process.signal(SIGSTOP));
    std::thread::sleep(Duration::from_secs(5));
    // The supervisor first, which then sees heartbeats that are all late.
    server.signal(SIGCONT);
    all_processes().for_each(|process| process.signal(SIGCONT));
    run(&Plan::fresh(&server.address(), 8).count(100)).assert_flawless();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(server.ready(), before);
}

#[test]
fn workers_do_not_outlive_a_killed_supervisor() {
    let mut server = setup().workers(4).start();
    let (workers, address) = (server.ready(), server.address());
    server.signal(SIGKILL);
    server.wait_exit(LONG);
    wait_until("the workers' end", LONG, || {
        workers.iter().all(|worker| !worker.runs())
    });
    // A process counts as dead when its first thread is; the last one closes the sockets.
    wait_until("the listening sockets to be closed", LONG, || {
        address.connect().is_err()
    });
    let again = setup().workers(1).bind(&address.to_string()).start();
    assert_eq!(again.get("/").status, 200);
}

#[test]
fn a_killed_supervisors_workers_leave_within_a_second_and_the_port_is_free() {
    let rust = setup().workers(2).args(["--app", "sleep"]);
    let external = setup().workers(2).program([
        "python3".into(),
        testkit::program("minimal.py").into_os_string(),
    ]);
    for setup in [rust, external] {
        let mut server = setup.start();
        let (workers, address) = (server.ready(), server.address());
        // One that would take far longer than a worker has.
        let mut client = address.connect().expect("connected");
        client
            .write_all(b"GET /?ms=60000 HTTP/1.1\r\nHost: x\r\n\r\n")
            .expect("sent");
        server.signal(SIGKILL);
        let killed = Instant::now();
        wait_until("the workers' end", LONG, || {
            workers.iter().all(|worker| !worker.runs())
        });
        // A second, and what a busy machine takes; far less than the request.
        assert!(
            killed.elapsed() < Duration::from_secs(10),
            "{:?}",
            killed.elapsed()
        );
        server.wait_exit(LONG);
        let Address::Tcp(port) = address else {
            panic!("a TCP address")
        };
        wait_until("the port to be free", LONG, || {
            TcpListener::bind(port).is_ok()
        });
    }
}

#[test]
fn a_crash_loop_is_degraded_and_heals() {
    let setup = setup().workers(3).args(["--ready", "notify"]);
    let flag = setup.path("broken");
    let app = std::fs::read_to_string(testkit::program("minimal.py")).expect("the \
     program").replacen(
        "\nmain()\n",
        &format!(
            "\nif os.environ['PREFORK_SLOT'] == '1' and os.path.exists({:?}): raise SystemExit(9)\n\
             main()\n",
            flag.display().to_string()
        ),
        1,
    );
    setup.file("app.py", &app);
    let path = setup.path("app.py");
    let mut server = setup
        .program(["python3".into(), path.into_os_string()])
        .start();
    server.file("broken", "");
    let victim = server
        .workers()
        .into_iter()
        .find(|worker| worker.slot == 1)
        .expect("a slot 1");
    victim.process.signal(SIGKILL);
    wait_until("degraded", LONG, || server.state() == "degraded");
    server.wait_for_log("status 9");
    run(&Plan::fresh(&server.address(), 4)
        .http("/", Some("Hello from Python"))
        .count(60))
    .assert_flawless();
    let crashes = server.log().count("status 9");
    std::thread::sleep(Duration::from_secs(1));
    assert!(
        server.log().count("status 9") <= crashes + 10,
        "retries back off"
    );
    std::fs::remove_file(server.path("broken")).expect("it was there");
    server.wait_until_settled(4 * LONG);
}

#[test]
fn a_first_start_that_cannot_work_ends_with_the_reason() {
    let (status, log) = setup().workers(2).program(["/nonexistent/program"]).run();
    assert_eq!(status.code(), Some(1), "{log:#?}");
    assert!(
        log.iter().any(|line| line.contains("/nonexistent/program")),
        "{log:#?}"
    );
    let (status, log) = setup().workers(2).program(["sh", "-c", "exit 7"]).run();
    assert_eq!(status.code(), Some(1), "{log:#?}");
    assert!(log.iter().any(|line| line.contains("status 7")), "{log:#?}");
}
