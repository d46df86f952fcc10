//! The connections that a worker holds, by their clients' ends.
//!
//! The worker is stopped first, so that what is read is what is true until it is killed: it can
//! neither accept nor close a connection in between. What still waits in a queue is not held by any
//! worker.

use crate::client::Name;
use nix::sys::signal::Signal;
use nix::sys::socket::{SockaddrStorage, getpeername};
use prefork_os::pidfd;
use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};
use testkit::process::Process;

/// Stops a worker and reads which connections it holds. It stays stopped.
///
/// # Errors
/// When it is gone, or cannot be looked into.
pub(crate) fn hold(worker: Process) -> Result<HashSet<Name>, String> {
    let failed =
        |what: &str, error: &dyn std::fmt::Display| format!("{what} of {}: {error}", worker.0);
    let process = pidfd::open(worker.pid()).map_err(|error| failed("the process", &error))?;
    worker.signal(Signal::SIGSTOP);
    wait_until_stopped(worker)?;
    let entries = std::fs::read_dir(format!("/proc/{}/fd", worker.0));
    let entries = entries.map_err(|error| failed("the descriptors", &error))?;
    let mut names = HashSet::new();
    for entry in entries.flatten() {
        let is_socket = std::fs::read_link(entry.path())
            .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
        let Some(number) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if !is_socket {
            continue;
        }
        let copy = pidfd::copy_descriptor(process.as_fd(), number)
            .map_err(|error| failed("a socket", &error))?;
        // A listener has no peer, and the peer of a channel has no name.
        let peer = getpeername::<SockaddrStorage>(copy.as_raw_fd()).ok();
        names.extend(peer.as_ref().and_then(Name::of));
    }
    Ok(names)
}

/// A process is stopped when each of its threads is.
fn wait_until_stopped(worker: Process) -> Result<(), String> {
    let end = Instant::now() + Duration::from_secs(5);
    let stopped = |entry: std::io::Result<std::fs::DirEntry>| {
        let stat = entry.and_then(|entry| std::fs::read_to_string(entry.path().join("stat")));
        // A thread that has gone meanwhile runs no more.
        stat.map_or(true, |stat| {
            stat.rsplit_once(')')
                .is_some_and(|(_, rest)| rest.trim_start().starts_with(['T', 't', 'Z', 'X']))
        })
    };
    loop {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", worker.0));
        let tasks = tasks.map_err(|error| format!("the threads of {}: {error}", worker.0))?;
        let all: Vec<bool> = tasks.map(stopped).collect();
        if !worker.runs() {
            return Err(format!("process {} is gone", worker.0));
        }
        if all.iter().all(|stopped| *stopped) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("process {} does not stop", worker.0));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, socket};
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
    use std::os::unix::net::UnixListener;
    use std::process::{Command, Stdio};

    #[test]
    fn a_stopped_process_tells_whose_connections_it_holds() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let client =
            TcpStream::connect(listener.local_addr().expect("bound")).expect("a connection");
        let (held, _) = listener.accept().expect("a connection");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let unix = UnixListener::bind(&path).expect("a socket");
        let name = format!("chaos-test-{}", std::process::id());
        let client_socket = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::empty(),
            None,
        )
        .expect("a socket");
        let own = UnixAddr::new_abstract(name.as_bytes()).expect("a name");
        bind(client_socket.as_raw_fd(), &own).expect("an unused name");
        connect(
            client_socket.as_raw_fd(),
            &UnixAddr::new(&path).expect("a path"),
        )
        .expect("a connection");
        let (held_unix, _) = unix.accept().expect("a connection");
        // A child that inherits both connections, and says so before it sleeps.
        let inherit = |fd: BorrowedFd<'_>| -> OwnedFd { fd.try_clone_to_owned().expect("a copy") };
        let mut child = Command::new("sh")
            .args(["-c", "echo ready; exec sleep 60"])
            .stdin(inherit(held.as_fd()))
            .stderr(inherit(held_unix.as_fd()))
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut ready = [0; 6];
        child
            .stdout
            .as_mut()
            .expect("a pipe")
            .read_exact(&mut ready)
            .expect("it says that it is ready");
        let names = hold(Process(child.id())).expect("the child can be looked into");
        child.kill().expect("our child");
        child.wait().expect("our child");
        let tcp = Name::Tcp(client.local_addr().expect("bound"));
        assert_eq!(names, HashSet::from([tcp, Name::Unix(name.into_bytes())]));
        assert!(
            hold(Process(child.id())).is_err(),
            "a process that is gone holds nothing"
        );
    }
}
