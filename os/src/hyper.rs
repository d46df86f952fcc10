//! Receiving into hyper's buffers.

use hyper::rt::ReadBufCursor;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Receives into hyper's buffer without zeroing it first. `keep` sees what was received and returns
/// whether hyper may have it; what it refuses is as if it had not been put there.
///
/// # Errors
/// Those of recv(2).
#[inline]
pub fn receive(
    socket: BorrowedFd<'_>,
    cursor: &mut ReadBufCursor<'_>,
    keep: impl FnOnce(&[u8]) -> bool,
) -> io::Result<usize> {
    // SAFETY: recv only ever writes into the buffer, so nothing in it becomes uninitialized.
    let buffer = unsafe { cursor.as_mut() };
    // SAFETY: the buffer is valid for writes of its length.
    let length = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
        )
    };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: recv has written the first `length` bytes, which are at most as many as there are.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length) };
    if keep(bytes) {
        // SAFETY: as above.
        unsafe { cursor.advance(length) };
    }
    Ok(length)
}
