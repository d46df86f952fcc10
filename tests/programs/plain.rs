//! A small HTTP server on descriptor 3 that knows nothing but the standard library, one connection
//! at a time. SIGTERM: finish, leave.
//!
//! Variables for tests: START_DELAY=SECONDS makes it slow to start; if BROKEN=FILE exists, it cannot
//! start; IN_FLIGHT=FILE is written when /slow is being answered.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

static BELL: AtomicI32 = AtomicI32::new(-1);

#[repr(C)]
struct PollFd {
    fd: i32,
    events: i16,
    revents: i16,
}

// The standard library has no signals, no poll, and no safe way to take an inherited socket: the
// only place outside prefork-os with `unsafe`, as rustc compiles this without any crate.
unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn write(fd: i32, bytes: *const u8, length: usize) -> isize;
    fn poll(fds: *mut PollFd, count: u64, timeout: i32) -> i32;
}

extern "C" fn ring(_: i32) {
    // SAFETY: one byte of a static array.
    unsafe { write(BELL.load(Ordering::Relaxed), b"!".as_ptr(), 1) };
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn answer(mut connection: TcpStream) -> std::io::Result<()> {
    // An accepted socket is blocking, whatever the listening one is.
    let mut request = Vec::new();
    while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        let mut bytes = [0; 4096];
        let length = connection.read(&mut bytes)?;
        if length == 0 {
            return Ok(());
        }
        request.extend_from_slice(&bytes[..length]);
    }
    if request.starts_with(b"GET /slow ") {
        std::fs::write(variable("IN_FLIGHT"), "")?;
        std::thread::sleep(Duration::from_secs(1));
    } else if request.starts_with(b"GET /block ") {
        std::thread::sleep(Duration::from_secs(3600));
    }
    let body = "Hello from Rust";
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
    let generation = variable("PREFORK_GENERATION");
    let ours = format!("x-prefork-generation: {generation}\r\nx-prefork-pid: {}\r\n\r\n", std::process::id());
    connection.write_all((head + &ours + body).as_bytes())
}

fn main() {
    assert!(!std::path::Path::new(&variable("BROKEN")).exists(), "broken");
    let (bell, theirs) = UnixStream::pair().expect("a socketpair");
    BELL.store(theirs.as_raw_fd(), Ordering::Relaxed);
    // SAFETY: the handler only writes to a descriptor that stays open.
    unsafe { signal(15, ring) };
    let delay = variable("START_DELAY").parse().unwrap_or(0.0);
    std::thread::sleep(Duration::from_secs_f64(delay));
    // SAFETY: the supervisor opened it for us, and nothing else here has taken it.
    let listener = unsafe { TcpListener::from_raw_fd(3) };
    listener.set_nonblocking(true).expect("a listening socket");
    loop {
        let mut both = [listener.as_raw_fd(), bell.as_raw_fd()].map(|fd| PollFd { fd, events: 1, revents: 0 });
        // SAFETY: two entries, as it says.
        unsafe { poll(both.as_mut_ptr(), 2, -1) };
        if both[1].revents != 0 {
            return;
        }
        // The listening socket is non-blocking: another worker may have taken the connection.
        if let Ok((connection, _)) = listener.accept() {
            let _ = answer(connection);
        }
    }
}
