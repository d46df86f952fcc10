//! What a process gives up on its way to its program, and in which order.
//!
//! *Invariant*: the order is fixed, since each step takes away what an earlier one needs: private
//! directories (mounts need privileges), limits, identity; then, after the parent-death signal
//! (which the kernel forgets whenever credentials change), `no_new_privs` and Landlock; and, as the
//! last step before exec, the filter of system calls.

use crate::identity::Identity;
use crate::landlock::Ruleset;
use crate::private_tmp::PrivateTmp;
use crate::seccomp::Filter;
use crate::spawn::Stage;
use nix::errno::Errno;
use nix::sys::resource::Resource;

/// A resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The resource.
    pub resource: Resource,
    /// The limit in force.
    pub soft: u64,
    /// The most that the process may set itself.
    pub hard: u64,
}

impl Limit {
    /// No limit.
    pub const UNLIMITED: u64 = libc::RLIM64_INFINITY;

    /// Sets it for this process. Async-signal-safe.
    fn set(&self) -> Result<(), Errno> {
        let limit = libc::rlimit64 {
            rlim_cur: self.soft,
            rlim_max: self.hard,
        };
        let none = std::ptr::null_mut();
        // SAFETY: `limit` is valid for reads; the old limit is not asked for.
        let done =
            unsafe { libc::prlimit64(0, self.resource as _, std::ptr::from_ref(&limit), none) };
        Errno::result(done).map(drop)
    }
}

/// What a process gives up. Everything in it was prepared before the fork, so that entering it
/// allocates nothing and is async-signal-safe.
#[derive(Debug)]
pub struct Confinement {
    /// Directories of its own.
    pub private_tmp: Option<PrivateTmp>,
    /// Its resource limits.
    pub limits: Vec<Limit>,
    /// How many files it may have open, where that is fewer than its parent may. Set last, since
    /// the numbers of the parent's own may be higher.
    pub open_files: Option<Limit>,
    /// Who it becomes.
    pub identity: Identity,
    /// Nothing that it executes may gain privileges, such as by set-user-id bits. A ruleset and a
    /// filter need it.
    pub no_new_privs: bool,
    /// What it can reach.
    pub landlock: Option<Ruleset>,
    /// Which system calls it can make.
    pub filter: Option<Filter>,
}

impl Confinement {
    /// Nothing is given up.
    pub const NONE: Self = Self {
        private_tmp: None,
        limits: Vec::new(),
        open_files: None,
        identity: Identity::SAME,
        no_new_privs: false,
        landlock: None,
        filter: None,
    };

    /// Enters all of it in this process, for good.
    ///
    /// # Errors
    /// The step that failed, and how.
    #[doc(hidden)]
    pub fn enter(&self) -> Result<(), (Stage, Errno)> {
        self.drop_privileges()?;
        self.restrict()?;
        self.limit_open_files()?;
        self.filter()
    }

    /// The limit that the placing of descriptors must not meet.
    pub(crate) fn limit_open_files(&self) -> Result<(), (Stage, Errno)> {
        let set = |limit: &Limit| limit.set().map_err(|errno| (Stage::Limits, errno));
        self.open_files.as_ref().map_or(Ok(()), set)
    }

    /// What needs privileges, and dropping them.
    pub(crate) fn drop_privileges(&self) -> Result<(), (Stage, Errno)> {
        if let Some(private_tmp) = &self.private_tmp {
            private_tmp
                .enter()
                .map_err(|errno| (Stage::PrivateTmp, errno))?;
        }
        for limit in &self.limits {
            limit.set().map_err(|errno| (Stage::Limits, errno))?;
        }
        self.identity.assume()
    }

    /// What only takes away, while the descriptors of the parent are still there.
    pub(crate) fn restrict(&self) -> Result<(), (Stage, Errno)> {
        if self.no_new_privs {
            // SAFETY: prctl takes integers here, and touches no memory.
            Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
                .map_err(|errno| (Stage::NoNewPrivileges, errno))?;
        }
        match &self.landlock {
            Some(ruleset) => ruleset.enter().map_err(|errno| (Stage::Landlock, errno)),
            None => Ok(()),
        }
    }

    /// The last step before exec; from here on, system calls may fail.
    pub(crate) fn filter(&self) -> Result<(), (Stage, Errno)> {
        match &self.filter {
            Some(filter) => filter.enter().map_err(|errno| (Stage::Seccomp, errno)),
            None => Ok(()),
        }
    }
}
