//! A lock per address in the runtime directory, which keeps a second server away from it.
//!
//! Probing an address does not help against a server that starts at the same moment; the lock does.
//! It is an flock(2), so it is released when its holder exits, for whatever reason. Where no lock
//! can be made, the probe has to do.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The lock of an address, held until it is dropped.
#[derive(Debug)]
pub(crate) struct AddressLock {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
}

impl AddressLock {
    /// Takes the lock of an address. Returns `None` when there is no directory for it.
    ///
    /// # Errors
    /// Another process holds it: its pid, if the file has it.
    pub(crate) fn take(
        directory: Option<&Path>,
        address: &str,
    ) -> Result<Option<Self>, Option<u32>> {
        let Some(directory) = directory else {
            return Ok(None);
        };
        let path = directory.join(format!("listen-{}.lock", file_name(address)));
        loop {
            let mut options = OpenOptions::new();
            options
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600);
            options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
            let Ok(mut file) = options.open(&path) else {
                return Ok(None);
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut text = String::new();
                    let _ = file.take(32).read_to_string(&mut text);
                    return Err(text.trim().parse().ok());
                }
                Err(TryLockError::Error(_)) => return Ok(None),
            }
            if !is_at(&file, &path) {
                // Its holder removed it between our open and our lock; such a lock excludes no one.
                continue;
            }
            // Only for the error message of another server.
            let _ = file
                .set_len(0)
                .and_then(|()| writeln!(file, "{}", std::process::id()));
            return Ok(Some(Self { path, file }));
        }
    }
}

impl Drop for AddressLock {
    fn drop(&mut self) {
        if is_at(&self.file, &self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Returns a different file name for every address. For a long Unix path of many special characters
/// it is too long, and there is no lock.
fn file_name(address: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    let letter = |byte: u8| {
        if plain(byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    address.bytes().map(letter).collect()
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_addresses_have_different_locks() {
        assert_eq!(file_name("127.0.0.1-8000"), "127.0.0.1-8000");
        assert_eq!(file_name("::1-8000"), "::1-8000");
        assert_ne!(file_name("/run/a/b.sock"), file_name("/run/a_b.sock"));
        assert_ne!(file_name("/run/a/b"), file_name("/run/a%2Fb"));
    }
}
