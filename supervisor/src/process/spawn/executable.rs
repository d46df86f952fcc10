//! A program that can be started again and again, the same file each time.

use super::directory::{self, Directory};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstat, stat};
use nix::unistd::{AccessFlags, faccessat};
use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where programs are looked for when `PATH` is not set.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A program, held by descriptor: it stays startable when its file is replaced or removed.
///
/// A script (a file that begins with `#!`) is held together with its interpreter. The interpreter
/// opens the script by name, as programs expect it: by its path without symbolic links to
/// directories. When another file has that name by then, it gets the held one as `/dev/fd/N`.
#[derive(Debug)]
pub(crate) struct Executable {
    descriptor: OwnedFd,
    path: PathBuf,
    linked: bool,
    interpreter: Option<Box<Interpreter>>,
}

/// What the first line of a script names.
#[derive(Debug)]
pub(crate) struct Interpreter {
    pub(crate) program: Executable,
    /// The rest of the line.
    pub(crate) argument: Option<CString>,
}

/// What is executed for a program.
#[derive(Debug)]
pub(crate) struct CommandLine<'a> {
    pub(crate) program: BorrowedFd<'a>,
    pub(crate) argv: Vec<CString>,
    /// Files that the program opens by number: the first one was asked for, and those after it.
    pub(crate) files: Vec<BorrowedFd<'a>>,
}

/// Why a file cannot be a worker's program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ExecutableError {
    /// Its file cannot be opened, or not be executed.
    Unusable {
        /// The path that was tried.
        path: PathBuf,
        /// What the system said.
        errno: Errno,
    },
    /// It is no regular file.
    NotAFile(PathBuf),
    /// It is a script, and its interpreter cannot be used.
    Interpreter {
        /// The script.
        path: PathBuf,
        /// What is wrong with its interpreter.
        error: Box<ExecutableError>,
    },
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
                    Errno::ENOENT if path.starts_with("/proc") => {
                        f.write_str(" (mount /proc: mount -t proc proc /proc)")
                    }
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
            Self::Interpreter { path, error } => write!(
                f,
                "{}, whose first line names its interpreter: {error}",
                path.display()
            ),
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
    /// Opens the program at `path`, from the present working directory when it is relative.
    ///
    /// # Errors
    /// When there is none, or this process must not execute it.
    pub(crate) fn open(path: impl AsRef<Path>) -> Result<Self, ExecutableError> {
        Self::open_at(None, path.as_ref(), 0)
    }

    /// Returns the program that this process runs, although its file may have been replaced since.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub(crate) fn current() -> Result<Self, ExecutableError> {
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
        let path = PathBuf::from(OsStr::from_bytes(name));
        check(&descriptor, &path)?;
        Ok(Self {
            descriptor,
            path,
            linked: false,
            interpreter: None,
        })
    }

    /// Finds a program as a shell would: a name with a slash is a path, from `base` when relative
    /// (or from the present working directory); any other name is looked for in the directories of
    /// `path` (a value of `PATH`; an empty entry is `base`).
    ///
    /// # Errors
    /// When no file fits. If one has the name but cannot be executed, that is the error.
    pub(crate) fn find(
        program: &OsStr,
        path: Option<&OsStr>,
        base: Option<&Directory>,
    ) -> Result<Self, ExecutableError> {
        if program.as_bytes().contains(&b'/') {
            return Self::open_at(base, Path::new(program), 0);
        }
        let path = path.unwrap_or(OsStr::new(DEFAULT_PATH));
        let mut refused = None;
        // An empty name would find the directories themselves.
        for entry in std::env::split_paths(path).filter(|_| !program.is_empty()) {
            match Self::open_at(base, &entry.join(program), 0) {
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

    /// Opens a program that is the interpreter of `depth` nested scripts.
    fn open_at(
        base: Option<&Directory>,
        path: &Path,
        depth: usize,
    ) -> Result<Self, ExecutableError> {
        let full = directory::full(base, path);
        let unusable = |errno| ExecutableError::Unusable {
            path: full.clone(),
            errno,
        };
        let Some(name) = path.file_name() else {
            return Err(ExecutableError::NotAFile(full));
        };
        let parent = path.parent().filter(|parent| *parent != Path::new(""));
        let parent = parent.unwrap_or(Path::new("."));
        // The file is opened in the very directory whose path is remembered.
        let directory = Directory::open(base, parent).map_err(unusable)?;
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let descriptor = openat(&directory, name, flags, Mode::empty()).map_err(unusable)?;
        check(&descriptor, &full)?;
        let path = directory.path().join(name);
        let interpreter = Interpreter::of_script(&descriptor, &path, base, depth)?;
        Ok(Self {
            descriptor,
            path,
            linked: directory::leads_through_link(base, parent, &directory),
            interpreter: interpreter.map(Box::new),
        })
    }

    /// Goes on with a program that another version of this one has opened.
    pub(crate) fn adopted(
        descriptor: OwnedFd,
        path: PathBuf,
        interpreter: Option<Interpreter>,
    ) -> Self {
        Self {
            descriptor,
            path,
            linked: false,
            interpreter: interpreter.map(Box::new),
        }
    }

    /// Whether it needs an interpreter.
    pub(crate) fn is_script(&self) -> bool {
        self.interpreter.is_some()
    }

    /// Returns its interpreter, that interpreter's own, and so on.
    pub(crate) fn interpreters(&self) -> impl Iterator<Item = &Interpreter> {
        std::iter::successors(self.interpreter.as_deref(), |&it| {
            it.program.interpreter.as_deref()
        })
    }

    /// Returns its path, in which no directory is a symbolic link.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it was found through a symbolic link to a directory.
    pub(crate) fn leads_through_link(&self) -> bool {
        self.linked
    }

    /// Returns what to execute to start it with these arguments. Files that have no name any more
    /// are to be opened by number from `first` on.
    pub(crate) fn command_line(&self, argv: &[CString], first: RawFd) -> CommandLine<'_> {
        let Some(interpreter) = &self.interpreter else {
            return CommandLine {
                program: self.as_fd(),
                argv: argv.to_vec(),
                files: Vec::new(),
            };
        };
        let (name, by_number) = match self.name() {
            Some(name) => (name, false),
            None => (PathBuf::from(format!("/dev/fd/{first}")), true),
        };
        let words = [interpreter.program.path(), name.as_path()]
            .map(|path| CString::new(path.as_os_str().as_bytes()).unwrap_or_default());
        let [program, script] = words;
        let line: Vec<CString> = [program]
            .into_iter()
            .chain(interpreter.argument.clone())
            .chain([script])
            .chain(argv.iter().skip(1).cloned())
            .collect();
        let mut line = interpreter
            .program
            .command_line(&line, first + RawFd::from(by_number));
        if by_number {
            line.files.insert(0, self.as_fd());
        }
        line
    }

    /// Returns a path that leads to the very file that is held, if there is still one.
    fn name(&self) -> Option<PathBuf> {
        let held = fstat(&self.descriptor).ok()?;
        let is_held = |path: &PathBuf| match stat(path) {
            Ok(found) => (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino),
            // The program's user may see what this process does not.
            Err(errno) => errno == Errno::EACCES,
        };
        let moved = || directory::real_path(self.as_fd());
        Some(self.path.clone())
            .filter(is_held)
            .or_else(|| moved().filter(is_held))
    }
}

impl Interpreter {
    /// The most interpreters of interpreters, as the kernel has it.
    const DEEPEST: usize = 4;

    /// Opens the interpreter of a file that begins with `#!`. A file that we may execute but not
    /// read is no script: its interpreter could not read it either.
    fn of_script(
        file: &OwnedFd,
        path: &Path,
        base: Option<&Directory>,
        depth: usize,
    ) -> Result<Option<Self>, ExecutableError> {
        let Some((name, argument)) = first_line(&by_descriptor(file)) else {
            return Ok(None);
        };
        let opened = if depth < Self::DEEPEST {
            Executable::open_at(base, Path::new(&name), depth + 1)
        } else {
            Err(ExecutableError::Unusable {
                path: name.into(),
                errno: Errno::ELOOP,
            })
        };
        match opened {
            Ok(program) => Ok(Some(Self {
                program,
                argument: argument.and_then(|argument| CString::new(argument).ok()),
            })),
            Err(error) => Err(ExecutableError::Interpreter {
                path: path.to_owned(),
                error: Box::new(error),
            }),
        }
    }

    /// Opens the interpreter of a script that another version of this program has opened, and whose
    /// interpreter it did not hold.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn of_adopted(
        script: &OwnedFd,
        path: &Path,
        base: Option<&Directory>,
    ) -> Result<Option<Self>, ExecutableError> {
        Self::of_script(script, path, base, 0)
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

/// Returns what the first line of a script names: the interpreter, and the rest of the line.
fn first_line(script: &Path) -> Option<(OsString, Option<Vec<u8>>)> {
    // As much as the kernel reads.
    let mut start = [0_u8; 256];
    let length = std::fs::File::open(script)
        .and_then(|mut file| file.read(&mut start))
        .ok()?;
    let line = start[..length].split(|byte| *byte == b'\n').next()?;
    let line = line.strip_prefix(b"#!")?.trim_ascii();
    let name = line.split(u8::is_ascii_whitespace).next()?;
    let rest = line[name.len()..].trim_ascii();
    let argument = (!rest.is_empty()).then(|| rest.to_vec());
    (!name.is_empty()).then(|| (OsStr::from_bytes(name).to_owned(), argument))
}

/// Checks that a file is one that this process may execute.
fn check(descriptor: &OwnedFd, path: &Path) -> Result<(), ExecutableError> {
    let unusable = |errno| ExecutableError::Unusable {
        path: path.to_owned(),
        errno,
    };
    let status = fstat(descriptor).map_err(unusable)?;
    if SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(ExecutableError::NotAFile(path.to_owned()));
    }
    let flags = AtFlags::AT_EACCESS;
    match faccessat(
        AT_FDCWD,
        &by_descriptor(descriptor),
        AccessFlags::X_OK,
        flags,
    ) {
        // Without /proc there is no such path; exec itself will tell.
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(unusable(errno)),
    }
}
