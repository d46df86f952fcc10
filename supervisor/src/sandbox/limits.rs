//! Resource limits of a worker, set between fork and exec, while it still may raise them.
#![allow(unsafe_code)]

use crate::config::Limit;
use crate::process::spawn::Stage;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::ffi::c_int;

/// The limits to be set.
#[derive(Debug)]
pub(crate) struct Limits(Vec<(Resource, libc::rlimit64)>);

impl Limits {
    /// None but the supervisor's own.
    pub(crate) const NONE: Self = Self(Vec::new());

    /// Checks that this process may give them.
    ///
    /// # Errors
    /// The limit that is above this process's own, and the remedy.
    pub(crate) fn prepare(limits: &[Limit]) -> Result<Self, String> {
        for limit in limits {
            raisable(limit).map_err(|errno| {
                let most =
                    getrlimit(limit.resource).map_or_else(|_| "unknown".to_owned(), |now| number(now.1));
                let (name, unit) = (limit.name(), limit.name().to_ascii_uppercase());
                format!(
                    "cannot set the limit {limit}: {}; this process may have {most} at most \
                     (raise that by Limit{unit}= in the unit or ulimit -H, or lower --limit {name})",
                    errno.desc()
                )
            })?;
        }
        let limit = |limit: &Limit| {
            let value = |limit: Option<u64>| limit.unwrap_or(libc::RLIM64_INFINITY);
            (
                limit.resource,
                libc::rlimit64 {
                    rlim_cur: value(limit.soft),
                    rlim_max: value(limit.hard),
                },
            )
        };
        Ok(Self(limits.iter().map(limit).collect()))
    }

    /// These, and no core file of any size, whatever they say about that.
    pub(crate) fn without_core(mut self) -> Self {
        self.0.push((
            Resource::RLIMIT_CORE,
            libc::rlimit64 {
                rlim_cur: 0,
                rlim_max: 0,
            },
        ));
        self
    }

    /// In the child.
    pub(crate) fn set(&self) -> Result<(), (Stage, c_int)> {
        for (resource, limit) in &self.0 {
            // SAFETY: `limit` is valid for reads; the old limit is not asked for.
            let done = unsafe {
                libc::prlimit64(
                    0,
                    *resource as _,
                    std::ptr::from_ref(limit),
                    std::ptr::null_mut(),
                )
            };
            if done < 0 {
                return Err((Stage::Limits, Errno::last_raw()));
            }
        }
        Ok(())
    }
}

/// Whether a hard limit can be had. There is no other way to know than to take it for a moment: a privilege may be
/// missing, a security module may object, and the kernel has bounds of its own.
fn raisable(limit: &Limit) -> Result<(), Errno> {
    let (soft, hard) = getrlimit(limit.resource)?;
    let wanted = limit.hard.unwrap_or(libc::RLIM_INFINITY);
    if wanted <= hard {
        return Ok(());
    }
    setrlimit(limit.resource, soft, wanted)?;
    setrlimit(limit.resource, soft, hard)
}

fn number(limit: u64) -> String {
    if limit == libc::RLIM_INFINITY {
        "unlimited".to_owned()
    } else {
        limit.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_above_what_this_process_may_have_is_refused_in_the_parent() {
        let before = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        // Above fs.nr_open, nobody gets it.
        let more = Limit {
            resource: Resource::RLIMIT_NOFILE,
            soft: Some(1),
            hard: Some(u64::MAX - 1),
        };
        let message = Limits::prepare(&[more]).expect_err("too much");
        assert!(
            message.contains("cannot set the limit nofile=1:18446744073709551614"),
            "{message}"
        );
        assert!(message.contains("LimitNOFILE="), "{message}");
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok(before));
        let less = Limit {
            resource: Resource::RLIMIT_NOFILE,
            soft: Some(1),
            hard: Some(before.1),
        };
        assert!(Limits::prepare(&[less]).is_ok());
    }
}
