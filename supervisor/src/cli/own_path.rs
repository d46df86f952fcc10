//! Where this program was started from.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Returns the path of this program as it was given when it was started, from the root. When a
/// symbolic link in it is switched, it leads to the next release, as the real path never does.
///
/// It is the real path if the given one is unknown, because the name that this process was given
/// leads to another file.
pub(super) fn own_path() -> PathBuf {
    let running = Path::new("/proc/self/exe");
    let name = std::env::args_os().next().unwrap_or_default();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let given = candidates(&name, &path, &working_directory());
    given
        .into_iter()
        .find(|candidate| same_file(candidate, running))
        .unwrap_or_else(|| std::env::current_exe().unwrap_or_else(|_| running.to_owned()))
}

/// Returns the present working directory as a shell names it: with the symbolic links by which it
/// was entered.
pub(crate) fn working_directory() -> PathBuf {
    let real = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    std::env::var_os("PWD")
        .map(PathBuf::from)
        .filter(|logical| logical.is_absolute() && same_file(logical, Path::new(".")))
        .unwrap_or(real)
}

/// Returns the paths that a name may stand for, as for a shell in directory `here`.
fn candidates(name: &OsStr, path: &OsStr, here: &Path) -> Vec<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return vec![here.join(name)];
    }
    let entries = std::env::split_paths(path);
    entries.map(|entry| here.join(entry).join(name)).collect()
}

fn same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| {
        let status = std::fs::metadata(path).ok()?;
        Some((status.dev(), status.ino()))
    };
    identity(one).is_some_and(|it| Some(it) == identity(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_what_a_shell_would_find() {
        let found = |name: &str| {
            let paths = candidates(
                name.as_ref(),
                "/bin:local::/usr/bin".as_ref(),
                "/srv".as_ref(),
            );
            let texts = paths.iter().map(|path| path.display().to_string());
            texts.collect::<Vec<_>>()
        };
        assert_eq!(found("/opt/app"), ["/opt/app"]);
        assert_eq!(found("current/app"), ["/srv/current/app"]);
        assert_eq!(
            found("app"),
            ["/bin/app", "/srv/local/app", "/srv/app", "/usr/bin/app"]
        );
    }

    #[test]
    fn a_test_knows_itself() {
        assert!(same_file(&own_path(), Path::new("/proc/self/exe")));
        assert!(same_file(&working_directory(), Path::new(".")));
    }
}
