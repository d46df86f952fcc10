//! Descriptors: taking over inherited ones, copying, flags.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::ffi::c_long;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

/// Makes a descriptor non-blocking. The flag belongs to the open file, so every process that shares
/// it sees it.
///
/// # Errors
/// Those of fcntl(2).
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd();
    fcntl(fd, FcntlArg::F_SETFL(flags(fd)? | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Makes a descriptor blocking, the opposite of [`set_nonblocking`].
///
/// # Errors
/// Those of fcntl(2).
pub fn set_blocking(fd: impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd();
    fcntl(fd, FcntlArg::F_SETFL(flags(fd)? - OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Whether a descriptor is non-blocking.
///
/// # Errors
/// Those of fcntl(2).
#[inline]
pub fn is_nonblocking(fd: impl AsFd) -> io::Result<bool> {
    Ok(flags(fd.as_fd())?.contains(OFlag::O_NONBLOCK))
}

fn flags(fd: BorrowedFd<'_>) -> io::Result<OFlag> {
    Ok(OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?))
}

/// Takes ownership of a descriptor that this process inherited, and has it closed on exec.
///
/// What exec has left open is not closed on exec, and everything that this process opens is: so the
/// flag distinguishes an inherited descriptor from one that has an owner here, and adopting sets
/// it, so that a number is adopted once.
///
/// # Errors
/// `EBADF` when no such descriptor is open, or when it has an owner: it is closed on exec, or a
/// standard one.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    /// Of two threads that adopt a number, the second must see the flag that the first has set.
    static ADOPTING: Mutex<()> = Mutex::new(());
    let _adopting = ADOPTING.lock().unwrap_or_else(PoisonError::into_inner);
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_GETFD reads the flags of a descriptor and touches no memory.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_SETFD changes the flags of a descriptor and touches no memory.
    if unsafe { libc::fcntl(number, libc::F_SETFD, flags | libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and has no owner: all that is opened or owned here is closed on exec (an
    // invariant of this crate), and this was not until now.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Copies the descriptor that has this number at present. The copy is closed on exec.
///
/// # Errors
/// Those of fcntl(2).
pub fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl touches no memory, and fails when there is no such descriptor.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
    owned(copy.into())
}

/// Takes what a system call has returned that opens a descriptor, or its error.
pub(crate) fn owned(returned: c_long) -> io::Result<OwnedFd> {
    let number = RawFd::try_from(returned)
        .ok()
        .filter(|number| *number >= 0)
        .ok_or_else(io::Error::last_os_error)?;
    // SAFETY: by this function's contract the kernel has just opened it, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, IntoRawFd};

    #[test]
    fn only_an_inherited_descriptor_is_adopted_and_only_once() {
        let refused = |number| adopt(number).expect_err("refused").raw_os_error();
        let file = std::fs::File::open("/dev/null").expect("a file");
        assert_eq!(refused(file.as_raw_fd()), Some(libc::EBADF), "it is owned");
        for number in [-1, 0, 1, 2, 1_000_000] {
            assert_eq!(refused(number), Some(libc::EBADF), "{number}");
        }
        // As exec leaves a descriptor.
        let inherited = nix::unistd::dup(&file).expect("a copy").into_raw_fd();
        let adopted = adopt(inherited).expect("it has no owner");
        assert_eq!(refused(adopted.as_raw_fd()), Some(libc::EBADF), "twice");
    }
}
