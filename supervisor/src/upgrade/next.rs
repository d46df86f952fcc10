//! How a later version plays its part in the tests: well, or as `PREFORK_NEXT` says. Not in any
//! build that serves.

use super::{FORMAT, Task, give_up};

/// The format that it writes, which it can read besides [`FORMAT`].
pub(crate) fn format() -> u16 {
    if plays("format") { FORMAT + 1 } else { FORMAT }
}

fn plays(part: &str) -> bool {
    std::env::var("PREFORK_NEXT").is_ok_and(|played| played == part)
}

/// Fails at the start of a check, or when it takes over although its check has passed.
pub(crate) fn begin(task: &Task) {
    if task.check {
        match () {
            () if plays("hang") => std::thread::sleep(std::time::Duration::from_secs(3600)),
            () if plays("crash") => std::process::abort(),
            () if plays("exit") => std::process::exit(3),
            () if plays("panic") => panic!("this version is broken"),
            () if plays("refuse") => give_up("this version does not want to"),
            () => {}
        }
    }
}

/// Fails after it has read the state and taken the descriptors, although its check has passed.
pub(crate) fn end(task: &Task) {
    if !task.check {
        match () {
            () if plays("late") => give_up("this version changed its mind"),
            () if plays("late-panic") => panic!("this version broke too late"),
            () => {}
        }
    }
}
