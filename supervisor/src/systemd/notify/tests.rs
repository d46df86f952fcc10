use super::server::Received;
use super::*;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use nix::unistd::Pid;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

fn me() -> Pid {
    nix::unistd::getpid()
}

fn receive(server: &NotifyServer, known: impl Fn(Pid) -> bool) -> Received {
    let mut waited = [PollFd::new(server.as_fd(), PollFlags::POLLIN)];
    assert_eq!(
        poll(&mut waited, PollTimeout::from(20_000_u16)),
        Ok(1),
        "nothing within 20 s"
    );
    server.receive(known).expect("recvmsg").expect("a message")
}

fn line_to(server: &NotifyServer) -> Notifier {
    Notifier::new(Some(server.address()), None).expect("a line")
}

fn says(server: &NotifyServer, message: &str) -> Vec<WorkerNotice> {
    line_to(server).send(message).expect("sent");
    receive(server, |_| true).notices
}

#[test]
fn what_the_supervisor_says_arrives_by_path_and_by_abstract_name() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("notify");
    let systemd = UnixDatagram::bind(&path).expect("bound");
    let watchdog = Some(Duration::from_secs(10));
    let notifier = Notifier::new(Some(path.as_os_str()), watchdog).expect("a line");
    let heard = |systemd: &UnixDatagram| {
        let mut bytes = [0; 512];
        let length = systemd.recv(&mut bytes).expect("received");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    notifier
        .ready("8 workers\nMAINPID=1\r\x1b[31m")
        .expect("sent");
    assert_eq!(heard(&systemd), "READY=1\nSTATUS=8 workersMAINPID=1[31m");
    let before = prefork_os::monotonic().as_micros();
    notifier.reloading("reloading").expect("sent");
    let text = heard(&systemd);
    let time = text
        .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
        .and_then(|text| text.strip_suffix("\nSTATUS=reloading"));
    assert!(time.expect("fields").parse::<u128>().expect("number") >= before);
    notifier.stopping("bye").expect("sent");
    assert_eq!(heard(&systemd), "STOPPING=1\nSTATUS=bye");
    notifier.status("fine").expect("sent");
    assert_eq!(heard(&systemd), "STATUS=fine");
    notifier.watchdog().expect("sent");
    assert_eq!(heard(&systemd), "WATCHDOG=1");
    assert_eq!(notifier.watchdog_period(), Some(Duration::from_secs(5)));

    let server = NotifyServer::bind(None).expect("bound");
    assert!(server.address().as_bytes().starts_with(b"@"));
    line_to(&server).ready("up").expect("sent");
    let received = receive(&server, |pid| pid == me());
    let notices = vec![WorkerNotice::Ready, WorkerNotice::Status("up".to_owned())];
    assert_eq!(
        received,
        Received {
            sender: me(),
            worker: Some(me()),
            notices
        }
    );
    assert_eq!(server.receive(|_| true).expect("recvmsg"), None);
}

#[test]
fn without_a_line_every_message_is_a_success() {
    let silent = Notifier::default();
    assert!(!silent.is_connected());
    silent.ready("unheard").expect("nothing to fail");
    assert_eq!(silent.watchdog_period(), None);
    assert!(
        !Notifier::new(Some("".as_ref()), None)
            .expect("as if unset")
            .is_connected()
    );
    for odd in ["@", "relative", "vsock:2:1234"] {
        let error = Notifier::new(Some(odd.as_ref()), None)
            .expect_err("refused")
            .to_string();
        assert_eq!(
            error,
            format!("NOTIFY_SOCKET={odd} is no path and no @name of a Unix socket")
        );
    }
}

#[test]
fn a_receiver_that_does_not_read_costs_a_message_not_time() {
    let server = NotifyServer::bind(None).expect("bound");
    let notifier = line_to(&server);
    let mut error = (0..100_000)
        .find_map(|_| notifier.watchdog().err())
        .expect("the queue is full");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    drop(server);
    // A fork of another test may hold a copy of the socket until its exec.
    while error.kind() == io::ErrorKind::WouldBlock {
        std::thread::yield_now();
        error = notifier.watchdog().expect_err("it is full");
    }
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn workers_words_are_understood_and_others_ignored() {
    use WorkerNotice::{ExtendTimeout, Ready, Status, Stopping, Watchdog};
    let server = NotifyServer::bind(None).expect("bound");
    let all = "STATUS=warm\tup \u{7}\nREADY=1\n\nWATCHDOG=1\nFDSTORE=1\nMAINPID=1\nSTOPPING=1\n\
               EXTEND_TIMEOUT_USEC=1500\n";
    let expected = [
        Status("warmup ".to_owned()),
        Ready,
        Watchdog,
        Stopping,
        ExtendTimeout(Duration::from_micros(1500)),
    ];
    assert_eq!(says(&server, all), expected);
    for odd in [
        "",
        "\n\n",
        "=",
        "READY",
        "READY=",
        "READY=0",
        "ready=1",
        "EXTEND_TIMEOUT_USEC=-1",
        "EXTEND_TIMEOUT_USEC=99999999999999999999",
    ] {
        assert_eq!(says(&server, odd), [], "{odd:?}");
    }
    assert_eq!(
        says(&server, &format!("STATUS={}", "ä".repeat(300))),
        [Status("ä".repeat(256))]
    );
    assert_eq!(
        says(&server, &format!("READY=1\n{}", "x".repeat(4096))),
        [],
        "too long to be believed in part"
    );
    let raw = UnixDatagram::unbound().expect("socket");
    let name = &server.address().as_bytes()[1..];
    let address =
        <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(
            name,
        );
    raw.send_to_addr(b"STATUS=\xff\xfe\nREADY=1", &address.expect("name"))
        .expect("sent");
    let received = receive(&server, |_| true);
    assert_eq!(
        received.notices,
        [Status("\u{fffd}\u{fffd}".to_owned()), Ready]
    );
}

#[test]
fn descriptors_that_come_along_are_closed_at_once() {
    let server = NotifyServer::bind(None).expect("bound");
    let name = &server.address().as_bytes()[1..];
    let address = UnixAddr::new_abstract(name).expect("name");
    let client = UnixDatagram::unbound().expect("socket");
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("pipe");
    let descriptors: Vec<RawFd> = vec![writer.as_raw_fd(); 253];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let text = [IoSlice::new(b"BARRIER=1\nREADY=1")];
    sendmsg(
        client.as_raw_fd(),
        &text,
        &rights,
        MsgFlags::empty(),
        Some(&address),
    )
    .expect("sent");
    drop(writer);
    assert_eq!(receive(&server, |_| true).notices, [WorkerNotice::Ready]);
    let mut ended = [0; 1];
    let mut waited = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    // It ends only when all 253 copies are closed here.
    assert_eq!(
        poll(&mut waited, PollTimeout::from(20_000_u16)),
        Ok(1),
        "some copy is open after 20 s"
    );
    let mut reader = std::fs::File::from(reader);
    assert_eq!(reader.read(&mut ended).expect("read"), 0);
}

/// A process that waits for the end of its standard input.
fn waiting(script: &str, server: &NotifyServer) -> Child {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", script])
        .stdin(std::process::Stdio::piped());
    command
        .env("NOTIFY_SOCKET", server.address())
        .env("TEST_BINARY", std::env::current_exe().expect("known"));
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn().expect("sh")
}

/// Not a test of its own: the descendants below run this binary with a filter that matches it
/// alone.
#[test]
fn say_ready_when_asked_to() {
    if std::env::var_os("SAY_READY").is_some() {
        Notifier::from_env()
            .expect("a line")
            .ready("from a descendant")
            .expect("sent");
        // Its sender must be alive when the message is read.
        let _ = io::stdin().read(&mut [0; 1]);
    }
}

#[test]
fn a_descendant_speaks_for_its_worker_and_an_unrelated_process_for_none() {
    let directory = tempfile::tempdir().expect("directory");
    let server = NotifyServer::bind(Some(directory.path())).expect("bound");
    assert!(Path::new(server.address()).starts_with(directory.path()));
    let say = "SAY_READY=1 \"$TEST_BINARY\" \
               --exact systemd::notify::tests::say_ready_when_asked_to --nocapture >/dev/null";
    // In the worker's process group; and in one of its own, two generations down.
    for script in [
        format!("{say}; :"),
        format!("setsid -w sh -c '{say}; :'; :"),
    ] {
        let mut worker = waiting(&script, &server);
        let pid = Pid::from_raw(i32::try_from(worker.id()).expect("a pid"));
        let received = receive(&server, |candidate| candidate == pid);
        assert_eq!(received.worker, Some(pid), "{script}");
        assert_ne!(received.sender, pid);
        assert_eq!(received.notices[0], WorkerNotice::Ready);
        drop(worker.stdin.take());
        worker.wait().expect("reaped");
    }
    line_to(&server).watchdog().expect("sent");
    let received = receive(&server, |_| false);
    assert_eq!((received.sender, received.worker), (me(), None));
    let file = server.address().to_owned();
    drop(server);
    assert!(!Path::new(&file).exists());
}

#[test]
fn a_directory_that_cannot_be_used_leads_to_an_abstract_name() {
    let server = NotifyServer::bind(Some(Path::new("/nonexistent"))).expect("bound");
    assert!(server.address().as_bytes().starts_with(b"@"));
}
