//! Connections taken out of a listener's queue, without ever waiting for one.
//!
//! accept(2) has no flag that keeps it from waiting: only `O_NONBLOCK` does, which belongs to the
//! open file, and every process that holds the listener shares that. External programs expect to
//! find it clear, as under systemd, so a worker may share a listener on which accept(2) waits. That
//! it was reported to have a connection proves little, because a sibling may have been faster. So
//! an alarm interrupts the call there.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// How long accept(2) may wait before it is interrupted, and again after each such time: the first
/// signal may arrive before the call waits.
const INTERVAL_NS: libc::c_long = 2_000_000;
/// The signal that interrupts it. It does nothing to a process without a handler.
const SIGNAL: libc::c_int = libc::SIGURG;

/// Takes one connection out of a listener's queue. The new descriptor is non-blocking and closed on
/// exec.
///
/// # Errors
/// Those of accept(2); `WouldBlock` when there is none, or when another process was faster.
#[inline]
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    if crate::descriptor::is_nonblocking(listener)? {
        take(listener)
    } else {
        take_from_blocking(listener)
    }
}

fn take(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: null pointers tell accept4 that the peer's address is not wanted.
    let fd = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            ptr::null_mut(),
            ptr::null_mut(),
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: accept4 has just made this descriptor, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes a connection where accept(2) would wait for one.
#[cold]
fn take_from_blocking(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    thread_local! {
        static ALARM: io::Result<Alarm> = Alarm::new();
    }
    let none = || io::Error::from_raw_os_error(libc::EAGAIN);
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::ZERO)? == 0 {
        return Err(none());
    }
    ALARM.with(|alarm| {
        let armed = alarm.as_ref().ok().map(Alarm::arm).transpose()?;
        let taken = take(listener);
        drop(armed);
        match taken {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(none()),
            taken => taken,
        }
    })
}

/// A timer that interrupts system calls of the thread that made it.
#[derive(Debug)]
struct Alarm {
    timer: libc::timer_t,
}

/// An alarm that rings until it is dropped.
struct Armed<'a>(&'a Alarm);

extern "C" fn nothing(_: libc::c_int) {}

impl Alarm {
    fn new() -> io::Result<Self> {
        use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
        let handler = SigHandler::Handler(nothing);
        // Without SA_RESTART, so that the call is not continued.
        let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing, so it is safe at any point of any thread.
        unsafe { sigaction(Signal::SIGURG, &action) }?;
        SigSet::from(Signal::SIGURG).thread_unblock()?;
        // SAFETY: sigevent is made of integers and pointers, for which zero is a value.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = SIGNAL;
        event.sigev_notify_thread_id = nix::unistd::gettid().as_raw();
        let mut timer = ptr::null_mut();
        // SAFETY: the kernel reads `event` and writes `timer`, and both outlive the call.
        let made =
            unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { timer })
    }

    fn arm(&self) -> io::Result<Armed<'_>> {
        self.set(INTERVAL_NS)?;
        Ok(Armed(self))
    }

    fn set(&self, nanoseconds: libc::c_long) -> io::Result<()> {
        let interval = libc::timespec {
            tv_sec: 0,
            tv_nsec: nanoseconds,
        };
        let times = libc::itimerspec {
            it_interval: interval,
            it_value: interval,
        };
        // SAFETY: the timer exists until `self` is dropped, and the kernel only reads `times`.
        let set = unsafe { libc::timer_settime(self.timer, 0, &raw const times, ptr::null_mut()) };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        // It cannot fail: the timer exists.
        let _ = self.0.set(0);
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: the timer was made by `new`, and nothing uses it after this.
        unsafe { libc::timer_delete(self.timer) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    #[test]
    fn nothing_is_waited_for_on_a_blocking_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let none = accept(listener.as_fd()).expect_err("nothing waits");
        assert_eq!(none.raw_os_error(), Some(libc::EAGAIN));
        let address = listener.local_addr().expect("an address");
        let client = TcpStream::connect(address).expect("connected");
        let taken = accept(listener.as_fd()).expect("one waits");
        drop((client, taken));
        // A sibling was faster: the queue is empty although it was seen not to be.
        let alarm = Alarm::new().expect("a timer");
        for _ in 0..20 {
            let began = Instant::now();
            let armed = alarm.arm().expect("armed");
            let none = take(listener.as_fd()).expect_err("nothing waits");
            drop(armed);
            assert_eq!(none.kind(), io::ErrorKind::Interrupted);
            assert!(began.elapsed() < Duration::from_secs(10));
        }
    }
}
