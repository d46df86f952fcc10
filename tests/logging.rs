//! The log's destination: pipes that are not read, sockets, standard streams of other users.

use nix::sys::signal::Signal::{SIGHUP, SIGTERM};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use testkit::{LONG, Server, Setup, http, skipped, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--min-ready", "50ms"])
}

/// Makes a named pipe that is full and has no other reader than this.
fn full_pipe(path: &Path) -> File {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options.custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits());
    let mut pipe = options.open(path).expect("open");
    while pipe.write(&[b'\n'; 4096]).is_ok() {}
    pipe
}

/// Reads what is in a pipe, until `text` has come.
#[track_caller]
fn read_until(pipe: &mut File, text: &str) -> String {
    let mut all = String::new();
    wait_until(text, LONG, || {
        let mut buffer = [0; 65536];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            all.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        all.contains(text)
    });
    all
}

#[test]
fn a_log_on_a_pipe_that_is_not_read_holds_up_neither_supervisor_nor_workers() {
    let file = |setup: Setup| {
        let path = setup.path("pipe").into_os_string();
        setup.args(["--log-file".into(), path])
    };
    let stdout = |setup: Setup| {
        setup
            .wrapped(["sh", "-c", "exec \"$@\" 1<>pipe", "sh"])
            .args(["--log-file", "/dev/stdout"])
    };
    for with_log in [file as fn(Setup) -> Setup, stdout] {
        let setup = with_log(
            setup()
                .workers(2)
                .args(["--app", "hello", "--slow-log", "1ms"]),
        );
        let mut pipe = full_pipe(&setup.path("pipe"));
        let mut server = setup.start();
        for round in 2..=3 {
            server.signal(SIGHUP);
            wait_until("a reload", LONG, || {
                server.generation() == round && server.is_settled()
            });
            assert_eq!(server.get("/").status, 200);
        }
        let log = read_until(&mut pipe, "reloaded: 2 workers of generation 3 serve");
        assert!(log.contains("listening on"), "{log}");
        // Its reader leaves again.
        while pipe.write(&[b'\n'; 4096]).is_ok() {}
        server.signal(SIGTERM);
        assert!(server.wait_exit(LONG).success());
    }
}

#[test]
fn a_named_pipe_may_have_its_reader_later() {
    let setup = setup().workers(1);
    let path = setup.path("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let mut server = setup
        .args(["--log-file".into(), path.clone().into_os_string()])
        .start();
    let mut pipe = OpenOptions::new()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open(path)
        .expect("open");
    read_until(&mut pipe, "listening on");
    drop(pipe);
    server.reload();
}

#[test]
fn standard_streams_that_are_sockets_are_written_by_their_paths() {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    ours.set_read_timeout(Some(LONG)).expect("a limit");
    let server = setup()
        .workers(1)
        .wrapped(["sh", "-c", "exec \"$@\" >&0 2>&0 </dev/null", "sh"])
        .input(theirs)
        .args(["--log-file", "/dev/stdout", "--access-log", "/dev/stderr"])
        .args(["--slow-log", "1ms", "--app", "sleep"])
        .start();
    http::get(&server.address(), "/?ms=5").expect("an answer");
    let mut lines = BufReader::new(ours).lines();
    let mut wanted = vec![
        "listening on",
        "slow request: ",
        "\"GET /?ms=5 HTTP/1.1\" 200",
    ];
    while !wanted.is_empty() {
        let line = lines.next().expect("more lines").expect("in time");
        wanted.retain(|text| !line.contains(text));
    }
}

#[test]
fn workers_of_another_user_can_open_their_standard_streams() {
    if !nix::unistd::geteuid().is_root() {
        return skipped(
            "workers_of_another_user",
            "only root can become another user",
        );
    }
    let program = "echo by name >/dev/stdout; echo and error >/dev/stderr; exec sleep 1000";
    for stderr in ["capture", "inherit"] {
        let server = setup()
            .workers(1)
            .env("PATH", "/usr/bin:/bin")
            .args(["--user", "65534", "--worker-stderr", stderr])
            .program(["sh", "-c", program])
            .start();
        server.wait_for_log("by name");
        server.wait_for_log("and error");
    }
}
