//! Upgrade in place: one version of the program takes a running server over from another, by exec.
//!
//! ```text
//! old supervisor             new program, as its child        the same process, new program
//!   writes its state ---------> reads it, rebuilds the
//!   goes on serving             whole server from it,
//!                    <--------- says ok, or why not
//!   writes its state again
//!   exec -------------------------------------------------------> rebuilds the server, goes on
//!                               (it cannot after all:) exec back <----
//! ```
//!
//! The state is a sealed memory file: a magic word, the number of the [`FORMAT`], and one record
//! (`record.rs`). Descriptors are named by number, with what identifies them. This module knows how
//! the state travels and how a process that reads it gives up; what is in it is `state`'s, how a
//! server becomes a state and a state a server is [`server`](super::server)'s.
//!
//! *Invariant*: a reader of a state never returns an error and never unwinds, since a destructor
//! would close or remove what still belongs to the server: it gives up (`give_up`), which leaves
//! the process by `exit` or by `exec`.

mod descriptors;
#[cfg(feature = "next")]
mod next;
mod state;
#[cfg(test)]
mod tests;

pub(crate) use descriptors::{Fd, Kind, Packing, Unpacking};
pub(crate) use state::*;

use crate::process::spawn::Executable;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use prefork_core::record;
use prefork_os::environment::remove_variables;
use prefork_os::exec::exec_with;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::{Mutex, PoisonError};

/// The number of the state's format. It goes up when an older version must not read it, because it
/// would leave out something that matters; such a version then refuses the upgrade (or the way
/// back) and nothing changes. What is only more keeps the number.
pub(crate) const FORMAT: u16 = 1;

const MAGIC: &[u8; 8] = b"prefork\n";
/// A state that is longer was not written by us.
const LONGEST: u64 = 64 << 20;

/// Names the descriptors of the state and of the program that wrote it, after the exec.
pub(crate) const VARIABLE: &str = "PREFORK_HANDOVER";
/// Tells the old program, when the new one had to give up after all, why.
pub(crate) const FAILED_VARIABLE: &str = "PREFORK_HANDOVER_FAILED";
/// The first argument of a program that is to check a state. One that knows nothing of it refuses
/// it.
const CHECK: &str = "--check-handover";
/// The longest reason that is passed on, in bytes.
const LONGEST_REASON: usize = 1000;

/// What this process was started to do with a state.
#[derive(Debug)]
pub(crate) struct Task {
    /// The memory that holds it.
    memory: OwnedFd,
    /// It is only to be checked.
    pub(crate) check: bool,
    /// The next program has given up: why.
    failed: Option<String>,
}

/// How to give up.
enum Way {
    /// There is nothing to give up: a panic is a panic.
    None,
    /// Tell the supervisor, which waits for it, and exit.
    Report(OwnedFd),
    /// Exec the program that wrote the state.
    Back {
        memory: RawFd,
        previous: OwnedFd,
        descriptors: Vec<RawFd>,
        again: bool,
    },
}

static WAY: Mutex<Way> = Mutex::new(Way::None);

fn way() -> std::sync::MutexGuard<'static, Way> {
    WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `ps` calls this program.
fn own_name() -> Option<CString> {
    let path = std::env::args_os().next()?;
    CString::new(std::path::Path::new(&path).file_name()?.as_bytes()).ok()
}

/// Whether this process was started to check or to take over a state. To be called once, before
/// anything else.
pub(crate) fn task() -> Option<Task> {
    let mut arguments = std::env::args_os().skip(1);
    let check = arguments.next().is_some_and(|word| word == CHECK);
    let numbers = if check {
        arguments.next()
    } else {
        std::env::var_os(VARIABLE)
    };
    let (first, second) = numbers?
        .to_str()?
        .split_once(':')
        .map(|(one, two)| (one.parse(), two.parse()))?;
    let (memory, other): (RawFd, RawFd) = (first.ok()?, second.ok()?);
    let failed = std::env::var(FAILED_VARIABLE).ok();
    // An exec by descriptor leaves the descriptor's number as the name.
    let _ = own_name().map(|name| nix::sys::prctl::set_name(&name));
    let other = prefork_os::adopt(other).unwrap_or_else(|error| {
        give_up(&format!(
            "descriptor {other}, which comes with the state, cannot be taken: {error}"
        ))
    });
    *way() = if check {
        Way::Report(other)
    } else {
        Way::Back {
            memory,
            previous: other,
            descriptors: Vec::new(),
            again: failed.is_some(),
        }
    };
    std::panic::set_hook(Box::new(|panic| give_up(&panic.to_string())));
    // Workers, and the next program, must not find the variables.
    remove_variables(&[VARIABLE, FAILED_VARIABLE])
        .unwrap_or_else(|error| give_up(&format!("cannot remove {VARIABLE}: {error}")));
    let memory = prefork_os::adopt(memory)
        .unwrap_or_else(|error| give_up(&format!("the state is not open: {error}")));
    let task = Task {
        memory,
        check,
        failed,
    };
    #[cfg(feature = "next")]
    next::begin(&task);
    Some(task)
}

impl Task {
    /// Reads the state and takes its descriptors over.
    pub(crate) fn read(&self) -> (State, Unpacking) {
        let state = read(&self.memory).unwrap_or_else(|error| give_up(&error.to_string()));
        if let Way::Back { descriptors, .. } = &mut *way() {
            *descriptors = state.kept().collect();
        }
        let unpacking = Unpacking::open(&state.descriptors);
        #[cfg(feature = "next")]
        next::end(self);
        (state, unpacking)
    }

    /// The check has passed: says so, and leaves.
    pub(crate) fn pass(self) -> ! {
        if let Way::Report(report) = &*way() {
            say(report, &format!("ok {}", crate::version::VERSION));
        }
        std::process::exit(0)
    }

    /// The server is taken over: there is no way back, and panics are what they are. When this is
    /// the old program again: why.
    pub(crate) fn complete(self) -> Option<String> {
        // Closes the old program.
        *way() = Way::None;
        drop(std::panic::take_hook());
        self.failed
    }
}

/// Ends this process's part, in the way that leaves the server as it is. Never unwinds.
pub(crate) fn give_up(reason: &str) -> ! {
    let reason = plain(reason);
    match std::mem::replace(&mut *way(), Way::None) {
        Way::None => {
            let _ = writeln!(io::stderr(), "error: {reason}");
        }
        Way::Report(report) => say(&report, &format!("no {reason}")),
        Way::Back {
            memory,
            previous,
            descriptors,
            again,
        } => {
            let _ = writeln!(io::stderr(), "error: cannot take over: {reason}");
            if !again {
                let error = exec(&previous, memory, &previous, Some(&reason), &descriptors);
                let _ = writeln!(
                    io::stderr(),
                    "error: cannot go back to the old program: {error}"
                );
            }
        }
    }
    std::process::exit(1)
}

/// One line without control characters, of bounded length.
fn plain(reason: &str) -> String {
    let line = reason
        .split('\n')
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(" ");
    let mut end = line.len().min(LONGEST_REASON);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line[..end]
        .chars()
        .filter(|letter| !letter.is_control())
        .collect()
}

fn say(report: &OwnedFd, text: &str) {
    // Far below PIPE_BUF: written whole or not at all.
    let _ = nix::unistd::write(report, text.as_bytes());
}

/// What a check said: the version that can take over, or why it cannot.
pub(crate) fn verdict(report: &OwnedFd) -> Result<String, String> {
    let mut text = [0_u8; LONGEST_REASON + 8];
    let length = nix::unistd::read(report, &mut text).unwrap_or(0);
    let text = plain(&String::from_utf8_lossy(&text[..length]));
    match text.split_once(' ') {
        Some(("ok", version)) => Ok(version.to_owned()),
        Some(("no", reason)) => Err(reason.to_owned()),
        _ => Err(String::new()),
    }
}

/// The command line of a check.
pub(crate) fn check_arguments(memory: &OwnedFd, report: &OwnedFd) -> Vec<CString> {
    let name = std::env::args_os().next().unwrap_or_default();
    let numbers = format!("{}:{}", memory.as_raw_fd(), report.as_raw_fd());
    [name.into_vec(), CHECK.into(), numbers.into()]
        .into_iter()
        .filter_map(|word| CString::new(word).ok())
        .collect()
}

/// The environment of this process without these variables.
pub(crate) fn environment_without(names: &[&str]) -> Vec<CString> {
    std::env::vars_os()
        .filter(|(name, _)| !names.iter().any(|unwanted| name == unwanted))
        .filter_map(|(name, value)| {
            CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok()
        })
        .collect()
}

/// Writes a state into sealed memory.
pub(crate) fn seal(state: &State) -> io::Result<OwnedFd> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let bytes = bytes(state)?;
    let memory = memfd_create(
        "prefork-handover",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )?;
    let mut file = File::from(memory);
    file.write_all(&bytes)?;
    let memory = OwnedFd::from(file);
    fcntl(
        &memory,
        FcntlArg::F_ADD_SEALS(seals() | SealFlag::F_SEAL_SEAL),
    )?;
    Ok(memory)
}

fn seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

fn bytes(state: &State) -> io::Result<Vec<u8>> {
    #[cfg(not(feature = "next"))]
    let format = FORMAT;
    #[cfg(feature = "next")]
    let format = next::format();
    let mut bytes = [MAGIC.as_slice(), &format.to_le_bytes()].concat();
    record::append(&mut bytes, state).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}

/// Why a state cannot be read.
#[derive(Debug, thiserror::Error)]
enum StateError {
    #[error("the state is not sealed, so another process could change it")]
    NotSealed,
    #[error("cannot read the state: {0}")]
    Read(#[from] io::Error),
    #[error("cannot read the state: it is too long")]
    TooLong,
    #[error("cannot read the state: these bytes are none")]
    NoState,
    #[error(
        "cannot read the state: it has format {0}, version {version} reads {FORMAT} \
         (restart the server to change versions)",
        version = crate::version::VERSION
    )]
    Format(u16),
    #[error("cannot read the state: {0}")]
    Decode(#[from] bincode::error::DecodeError),
    #[error("cannot read the state: bytes are left over")]
    LeftOver,
}

fn read(memory: &OwnedFd) -> Result<State, StateError> {
    let seals_found =
        fcntl(memory, FcntlArg::F_GET_SEALS).map_or(SealFlag::empty(), SealFlag::from_bits_retain);
    if !seals_found.contains(seals()) {
        return Err(StateError::NotSealed);
    }
    let mut bytes = Vec::new();
    let mut file = File::from(memory.try_clone()?);
    file.rewind()?;
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Result<State, StateError> {
    if bytes.len() as u64 > LONGEST {
        return Err(StateError::TooLong);
    }
    let (magic, rest) = bytes.split_at_checked(MAGIC.len()).unwrap_or_default();
    let Some((format, mut rest)) = rest.split_first_chunk().filter(|_| magic == MAGIC) else {
        return Err(StateError::NoState);
    };
    match u16::from_le_bytes(*format) {
        FORMAT => {}
        #[cfg(feature = "next")]
        format if format == next::format() => {}
        format => return Err(StateError::Format(format)),
    }
    let state = record::take(&mut rest)?;
    if rest.is_empty() {
        Ok(state)
    } else {
        Err(StateError::LeftOver)
    }
}

/// Becomes the next program. Returns only when that fails; nothing has changed then.
pub(crate) fn execute(
    next: &Executable,
    state: &State,
    memory: &OwnedFd,
    previous: &OwnedFd,
) -> Errno {
    let descriptors: Vec<RawFd> = state.kept().collect();
    exec(next, memory.as_raw_fd(), previous, None, &descriptors)
}

/// Becomes a program, which inherits the state and the descriptors in it.
fn exec(
    program: &impl AsFd,
    memory: RawFd,
    previous: &OwnedFd,
    failed: Option<&str>,
    descriptors: &[RawFd],
) -> Errno {
    let previous = previous.as_raw_fd();
    let kept = [descriptors, &[memory, previous]].concat();
    let words = |words: Vec<OsString>| {
        words
            .into_iter()
            .filter_map(|word| CString::new(word.into_vec()).ok())
    };
    let arguments: Vec<CString> = words(std::env::args_os().collect()).collect();
    let mut environment = environment_without(&[VARIABLE, FAILED_VARIABLE]);
    let mut more = vec![format!("{VARIABLE}={memory}:{previous}").into()];
    more.extend(failed.map(|reason| format!("{FAILED_VARIABLE}={reason}").into()));
    environment.extend(words(more));
    exec_with(program, &arguments, &environment, &kept)
}
