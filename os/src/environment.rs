//! The environment variables of this process.

use std::io;

/// Removes variables from the environment of this process, which must have one thread.
///
/// # Errors
/// When this process has more than one thread, or `/proc` does not show how many.
pub fn remove_variables(names: &[&str]) -> io::Result<()> {
    if threads()? != 1 {
        return Err(io::Error::other(
            "the environment cannot be changed while there are other threads",
        ));
    }
    for name in names {
        // SAFETY: nothing else reads or writes the environment: this is the only thread (just
        // seen), and it starts no other one here.
        unsafe { std::env::remove_var(name) };
    }
    Ok(())
}

/// Returns how many threads this process has.
///
/// # Errors
/// When `/proc` does not show it.
pub fn threads() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}
