//! Whom workers and the supervisor run as, and what they may keep: users, groups, capabilities.
//!
//! Names are looked up here, in the user database of the machine, so that `check` finds the wrong
//! ones. Whether this process can become such a user is not known here.

use super::reader::{ConfigValue, InvalidValue, invalid, keywords};
use super::toml_text::quoted;
use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use std::ffi::CString;
use std::fmt;
use std::path::PathBuf;

/// Whom workers and the supervisor run as, and what they keep.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Privileges {
    /// The workers' user; `None`: the supervisor's.
    pub user: Option<Account>,
    /// The workers' group; `None`: the user's.
    pub group: Option<NamedGroup>,
    /// Groups that the workers are in besides those of their user.
    pub groups: Vec<NamedGroup>,
    /// The capabilities that workers keep.
    pub keep: Capabilities,
    /// Whether nothing that workers execute may gain privileges; `None`: as their identity makes
    /// sense.
    pub no_new_privileges: Option<bool>,
    /// When a worker leaves a core dump.
    pub core_dumps: CoreDumps,
    /// Whom the supervisor itself runs as; `None`: who started it.
    pub supervisor_user: Option<Account>,
}

impl Privileges {
    /// Those of the admin child: another user, and nothing besides.
    pub(crate) fn of_admin(&self, user: Option<Account>) -> Self {
        Self {
            user,
            group: None,
            groups: Vec::new(),
            keep: Capabilities::NONE,
            no_new_privileges: Some(true),
            core_dumps: CoreDumps::Off,
            supervisor_user: self.supervisor_user.clone(),
        }
    }

    /// Returns the additional groups as they were written.
    pub(crate) fn written_groups(&self) -> Vec<String> {
        self.groups
            .iter()
            .map(|group| group.written.clone())
            .collect()
    }

    /// Returns whether workers run as another user or group than the one that started the
    /// supervisor.
    pub fn change_identity(&self) -> bool {
        self.user.is_some()
            || self.group.is_some()
            || !self.groups.is_empty()
            || self.supervisor_user.is_some()
    }
}

/// Why a user or a group cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LookupError {
    /// The database has no such user.
    #[error("there is no user `{0}` (create it with useradd, or name another)")]
    NoUser(String),
    /// The database has no such group.
    #[error("there is no group `{0}` (create it with groupadd, or name another)")]
    NoGroup(String),
    /// The user is a number that the database does not have, so its group is unknown.
    #[error(
        "user {user} is not in the user database, so its group is unknown (add it there, or \
         {remedy})"
    )]
    NoGroupOf {
        /// The user, as it was written.
        user: String,
        /// What else can be done.
        remedy: &'static str,
    },
    /// The database cannot be asked.
    #[error("cannot look up {what} {written}: {}", errno.desc())]
    System {
        /// What was looked for.
        what: &'static str,
        /// The name, as it was written.
        written: String,
        /// Why.
        errno: Errno,
    },
}

/// Returns what a look-up has found. Where the database itself is missing, as in minimal containers,
/// nothing is found.
fn found<T>(looked_up: nix::Result<Option<T>>) -> nix::Result<Option<T>> {
    match looked_up {
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        other => other,
    }
}

impl LookupError {
    fn system(what: &'static str, written: &str, errno: Errno) -> Self {
        Self::System {
            what,
            written: written.to_owned(),
            errno,
        }
    }
}

/// The number of the user `nobody`, and of its group, on every Linux.
const NOBODY: u32 = 65534;

/// A user, as the user database knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// As it was written: a name or a number.
    pub written: String,
    /// Its name, unless the database has none for the number.
    pub name: Option<String>,
    /// Its number.
    pub uid: u32,
    /// Its group; `None` when the database does not know the number.
    pub gid: Option<u32>,
    /// All its groups, the first one too, as initgroups(3) finds them.
    pub groups: Vec<u32>,
    /// Its home directory and its shell.
    pub home: Option<(PathBuf, PathBuf)>,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} (uid {})", self.uid),
            None => write!(f, "{}", self.uid),
        }
    }
}

impl Account {
    /// Looks a user up whose group is known.
    pub(crate) fn with_group(written: &str) -> Result<Self, LookupError> {
        let account = Self::find(written)?;
        match account.gid {
            Some(_) => Ok(account),
            None => Err(LookupError::NoGroupOf {
                user: written.to_owned(),
                remedy: "name another",
            }),
        }
    }

    /// Returns the user without rights of its own, even where no database names it.
    pub(crate) fn nobody() -> Result<Self, LookupError> {
        match Self::with_group("nobody") {
            Err(LookupError::NoUser(written)) => Ok(Self {
                written,
                name: None,
                uid: NOBODY,
                gid: Some(NOBODY),
                groups: Vec::new(),
                home: None,
            }),
            known => known,
        }
    }

    /// Looks a user up by name or number.
    pub(crate) fn find(written: &str) -> Result<Self, LookupError> {
        let number: Option<u32> = written.parse().ok();
        let found = found(match number {
            Some(number) => User::from_uid(Uid::from_raw(number)),
            None => User::from_name(written),
        });
        let found = found.map_err(|errno| LookupError::system("user", written, errno))?;
        let (written, number) = (
            written.to_owned(),
            number.filter(|number| *number != u32::MAX),
        );
        match (found, number) {
            (Some(user), _) => {
                let name = CString::new(user.name.as_str()).unwrap_or_default();
                let groups = getgrouplist(&name, user.gid)
                    .map_err(|errno| LookupError::system("the groups of", &written, errno))?;
                Ok(Self {
                    written,
                    name: Some(user.name),
                    uid: user.uid.as_raw(),
                    gid: Some(user.gid.as_raw()),
                    groups: groups.into_iter().map(Gid::as_raw).collect(),
                    home: Some((user.dir, user.shell)),
                })
            }
            (None, Some(uid)) => Ok(Self {
                written,
                name: None,
                uid,
                gid: None,
                groups: Vec::new(),
                home: None,
            }),
            (None, None) => Err(LookupError::NoUser(written)),
        }
    }
}

/// A group, as the group database knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedGroup {
    /// As it was written: a name or a number.
    pub written: String,
    /// Its number.
    pub gid: u32,
}

impl NamedGroup {
    pub(crate) fn find(written: &str) -> Result<Self, LookupError> {
        let number = written.parse().ok().filter(|number| *number != u32::MAX);
        let gid = match number {
            Some(number) => Some(number),
            None => found(Group::from_name(written))
                .map_err(|errno| LookupError::system("group", written, errno))?
                .map(|group| group.gid.as_raw()),
        };
        gid.map(|gid| Self {
            written: written.to_owned(),
            gid,
        })
        .ok_or_else(|| LookupError::NoGroup(written.to_owned()))
    }
}

impl ConfigValue for NamedGroup {
    type Resolved = Self;
    const EXAMPLE: &'static str = "\"adm\"";

    fn read(text: &str) -> Result<Self, InvalidValue> {
        Self::find(text).map_err(|error| invalid!("{error}"))
    }

    fn write(value: &Self) -> String {
        quoted(&value.written)
    }
}

/// When a worker leaves a core dump, and so whether other processes of its user may look into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CoreDumps {
    /// Whenever it crashes.
    #[default]
    On,
    /// When it is aborted, as a hung one is. Until then, a Rust worker cannot be looked into.
    Abort,
    /// Never.
    Off,
}

keywords!(
    CoreDumps { On = "on", Abort = "abort", Off = "off" },
    "says nothing about core dumps (choose on, abort or off)"
);

/// A set of capabilities, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(pub u64);

/// The kernel's names, by number, in lower case and without `CAP_`.
const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

impl Capabilities {
    /// None.
    pub const NONE: Self = Self(0);
    /// Whatever there is.
    pub const ALL: Self = Self(u64::MAX);
    /// To give files away.
    pub const CHOWN: Self = Self(1);
    /// To change files of others.
    pub const FOWNER: Self = Self(1 << 3);
    /// To signal others' processes.
    pub const KILL: Self = Self(1 << 5);
    /// To change groups.
    pub const SETGID: Self = Self(1 << 6);
    /// To change users.
    pub const SETUID: Self = Self(1 << 7);
    /// To take capabilities out of the bounding set.
    pub const SETPCAP: Self = Self(1 << 8);
    /// To bind ports below 1024.
    pub const NET_BIND_SERVICE: Self = Self(1 << 10);

    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub fn within(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is not in the other.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of these are in it.
    pub fn has(self, others: Self) -> bool {
        others.0 & !self.0 == 0
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Their numbers.
    pub fn numbers(self) -> impl Iterator<Item = u32> {
        (0..u64::BITS).filter(move |number| self.0 & (1 << number) != 0)
    }

    /// Returns a set for each, or the one of all, as they would be typed.
    pub(crate) fn each(self) -> Vec<Self> {
        if self == Self::ALL {
            return vec![self];
        }
        self.numbers().map(|number| Self(1 << number)).collect()
    }

    /// Their names, as they are written; `all` for everything.
    pub fn names(self) -> Vec<String> {
        if self == Self::ALL {
            return vec!["all".to_owned()];
        }
        let name = |number: u32| {
            NAMES
                .get(number as usize)
                .map_or(number.to_string(), |name| (*name).to_owned())
        };
        self.numbers().map(name).collect()
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("no capability");
        }
        let names: Vec<_> = self
            .names()
            .iter()
            .map(|name| format!("CAP_{}", name.to_ascii_uppercase()))
            .collect();
        f.write_str(&names.join(", "))
    }
}

impl ConfigValue for Capabilities {
    type Resolved = Self;
    const EXAMPLE: &'static str = "\"net_bind_service\"";

    fn read(text: &str) -> Result<Self, InvalidValue> {
        let name = text.to_ascii_lowercase();
        let name = name.strip_prefix("cap_").unwrap_or(&name);
        if name == "all" {
            return Ok(Self::ALL);
        }
        NAMES
            .iter()
            .position(|known| *known == name)
            .map(|number| Self(1 << number))
            .ok_or_else(|| {
            invalid!(
                "`{}` is no capability (write a name of capabilities(7), like net_bind_service, \
                 or all)",
                text.escape_debug()
            )
        })
    }

    fn write(value: &Self) -> String {
        quoted(value.names().join(" "))
    }
}

/// A user or a group, by name or number, not yet looked up.
#[derive(Debug, Clone)]
pub(crate) struct Name;

impl ConfigValue for Name {
    type Resolved = String;
    const EXAMPLE: &'static str = "\"www-data\"";

    fn read(text: &str) -> Result<String, InvalidValue> {
        if text.is_empty() || text.contains(|letter: char| letter == ':' || letter.is_control()) {
            return Err(invalid!(
                "`{}` names no user or group (write a name or a number)",
                text.escape_debug()
            ));
        }
        Ok(text.to_owned())
    }

    fn write(value: &String) -> String {
        quoted(value)
    }
}

/// `on` or `off`.
#[derive(Debug, Clone)]
pub(crate) struct OnOff;

impl ConfigValue for OnOff {
    type Resolved = bool;
    const EXAMPLE: &'static str = "\"on\"";
    const CHOICES: &'static [&'static str] = &["on", "off"];

    fn read(text: &str) -> Result<bool, InvalidValue> {
        match text {
            "on" | "true" => Ok(true),
            "off" | "false" => Ok(false),
            _ => Err(invalid!("`{}` is neither on nor off", text.escape_debug())),
        }
    }

    fn write(value: &bool) -> String {
        quoted(if *value { "on" } else { "off" })
    }
}
