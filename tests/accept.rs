//! `--accept`: the queues that a worker takes connections from.

use nix::sys::signal::Signal::{SIGCONT, SIGHUP, SIGSTOP, SIGTTOU};
use testkit::load::{Plan, run, start};
use testkit::{LONG, Server, Setup, wait_until};

fn setup(accept: &str) -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--accept", accept])
}

fn hello(server: &Server, requests: u64) {
    let plan = Plan::fresh(&server.address(), 8)
        .http("/", Some("Hello, client!"))
        .count(requests);
    run(&plan).assert_flawless();
}

#[test]
fn every_way_serves_over_tcp_and_unix_sockets() {
    for accept in ["own", "steal", "shared"] {
        hello(&setup(accept).workers(3).start(), 300);
        hello(&setup(accept).workers(3).bind_unix().start(), 300);
    }
}

#[test]
fn a_stopped_worker_keeps_no_client_waiting() {
    for accept in ["steal", "shared"] {
        for class in ["sync", "threads", "async"] {
            let server = setup(accept).workers(4).args(["--class", class]).start();
            let stopped = &server.workers()[1];
            stopped.process.signal(SIGSTOP);
            wait_until("it has stopped", LONG, || stopped.process.is_stopped());
            // With a quarter of them in its queue for good, this could not end.
            hello(&server, 400);
            assert!(
                stopped.process.is_stopped(),
                "{accept} {class}: it was not needed"
            );
            stopped.process.signal(SIGCONT);
        }
    }
}

#[test]
fn a_client_in_the_queue_of_a_stopped_worker_that_steals_nothing_is_served_when_it_goes_on() {
    let server = setup("own").workers(1).start();
    let worker = &server.workers()[0];
    worker.process.signal(SIGSTOP);
    let load = start(
        Plan::fresh(&server.address(), 8)
            .http("/", Some("Hello, client!"))
            .count(8),
    );
    worker.process.signal(SIGCONT);
    load.wait().assert_flawless();
}

#[test]
fn a_reload_may_change_the_way_under_load() {
    let file =
        |accept: &str| format!("accept = \"{accept}\"\nworkers = 3\nmin-ready = \"100ms\"\n");
    let mut server = Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .config(&file("steal"))
        .start();
    let load = start(Plan::fresh(&server.address(), 16).http("/", Some("Hello, client!")));
    for accept in ["own", "shared", "steal", "shared", "own", "steal"] {
        load.wait_for_more(200);
        let before = server.generation();
        server.file("config.toml", &file(accept));
        server.signal(SIGHUP);
        server.wait_for_generation_after(before);
        assert_eq!(
            server.ready()[0].variable("PREFORK_ACCEPT").as_deref(),
            Some(accept)
        );
    }
    load.wait_for_more(200);
    load.finish().assert_flawless();
}

#[test]
fn beyond_eight_slots_workers_still_cover_each_other() {
    let server = setup("steal").workers(12).start();
    let workers = server.workers();
    // Of any eight neighbours one goes on.
    let stopped: Vec<_> = workers
        .iter()
        .filter(|worker| worker.slot % 6 != 5)
        .collect();
    for worker in &stopped {
        worker.process.signal(SIGSTOP);
        wait_until("it has stopped", LONG, || worker.process.is_stopped());
    }
    hello(&server, 400);
    for worker in stopped {
        worker.process.signal(SIGCONT);
    }
}

#[test]
fn a_scale_down_far_beyond_eight_slots_leaves_no_client_behind() {
    let server = setup("steal").workers(12).start();
    let load = start(Plan::fresh(&server.address(), 16).http("/", Some("Hello, client!")));
    for left in (1..12).rev() {
        server.signal(SIGTTOU);
        wait_until("there is one worker less", LONG, || {
            server.workers().len() == left
        });
        load.wait_for_more(50);
    }
    load.finish().assert_flawless();
}
