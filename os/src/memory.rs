//! Memory that several processes map.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// Memory shared with other processes through a descriptor; unmapped when dropped.
#[derive(Debug)]
pub struct SharedMemory {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping lives until drop, and can be read and written only through `at`, whose types
// consist of atomics (`AnyBytes`).
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Maps the first `length` bytes of `memory`, readable and writable.
    ///
    /// # Errors
    /// Those of mmap(2), and `InvalidData` when the file is shorter than `length`.
    pub fn map(memory: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        let size = nix::sys::stat::fstat(memory)?.st_size;
        if usize::try_from(size).unwrap_or(0) < length {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{size} bytes of {length}"),
            ));
        }
        let size = NonZeroUsize::new(length)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing; the file
        // was checked to be long enough, and its seals (see `sealed_memory`) keep it from
        // shrinking.
        let start = unsafe {
            nix::sys::mman::mmap(
                None,
                size,
                nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE,
                nix::sys::mman::MapFlags::MAP_SHARED,
                memory,
                0,
            )?
        };
        Ok(Self {
            start: start.cast(),
            length,
        })
    }

    /// Returns the `T` at `offset`.
    ///
    /// # Panics
    /// When `T` does not fit there or would be misaligned.
    pub fn at<T: AnyBytes>(&self, offset: usize) -> &T {
        assert!(offset.is_multiple_of(align_of::<T>()), "misaligned row");
        assert!(
            offset
                .checked_add(size_of::<T>())
                .is_some_and(|end| end <= self.length),
            "row out of bounds"
        );
        // SAFETY: in bounds and aligned (just asserted; the mapping starts at a page), valid for
        // any bytes (`AnyBytes`), alive as long as `self`.
        unsafe { self.start.byte_add(offset).cast::<T>().as_ref() }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `map` made; no reference outlives `self`.
        let _ = unsafe { nix::sys::mman::munmap(self.start.cast(), self.length) };
    }
}

/// A type made of atomics only, for which any bytes are a valid value. A structure becomes one by
/// [`shared_row!`](crate::shared_row).
///
/// # Safety
/// Every field must be an atomic integer, or an array of them.
pub unsafe trait AnyBytes: Sync {}

// SAFETY: it is an atomic integer.
unsafe impl AnyBytes for AtomicU64 {}
// SAFETY: it is an array of what must be made of atomics.
unsafe impl<T: AnyBytes, const LENGTH: usize> AnyBytes for [T; LENGTH] {}

/// Defines a structure that can lie in [`SharedMemory`]: every field is checked to be [`AnyBytes`].
///
/// ```
/// use std::sync::atomic::AtomicU64;
/// prefork_os::shared_row! {
///     /// What a thread counts.
///     pub struct Row {
///         requests: AtomicU64,
///         latency: [AtomicU64; 15],
///     }
/// }
/// ```
///
/// ```compile_fail
/// prefork_os::shared_row! {
///     pub struct Row {
///         name: &'static str,
///     }
/// }
/// ```
#[macro_export]
macro_rules! shared_row {
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $name:ident {
            $($(#[$of_field:meta])* $of:vis $field:ident: $kind:ty),+ $(,)?
        }
    ) => {
        $(#[$attribute])*
        $visibility struct $name {
            $($(#[$of_field])* $of $field: $kind),+
        }

        // SAFETY: the constant below compiles only if every field is AnyBytes; padding has no
        // value.
        unsafe impl $crate::AnyBytes for $name {}

        const _: () = {
            const fn is_any_bytes<T: $crate::AnyBytes>() {}
            $(is_any_bytes::<$kind>();)+
        };
    };
}

/// Makes an anonymous memory file of `length` zero bytes whose length is fixed for good.
///
/// # Errors
/// Those of memfd_create(2), ftruncate(2) and fcntl(2).
pub fn sealed_memory(name: &str, length: usize) -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let memory = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let length = i64::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    nix::unistd::ftruncate(&memory, length)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn sealed_memory_cannot_shrink() {
        let memory = sealed_memory("test", 4096).expect("memfd");
        assert_eq!(
            nix::unistd::ftruncate(&memory, 1),
            Err(nix::errno::Errno::EPERM)
        );
        assert!(
            SharedMemory::map(memory.as_fd(), 8192).is_err(),
            "shorter than asked for"
        );
    }
}
