//! The command line of an external program, pinned to the release that its generation was loaded
//! from.

use crate::cli::own_path::working_directory;
use crate::config::{Config, Program};
use crate::process::spawn::{Directory, Executable, without_links};
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Returns the words that start a generation's program. For a stock app it is the app; none for a
/// linked service.
///
/// The program's own name and the script that it is to run are named without symbolic links to
/// directories, so that they mean the same when `current` leads elsewhere. All other words are as
/// they were written: what they mean is known to the program only.
pub(crate) fn words(
    config: &Config,
    executable: &Executable,
    directory: Option<&Directory>,
) -> Vec<CString> {
    let words = match &config.program {
        Program::Command(words) => words,
        Program::App(app) => {
            let app = pinned_app(app, directory).unwrap_or_else(|| app.clone());
            return CString::new(app).into_iter().collect();
        }
        Program::Linked => return Vec::new(),
    };
    let script = script(words, directory);
    let pinned = words.iter().enumerate().map(|(place, word)| match &script {
        _ if place == 0 && executable.leads_through_link() => executable.path().into(),
        Some((found, path)) if place == *found => path.clone().into_os_string(),
        _ => word.clone(),
    });
    // They came from a command line or a checked file: there is no NUL in them.
    pinned
        .filter_map(|word: OsString| CString::new(word.into_vec()).ok())
        .collect()
}

/// Returns `files:DIR` with the real path of the directory.
fn pinned_app(app: &str, directory: Option<&Directory>) -> Option<String> {
    let served = Directory::open(directory, Path::new(app.strip_prefix("files:")?)).ok()?;
    Some(format!("files:{}", served.path().to_str()?))
}

/// Returns a warning if the supervisor was started in a directory that a symbolic link leads to,
/// and finds the program there: no reload will follow that link.
pub(crate) fn unfollowed_link(config: &Config) -> Option<String> {
    let Program::Command(words) = &config.program else {
        return None;
    };
    let entered = working_directory();
    let real = std::env::current_dir().ok()?;
    if config.directory.is_some() || entered == real {
        return None;
    }
    let is_here = |(place, word): (usize, &OsString)| {
        let path = Path::new(word);
        let named = place > 0 || word.as_bytes().contains(&b'/');
        named && path.is_relative() && path.is_file()
    };
    let found = words.iter().enumerate().find(|it| is_here(*it))?;
    Some(format!(
        "{} is in {}, and no reload will follow the link {} to another directory \
         (start with --directory {2})",
        Path::new(found.1).display(),
        real.display(),
        entered.display()
    ))
}

/// Returns the place and the path without links of the first argument that names a file: the script
/// of an interpreter. `None` when it leads through no link.
fn script(words: &[OsString], directory: Option<&Directory>) -> Option<(usize, PathBuf)> {
    let here = directory.map_or(Path::new(""), Directory::path);
    let is_file = |word: &OsStr| !word.as_bytes().starts_with(b"-") && here.join(word).is_file();
    let mut arguments = words.iter().enumerate().skip(1);
    let (place, word) = arguments.find(|(_, word)| is_file(word))?;
    Some((place, without_links(directory, Path::new(word))?))
}
