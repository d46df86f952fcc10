//! Every peer does, without load, what the suite asks of it under load.

use chaos::Pattern;
use chaos::subject::{Asked, Broken, LARGE, SMALL, Setup, Subject, Verdict, peers};
use nix::sys::signal::Signal;
use std::io::{Read, Write};
use testkit::process::Process;
use testkit::{Address, LONG, skipped, wait_until};

/// Asks on a connection of its own and returns the body.
fn ask(address: &Address, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let mut stream = address.connect().expect("connected");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nx-chaos-request: 7\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream
        .write_all(&[head.as_bytes(), body].concat())
        .expect("asked");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answered");
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .expect("a head")
        + 4;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{path}: {head}");
    assert!(
        head.contains("x-chaos-request: 7\r\n") && head.contains("x-chaos-pid: "),
        "{path}: {head}"
    );
    let length = answer.len() - end;
    assert!(
        head.contains(&format!("content-length: {length}\r\n")),
        "{path}: {length} bytes and {head}"
    );
    answer.split_off(end)
}

fn serves(subject: &dyn Subject) {
    for address in subject.addresses() {
        for length in SMALL.into_iter().chain([LARGE]) {
            let path = format!("/bytes/3/{length}");
            assert!(
                ask(&address, "GET", &path, b"") == Pattern::new(3, length).bytes(),
                "{path}"
            );
        }
        if subject.offers().handlers {
            assert_eq!(
                ask(&address, "GET", "/wait/1/17?ms=5", b""),
                Pattern::new(1, 17).bytes()
            );
            assert_eq!(
                ask(&address, "GET", "/block/1/17?ms=5", b""),
                Pattern::new(1, 17).bytes()
            );
        }
        if subject.offers().echo {
            let body = Pattern::new(9, 16 * 1024).bytes();
            assert!(
                ask(&address, "POST", "/echo", &body) == body,
                "the echo differs"
            );
        }
    }
}

/// Asserts that it worked, or is something that the peer does not know. `before` are the workers
/// from before it.
#[track_caller]
fn did(what: &str, verdict: &Verdict, before: &[Process], subject: &dyn Subject) -> bool {
    match verdict {
        Verdict::Done => {}
        Verdict::Unsupported(_) => return false,
        other => panic!("{what}: {other:?}\n{}", subject.log().join("\n")),
    }
    wait_until(&format!("it to settle after {what}"), LONG, || {
        subject.settled()
    });
    // Node's `server.close()` cuts off a response that was ended and is not yet written: a worker
    // that leaves is no part of what is asked here.
    let serving = subject.workers().expect("workers");
    wait_until(
        &format!("the workers replaced by {what} to leave"),
        LONG,
        || {
            let mut left = before.iter().filter(|worker| !serving.contains(worker));
            left.all(|worker| !worker.runs())
        },
    );
    serves(subject);
    true
}

/// Tries all and returns what it could do.
fn tried(name: &str, bind: &[&str]) -> Vec<&'static str> {
    let setup = Setup {
        bind: bind.iter().map(|&place| place.to_owned()).collect(),
        workers: 3,
        class: String::new(),
        binaries: std::path::PathBuf::new(),
        words: Vec::new(),
    };
    let subject = match peers::start(name, &setup) {
        Ok(subject) => subject,
        Err(why) if why.contains("not installed") => {
            skipped(name, &why);
            return Vec::new();
        }
        Err(why) => panic!("{why}"),
    };
    let subject = &*subject;
    assert!(!subject.name().contains("unknown"), "{}", subject.name());
    serves(subject);
    let mut could = Vec::new();
    let mut note = |what: &'static str, act: &dyn Fn() -> Verdict| {
        let before = subject.workers().expect("workers");
        if did(what, &act(), &before, subject) && !could.contains(&what) {
            could.push(what);
        }
    };
    note("reload", &|| subject.reload(Asked::Signal, true));
    note("scale", &|| subject.scale(1, true));
    note("scale", &|| subject.scale(3, true));
    for _ in 0..2 {
        note("upgrade", &|| subject.upgrade(true));
    }
    for how in Broken::ALL {
        note("broken reload", &|| {
            subject.broken_reload(how, true, &|_| {})
        });
    }
    note("reload", &|| subject.reload(Asked::Signal, true));
    let worker = subject.workers().expect("workers")[0];
    note("drain", &|| {
        let verdict = subject.drain_worker(worker);
        wait_until("the drained worker to leave", LONG, || {
            verdict != Verdict::Done || !worker.runs()
        });
        verdict
    });
    if subject.heals() {
        let worker = subject.workers().expect("workers")[0];
        worker.signal(Signal::SIGKILL);
        wait_until("the killed worker to be gone", LONG, || !worker.runs());
        wait_until("another one in its place", LONG, || subject.settled());
        serves(subject);
        could.push("heal");
    }
    subject
        .stop(LONG)
        .unwrap_or_else(|why| panic!("{why}\n{}", subject.log().join("\n")));
    could
}

const V4: &str = "127.0.0.1:0";
const ALL: [&str; 3] = [V4, "[::1]:0", "unix"];

#[track_caller]
fn can(name: &str, bind: &[&str], what: &[&str]) {
    let could = tried(name, bind);
    assert!(could.is_empty() || could == what, "{name} could {could:?}");
}

#[test]
fn nginx_with_one_queue() {
    can(
        "nginx",
        &ALL,
        &[
            "reload",
            "scale",
            "upgrade",
            "broken reload",
            "drain",
            "heal",
        ],
    );
}

#[test]
fn nginx_with_reuseport() {
    can(
        "nginx-reuseport",
        &ALL,
        &[
            "reload",
            "scale",
            "upgrade",
            "broken reload",
            "drain",
            "heal",
        ],
    );
}

#[test]
fn haproxy() {
    can(
        "haproxy",
        &ALL,
        &["reload", "scale", "upgrade", "broken reload"],
    );
}

#[test]
fn gunicorn_sync() {
    can(
        "gunicorn-sync",
        &ALL,
        &["reload", "scale", "upgrade", "drain", "heal"],
    );
}

#[test]
fn gunicorn_with_threads() {
    can(
        "gunicorn-gthread",
        &ALL,
        &["reload", "scale", "upgrade", "drain", "heal"],
    );
}

#[test]
fn uvicorn() {
    can("uvicorn", &[V4], &["reload", "scale", "drain", "heal"]);
}

#[test]
fn granian() {
    can("granian", &[V4], &["reload", "heal"]);
}

#[test]
fn node_cluster() {
    can("node-cluster", &ALL, &["reload", "scale", "drain", "heal"]);
}
