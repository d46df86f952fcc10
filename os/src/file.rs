//! Files.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Returns the value of an extended attribute, as far as `LENGTH` bytes of it.
///
/// # Errors
/// Those of getxattr(2), such as `ERANGE` for a longer value; `InvalidInput` for a NUL in a name.
pub fn attribute<const LENGTH: usize>(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let name = CString::new(name)?;
    let mut value = [0_u8; LENGTH];
    // SAFETY: both strings end with NUL, and `value` is valid for writes of its length.
    let length = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    Ok(value[..length].to_vec())
}
