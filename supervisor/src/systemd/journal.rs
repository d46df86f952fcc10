//! Whether standard error goes to systemd's journal.

use std::os::fd::AsFd;

/// The variable that identifies standard error when it is the journal: `DEVICE:INODE`.
pub(crate) const JOURNAL_STREAM: &str = "JOURNAL_STREAM";

/// Whether standard error goes to the journal itself, so that a line may begin with a priority such
/// as `<3>`.
pub(crate) fn stderr_is_journal() -> bool {
    std::env::var(JOURNAL_STREAM).is_ok_and(|stream| is_stream(std::io::stderr(), &stream))
}

/// Whether a descriptor is the one that `stream` names as `DEVICE:INODE`. A redirected one is not.
fn is_stream(descriptor: impl AsFd, stream: &str) -> bool {
    let Some((device, inode)) = stream.split_once(':') else {
        return false;
    };
    let (Ok(device), Ok(inode)) = (device.parse(), inode.parse()) else {
        return false;
    };
    nix::sys::stat::fstat(descriptor)
        .is_ok_and(|status| (status.st_dev, status.st_ino) == (device, inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        let file = std::fs::File::open("/dev/null").expect("open");
        let status = nix::sys::stat::fstat(&file).expect("fstat");
        assert!(is_stream(
            &file,
            &format!("{}:{}", status.st_dev, status.st_ino)
        ));
        for other in [
            "",
            "8",
            "8:",
            ":",
            "a:b",
            "1:2:3",
            &format!("{}:{}", status.st_dev, status.st_ino + 1),
        ] {
            assert!(!is_stream(&file, other), "{other}");
        }
    }
}
