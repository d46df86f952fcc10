//! What workers may not do, as settings: the sandbox and the resource limits.

use super::reader::{ConfigValue, InvalidValue, Parsed, invalid, keywords};
use super::toml_text::quoted;
use super::values::Size;
use nix::sys::resource::Resource;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How workers are confined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// What to do when the kernel lacks a part.
    pub mode: SandboxMode,
    /// What workers may read and execute. With this or `writable` they see little else.
    pub read_only: Vec<PathBuf>,
    /// What workers may read and write.
    pub writable: Vec<PathBuf>,
    /// Workers may bind TCP ports of their own.
    pub tcp_bind: bool,
    /// What becomes of system calls that a worker should not need.
    pub seccomp: Seccomp,
    /// Workers have a `/tmp` and a `/var/tmp` of their own, empty at first.
    pub private_tmp: bool,
}

/// What happens when the kernel lacks a part of the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxMode {
    /// The start, or the reload, is refused.
    Strict,
    /// The sandbox goes without that part, and a warning says so.
    BestEffort,
    /// There is no sandbox at all.
    Off,
}

/// What becomes of system calls that a worker should not need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seccomp {
    /// They are done.
    Off,
    /// They are done, and the kernel logs them.
    Log,
    /// They fail with EPERM.
    Enforce,
}

/// The limit of one resource. `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Of what, as `setrlimit(2)` names it.
    pub resource: Resource,
    /// What holds, in the resource's own unit.
    pub soft: Option<u64>,
    /// What a worker can raise it to.
    pub hard: Option<u64>,
}

impl Sandbox {
    /// None.
    pub const OFF: Self = Self {
        mode: SandboxMode::Off,
        read_only: Vec::new(),
        writable: Vec::new(),
        tcp_bind: true,
        seccomp: Seccomp::Off,
        private_tmp: false,
    };
}

impl Limit {
    /// The last word on each resource.
    pub(crate) fn last_of_each(list: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut kept: Vec<Self> = Vec::new();
        for limit in list {
            kept.retain(|earlier| earlier.resource != limit.resource);
            kept.push(limit);
        }
        kept
    }

    /// The name of its resource.
    pub fn name(&self) -> &'static str {
        RESOURCES
            .iter()
            .find(|kind| kind.1 == self.resource)
            .map_or("", |kind| kind.0)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value =
            |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |n| n.to_string());
        write!(
            f,
            "{}={}:{}",
            self.name(),
            value(self.soft),
            value(self.hard)
        )
    }
}

/// How a limit's value is written.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Unit {
    Count,
    Bytes,
    Seconds,
}

const RESOURCES: [(&str, Resource, Unit); 11] = [
    ("as", Resource::RLIMIT_AS, Unit::Bytes),
    ("core", Resource::RLIMIT_CORE, Unit::Bytes),
    ("cpu", Resource::RLIMIT_CPU, Unit::Seconds),
    ("data", Resource::RLIMIT_DATA, Unit::Bytes),
    ("fsize", Resource::RLIMIT_FSIZE, Unit::Bytes),
    ("memlock", Resource::RLIMIT_MEMLOCK, Unit::Bytes),
    ("msgqueue", Resource::RLIMIT_MSGQUEUE, Unit::Bytes),
    ("nofile", Resource::RLIMIT_NOFILE, Unit::Count),
    ("nproc", Resource::RLIMIT_NPROC, Unit::Count),
    ("sigpending", Resource::RLIMIT_SIGPENDING, Unit::Count),
    ("stack", Resource::RLIMIT_STACK, Unit::Bytes),
];

impl ConfigValue for Limit {
    type Resolved = Self;
    const EXAMPLE: &'static str = "\"nofile=4096\"";

    fn read(text: &str) -> Result<Self, InvalidValue> {
        let (name, value) = text.split_once('=').ok_or_else(|| {
            invalid!("`{text}` sets no limit (write it like nofile=4096 or core=0:unlimited)")
        })?;
        Self::entry(name, value)
    }

    fn write(value: &Self) -> String {
        quoted(value)
    }

    fn entry(name: &str, value: &str) -> Result<Self, InvalidValue> {
        let Some((_, resource, unit)) = RESOURCES.into_iter().find(|kind| kind.0 == name) else {
            let names: Vec<_> = RESOURCES.iter().map(|kind| kind.0).collect();
            return Err(invalid!(
                "`{}` is no resource (choose of {})",
                name.escape_debug(),
                names.join(", ")
            ));
        };
        let (soft, hard) = value.split_once(':').unwrap_or((value, value));
        let (soft, hard) = (amount(soft, unit)?, amount(hard, unit)?);
        if hard.is_some_and(|hard| soft.is_none_or(|soft| soft > hard)) {
            return Err(invalid!(
                "{name}: the soft limit is above the hard one (write SOFT:HARD)"
            ));
        }
        Ok(Self {
            resource,
            soft,
            hard,
        })
    }

    fn over(upper: Vec<Parsed<Self>>, mut lower: Vec<Parsed<Self>>) -> Vec<Parsed<Self>> {
        lower.extend(upper);
        lower
    }
}

fn amount(text: &str, unit: Unit) -> Result<Option<u64>, InvalidValue> {
    if text == "unlimited" {
        return Ok(None);
    }
    // The kernel takes the highest number for no limit.
    let number = || text.parse().ok().filter(|number| *number < u64::MAX);
    match unit {
        Unit::Bytes => Size::<0, { u64::MAX - 1 }>::read(text).map(Some),
        Unit::Count => number()
            .map(Some)
            .ok_or_else(|| invalid!("`{text}` is no number (write one, or unlimited)")),
        Unit::Seconds => number()
            .or_else(|| {
                humantime::parse_duration(text)
                    .ok()
                    .map(|time: Duration| time.as_secs())
            })
            .map(Some)
            .ok_or_else(|| invalid!("`{text}` is no time (write it like 60s, or unlimited)")),
    }
}

keywords!(
    SandboxMode { Strict = "strict", BestEffort = "best-effort", Off = "off" },
    "is no way to sandbox (choose strict, best-effort or off)"
);

keywords!(
    Seccomp { Enforce = "enforce", Log = "log", Off = "off" },
    "is no way to filter system calls (choose log, enforce or off)"
);

/// `allow` or `deny`.
#[derive(Debug, Clone)]
pub(crate) struct Permission;

impl ConfigValue for Permission {
    type Resolved = bool;
    const EXAMPLE: &'static str = "\"deny\"";
    const CHOICES: &'static [&'static str] = &["allow", "deny"];

    fn read(text: &str) -> Result<bool, InvalidValue> {
        match text {
            "allow" => Ok(true),
            "deny" => Ok(false),
            _ => Err(invalid!("`{text}` is neither allow nor deny")),
        }
    }

    fn write(value: &bool) -> String {
        quoted(if *value { "allow" } else { "deny" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_has_a_unit_of_its_own() {
        let read = |text: &str| Limit::read(text).map(|limit| limit.to_string());
        for (text, meaning) in [
            ("nofile=1024", "nofile=1024:1024"),
            ("nofile=1024:unlimited", "nofile=1024:unlimited"),
            ("as=1GiB", "as=1073741824:1073741824"),
            ("core=0:10MB", "core=0:10000000"),
            ("cpu=1m", "cpu=60:60"),
            ("cpu=60", "cpu=60:60"),
            ("stack=unlimited", "stack=unlimited:unlimited"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(meaning), "{text}");
        }
        for text in [
            "nofile",
            "nofile=",
            "nofile=1k",
            "nofile=-1",
            "nofile=18446744073709551615",
            "files=1",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        assert_eq!(
            read("nofile=2:1"),
            Err(invalid!(
                "nofile: the soft limit is above the hard one (write SOFT:HARD)"
            ))
        );
        assert!(read("core=unlimited:0").is_err());
    }
}
