//! Descriptors that tokio watches. It demands that a watched descriptor stays open, and the same,
//! for as long as it is watched; these types see to that.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, OnceLock};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

/// A descriptor that the runtime of the thread that made this watches.
#[derive(Debug)]
pub struct Watched(AsyncFd<Arc<OwnedFd>>);

impl Watched {
    /// Has the thread's tokio runtime watch a descriptor. To be called within that runtime.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn new(owner: Arc<OwnedFd>, interest: Interest) -> io::Result<Self> {
        // SAFETY: the reference keeps the descriptor open, it cannot be exchanged (it is only lent
        // out shared), and tokio lets go of it before the reference is dropped.
        Ok(Self(unsafe {
            AsyncFd::register_with_interest(owner, interest)
        }?))
    }
}

impl Deref for Watched {
    type Target = AsyncFd<Arc<OwnedFd>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// A descriptor that is watched from the first wait on: most connections
/// never need that.
#[derive(Debug)]
pub struct LazilyWatched {
    /// Dropped before the descriptor, as fields are in their order.
    watch: OnceLock<io::Result<AsyncFd<RawFd>>>,
    descriptor: OwnedFd,
    interest: Interest,
}

impl LazilyWatched {
    /// Watches nothing yet.
    #[inline]
    pub fn new(descriptor: OwnedFd, interest: Interest) -> Self {
        Self {
            watch: OnceLock::new(),
            descriptor,
            interest,
        }
    }

    /// Returns whether it is watched by now.
    #[inline]
    pub fn is_watched(&self) -> bool {
        self.watch.get().is_some()
    }

    /// Returns what to wait with, by this runtime from the first call on.
    ///
    /// # Errors
    /// Those of epoll_ctl(2) at the first call.
    #[inline]
    pub fn watch(&self, runtime: &Handle) -> io::Result<&AsyncFd<RawFd>> {
        let watch = self.watch.get_or_init(|| {
            let _entered = runtime.enter();
            let number = self.descriptor.as_raw_fd();
            // SAFETY: the descriptor lives in the same value, is not exchanged, and is dropped
            // after the watch, which is never lent out to be changed.
            Ok(unsafe { AsyncFd::register_with_interest(number, self.interest) }?)
        });
        watch.as_ref().map_err(|error| error.kind().into())
    }
}

impl AsFd for LazilyWatched {
    #[inline]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
