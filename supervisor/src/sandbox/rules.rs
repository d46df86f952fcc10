//! The sandbox of a generation's workers, put together of what its parts can do here.

use super::landlock::Wanted;
use super::seccomp::Profile;
use super::{ConfinementError, HeldPaths, landlock, private_tmp, seccomp};
use crate::config::{Config, Program, SandboxMode, Seccomp};
use crate::logging::output::StandardStream;
use crate::process::spawn::Executable;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, access};
use prefork_os::landlock::{Rule, Ruleset};
use prefork_os::private_tmp::PrivateTmp;
use prefork_os::seccomp::Filter;
use std::borrow::Cow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Programs and their libraries, wherever a distribution has them.
const PROGRAMS: [&str; 9] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
    "/gnu/store",
];
/// Where programs read about the machine and its configuration.
const READABLE: [&str; 7] = [
    "/etc",
    "/proc",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/sys/kernel/mm/transparent_hugepage",
    "/run/systemd/resolve",
    "/run/resolvconf",
];
/// Devices without hardware.
const DEVICES: [&str; 6] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
];

/// Where the dynamic loader of a stock app finds libraries.
const LIBRARIES: [&str; 10] = [
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/nix/store",
    "/gnu/store",
];
/// What tells it where, and how the C library counts CPUs.
const LOADER: [&str; 3] = [
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/sys/devices/system/cpu",
];

/// What this kernel, and this process's privileges, allow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel {
    /// The version of Landlock, or 0.
    pub(crate) landlock: u32,
    /// It filters system calls.
    pub(crate) seccomp: bool,
    /// Why there can be no private `/tmp`.
    pub(crate) private_tmp: Option<Errno>,
}

impl Kernel {
    fn probe(how: Seccomp) -> Self {
        Self {
            landlock: landlock::abi(),
            seccomp: seccomp::available(how),
            private_tmp: private_tmp::prepare().err(),
        }
    }
}

/// The parts of a sandbox that are to be entered.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) private_tmp: Option<PrivateTmp>,
    pub(crate) landlock: Option<Ruleset>,
    pub(crate) filter: Option<Filter>,
}

impl Sandbox {
    /// No part.
    pub(crate) const NONE: Self = Self {
        private_tmp: None,
        landlock: None,
        filter: None,
    };

    /// Prepares what a configuration asks for, and adds to its warnings.
    ///
    /// # Errors
    /// What cannot be had here.
    pub(crate) fn prepare(
        config: &mut Config,
        program: &Executable,
        socket_directory: Option<&Path>,
        paths: &mut HeldPaths,
    ) -> Result<Self, ConfinementError> {
        let kernel = Kernel::probe(config.sandbox.seccomp);
        Self::prepare_for(kernel, config, program, socket_directory, paths)
    }

    pub(crate) fn prepare_for(
        kernel: Kernel,
        config: &mut Config,
        program: &Executable,
        socket_directory: Option<&Path>,
        paths: &mut HeldPaths,
    ) -> Result<Self, ConfinementError> {
        let sandbox = &config.sandbox;
        if sandbox.mode == SandboxMode::Off {
            return Ok(Self::NONE);
        }
        let stock = matches!(config.program, Program::App(_));
        let external = matches!(config.program, Program::Command(_));
        // Where the notification socket will have a path, which every program understands and no
        // scope forbids.
        let usable = |place: &&Path| access(*place, AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
        let notices = socket_directory.filter(usable);
        let wanted = Wanted {
            files: stock || !sandbox.read_only.is_empty() || !sandbox.writable.is_empty(),
            tcp_bind: !sandbox.tcp_bind,
            // A program that needs an abstract notification socket must be allowed to use it.
            abstract_sockets: !external || notices.is_some(),
        };
        let mut missing: Vec<String> = wanted
            .missing(kernel.landlock)
            .into_iter()
            .map(str::to_owned)
            .collect();
        if !kernel.seccomp {
            missing.push("filtering system calls (CONFIG_SECCOMP_FILTER)".to_owned());
        }
        if let Some(errno) = kernel.private_tmp.filter(|_| sandbox.private_tmp) {
            let why = errno.desc();
            missing.push(format!(
                "a private /tmp ({why}: it needs CAP_SYS_ADMIN, so start as root)"
            ));
        }
        let mut warnings = Vec::new();
        if !missing.is_empty() {
            let missing = missing.join("; ");
            if sandbox.mode == SandboxMode::Strict {
                return Err(ConfinementError::Strict(missing));
            }
            warnings.push(format!(
                "the workers' sandbox lacks what is missing here: {missing}"
            ));
        }

        let private_tmp = if sandbox.private_tmp && kernel.private_tmp.is_none() {
            refuse_hidden(config, program, notices)?;
            Some(private_tmp::prepare().map_err(ConfinementError::PrivateTmp)?)
        } else {
            None
        };
        let mut late = Vec::new();
        let rules = if wanted.files {
            let tmp = private_tmp.iter().flat_map(|tmp| &tmp.0);
            late.extend(tmp.map(|path| (Cow::Borrowed(*path), landlock::WRITE)));
            // Other programs get all of /proc: they ask it about the machine, too.
            late.extend(stock.then_some((Cow::Borrowed(c"/proc/self"), landlock::READ)));
            rules(config, program, &mut warnings, paths)?
        } else {
            Vec::new()
        };
        let landlock = landlock::prepare(wanted, kernel.landlock, rules, late)
            .map_err(ConfinementError::Rules)?;
        let profile = if stock {
            Profile::Stock
        } else {
            Profile::Other
        };
        let filter = if kernel.seccomp {
            seccomp::prepare(profile, sandbox.seccomp)?
        } else {
            None
        };
        let prepared = Self {
            private_tmp,
            landlock,
            filter,
        };
        if prepared.needs_no_new_privs() && config.privileges.no_new_privileges == Some(false) {
            warnings.push(
                "no-new-privileges off has no effect, since the sandbox needs it on".to_owned(),
            );
        }
        config.warnings.extend(warnings);
        Ok(prepared)
    }

    /// Returns whether a part of it can be entered only without new privileges.
    pub(crate) fn needs_no_new_privs(&self) -> bool {
        self.landlock.is_some() || self.filter.is_some()
    }
}

/// Returns the paths that workers may use, and how.
fn rules(
    config: &Config,
    program: &Executable,
    warnings: &mut Vec<String>,
    paths: &mut HeldPaths,
) -> Result<Vec<Rule>, ConfinementError> {
    let stock = matches!(config.program, Program::App(_));
    let mut rules = Vec::new();
    let mut allow_what_is_there = |paths: &[&str], access| {
        for path in paths {
            rules.extend(
                opened(Path::new(path))
                    .and_then(|opened| landlock::rule(opened, access))
                    .ok(),
            );
        }
    };
    if stock {
        allow_what_is_there(&LIBRARIES, landlock::RUN);
        allow_what_is_there(&LOADER, landlock::READ);
        allow_what_is_there(&DEVICES[..1], landlock::DEVICE);
        allow_what_is_there(&["/dev/urandom"], landlock::READ);
    } else {
        allow_what_is_there(&PROGRAMS, landlock::RUN);
        allow_what_is_there(&READABLE, landlock::READ);
        allow_what_is_there(&DEVICES, landlock::DEVICE);
    }

    let interpreters = program.interpreters().map(|it| &it.program);
    for program in [program].into_iter().chain(interpreters) {
        let own = program.as_fd().try_clone_to_owned();
        let own = own.map_err(|error| ConfinementError::Descriptor {
            path: program.path().to_owned(),
            error,
        })?;
        rules.extend(landlock::rule(own, landlock::RUN).ok());
    }

    if let Program::App(app) = &config.program
        && let Some(served) = app.strip_prefix("files:")
    {
        rules.push(named(paths, "app", Path::new(served), landlock::READ)?);
    }
    let sandbox = &config.sandbox;
    for path in &sandbox.read_only {
        rules.push(named(paths, "read-only", path, landlock::RUN)?);
    }
    for path in &sandbox.writable {
        rules.push(named(paths, "writable", path, landlock::WRITE)?);
    }
    match &config.program {
        Program::App(_) | Program::Linked => {
            if let Some(directory) = log_directory(config) {
                // The whole directory: a log that was rotated away is created again there.
                rules.push(named(paths, "log-file", &directory, landlock::APPEND)?);
            }
        }
        Program::Command(words) => {
            let here = config.directory.clone().unwrap_or_default();
            for word in words.iter().skip(1).map(|word| here.join(word)) {
                if word.exists() && !is_visible(config, &word) {
                    warnings.push(format!(
                        "workers cannot open {}, which is among the program's arguments \
                         (add --read-only for it or its directory)",
                        word.display()
                    ));
                }
            }
        }
    }
    Ok(rules)
}

/// Returns where a Rust worker makes its log file. A standard stream it has already.
fn log_directory(config: &Config) -> Option<PathBuf> {
    if StandardStream::named_by(config.log.file.as_ref()?).is_some() {
        return None;
    }
    let file = config
        .directory
        .clone()
        .unwrap_or_default()
        .join(config.log.file.as_ref()?);
    Some(match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    })
}

fn opened(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

fn named(
    paths: &mut HeldPaths,
    setting: &'static str,
    path: &Path,
    access: u64,
) -> Result<Rule, ConfinementError> {
    paths
        .open(path)
        .and_then(|opened| landlock::rule(opened, access))
        .map_err(|errno| ConfinementError::Path {
            setting,
            path: path.to_owned(),
            errno,
        })
}

/// Returns whether a path is below one that a program may read.
fn is_visible(config: &Config, path: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let path = real(path);
    let always = PROGRAMS
        .iter()
        .chain(&READABLE)
        .chain(&DEVICES)
        .map(Path::new);
    let named = config
        .sandbox
        .read_only
        .iter()
        .chain(&config.sandbox.writable)
        .map(PathBuf::as_path);
    always
        .chain(named)
        .any(|visible| path.starts_with(real(visible)))
}

/// Checks that nothing that a worker needs is hidden by a private `/tmp`.
fn refuse_hidden(
    config: &Config,
    program: &Executable,
    notices: Option<&Path>,
) -> Result<(), ConfinementError> {
    let mut needed: Vec<(String, PathBuf)> = Vec::new();
    let mut need = |what: &str, path: &Path| needed.push((what.to_owned(), path.to_owned()));
    if program.is_script() {
        need("the program", program.path());
        for interpreter in program.interpreters() {
            need("the program's interpreter", interpreter.program.path());
        }
    }
    if let Some(directory) = &config.directory {
        need("directory", directory);
    }
    for path in &config.sandbox.read_only {
        need("read-only", path);
    }
    for path in &config.sandbox.writable {
        need("writable", path);
    }
    match &config.program {
        Program::App(app) => {
            if let Some(served) = app.strip_prefix("files:") {
                need("app", Path::new(served));
            }
        }
        Program::Linked => {}
        Program::Command(words) => {
            let here = config.directory.clone().unwrap_or_default();
            for word in words
                .iter()
                .skip(1)
                .map(|word| here.join(word))
                .filter(|word| word.exists())
            {
                need("an argument of the program", &word);
            }
            if let Some(directory) = notices {
                need(
                    "the notification socket, in $RUNTIME_DIRECTORY or $XDG_RUNTIME_DIR",
                    directory,
                );
            }
        }
    }
    if !matches!(config.program, Program::Command(_))
        && let Some(directory) = log_directory(config)
    {
        need("log-file", &directory);
    }
    match needed
        .into_iter()
        .find(|(_, path)| private_tmp::hidden(path))
    {
        None => Ok(()),
        Some((what, path)) => Err(ConfinementError::Hidden { path, what }),
    }
}
