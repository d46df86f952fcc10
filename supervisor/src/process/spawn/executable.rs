//! A program that can be started again and again, the same file each time.

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{AccessFlags, faccessat};
use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where programs are looked for when `PATH` is not set.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A program, held by descriptor: it stays startable when its file is replaced or removed.
///
/// A script (a file that begins with `#!`) is the exception. Its interpreter opens it again by
/// name, so it is started by its path, and is what lies there at that time.
#[derive(Debug)]
pub struct Executable {
    descriptor: OwnedFd,
    path: PathBuf,
    script: Option<CString>,
}

/// Why a file cannot be a worker's program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecutableError {
    /// Its file cannot be opened, or not be executed.
    Unusable {
        /// The path that was tried.
        path: PathBuf,
        /// What the system said.
        errno: Errno,
    },
    /// It is no regular file.
    NotAFile(PathBuf),
    /// No directory of the search path has it.
    NotFound {
        /// The name that was looked for.
        program: PathBuf,
        /// The search path.
        path: String,
    },
}

impl fmt::Display for ExecutableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable { path, errno } => {
                write!(f, "cannot execute {}: {}", path.display(), errno.desc())?;
                match errno {
                    Errno::ENOENT => f.write_str(" (check the path)"),
                    errno => remedy(*errno).map_or(Ok(()), |remedy| write!(f, " ({remedy})")),
                }
            }
            Self::NotAFile(path) => {
                write!(
                    f,
                    "cannot execute {}: not a regular file (name a program)",
                    path.display()
                )
            }
            Self::NotFound { program, path } => {
                let program = program.display();
                write!(
                    f,
                    "cannot find program {program} in {path} (give its path, or set PATH)"
                )
            }
        }
    }
}

impl std::error::Error for ExecutableError {}

/// What to do about a failed exec of a file that exists.
pub(crate) fn remedy(errno: Errno) -> Option<&'static str> {
    Some(match errno {
        Errno::ENOENT => "the interpreter in its first line, or its dynamic loader, is missing",
        Errno::EACCES => "make it executable with chmod +x, and look for noexec mounts",
        Errno::ENOEXEC => {
            "not a program for this machine; a script needs a first line such as #!/bin/sh"
        }
        Errno::ETXTBSY => "a process has it open for writing; install programs by rename",
        Errno::E2BIG => "its arguments and environment are too long",
        Errno::EMFILE | Errno::EINVAL => "raise the limit of open files: ulimit -n, LimitNOFILE=",
        Errno::ENOMEM => "free memory, or run fewer workers",
        Errno::ENOSYS => "Linux 5.9 or later is needed",
        _ => return None,
    })
}

impl Executable {
    /// Opens the program at `path`, by the present working directory when it is relative.
    ///
    /// # Errors
    /// When there is none, or this process must not execute it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ExecutableError> {
        let path = std::path::absolute(path.as_ref()).unwrap_or_else(|_| path.as_ref().to_owned());
        let unusable = |errno| ExecutableError::Unusable {
            path: path.clone(),
            errno,
        };
        let descriptor =
            open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(unusable)?;
        Self::from_descriptor(descriptor, path)
    }

    /// The program that this process runs, although its file may have been replaced since.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> Result<Self, ExecutableError> {
        let link = Path::new("/proc/self/exe");
        let unusable = |errno| ExecutableError::Unusable {
            path: link.to_owned(),
            errno,
        };
        let descriptor =
            open(link, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(unusable)?;
        let target = std::fs::read_link(link).unwrap_or_else(|_| link.to_owned());
        let name = target.as_os_str().as_bytes();
        let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
        Self::from_descriptor(descriptor, PathBuf::from(OsStr::from_bytes(name)))
    }

    /// Finds a program as a shell would: a name with a slash is a path, from `directory` when
    /// relative; any other name is looked for in the directories of `path` (a value of `PATH`; an
    /// empty entry is `directory`).
    ///
    /// # Errors
    /// When no file fits. If one has the name but cannot be executed, that is the error.
    pub fn find(
        program: &OsStr,
        path: Option<&OsStr>,
        directory: &Path,
    ) -> Result<Self, ExecutableError> {
        if program.as_bytes().contains(&b'/') {
            return Self::open(directory.join(program));
        }
        let path = path.unwrap_or(OsStr::new(DEFAULT_PATH));
        let mut refused = None;
        // An empty name would find the directories themselves.
        for entry in std::env::split_paths(path).filter(|_| !program.is_empty()) {
            match Self::open(directory.join(entry).join(program)) {
                Ok(found) => return Ok(found),
                Err(ExecutableError::Unusable {
                    errno: Errno::ENOENT | Errno::ENOTDIR,
                    ..
                }) => {}
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.unwrap_or_else(|| ExecutableError::NotFound {
            program: program.into(),
            path: path.to_string_lossy().into_owned(),
        }))
    }

    fn from_descriptor(descriptor: OwnedFd, path: PathBuf) -> Result<Self, ExecutableError> {
        let unusable = |errno| ExecutableError::Unusable {
            path: path.clone(),
            errno,
        };
        let status = fstat(&descriptor).map_err(unusable)?;
        if SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(ExecutableError::NotAFile(path));
        }
        let flags = AtFlags::AT_EACCESS;
        let by_descriptor = by_descriptor(&descriptor);
        match faccessat(
            nix::fcntl::AT_FDCWD,
            &by_descriptor,
            AccessFlags::X_OK,
            flags,
        ) {
            // Without /proc there is no such path; exec itself will tell.
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(unusable(errno)),
        }
        let script = is_script(&by_descriptor)
            .then(|| CString::new(path.as_os_str().as_bytes()).map_err(|_| unusable(Errno::EINVAL)))
            .transpose()?;
        Ok(Self {
            descriptor,
            path,
            script,
        })
    }

    /// A program that another one has opened.
    pub(crate) fn adopted(descriptor: OwnedFd, path: PathBuf, script: bool) -> Self {
        let name = CString::new(path.as_os_str().as_bytes()).ok();
        Self {
            descriptor,
            script: name.filter(|_| script),
            path,
        }
    }

    /// Whether it needs an interpreter, which opens it by its name.
    pub fn is_script(&self) -> bool {
        self.script.is_some()
    }

    /// Its path, for people.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path to start it by, when it must not be started by descriptor.
    pub(crate) fn script(&self) -> Option<&CStr> {
        self.script.as_deref()
    }
}

impl From<Executable> for OwnedFd {
    fn from(program: Executable) -> Self {
        program.descriptor
    }
}

impl AsFd for Executable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// A path to the very file that was opened.
fn by_descriptor(descriptor: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

/// A file that we may execute but not read is no script: its interpreter could not read it either.
fn is_script(path: &Path) -> bool {
    let mut start = [0_u8; 2];
    std::fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut start))
        .is_ok()
        && start == *b"#!"
}
