//! Whether addresses could be bound, for `supervisor check`: nothing is bound that another program
//! could notice.

use super::error::{ListenError, ListenProblem, Operation};
use super::{tcp, unix};
use crate::config::Bind;
use nix::errno::Errno;

/// What is known of an address that has not been bound.
#[derive(Debug)]
pub(crate) enum Free {
    /// Nothing speaks against it.
    Yes,
    /// A program listens on it, perhaps the very server that is to be reloaded: the addresses, as
    /// the status has them, and what another server would be told.
    Occupied(Vec<(String, ListenError)>),
    /// This process may not find out: why.
    Unknown(&'static str),
}

/// Checks whether an address could be bound.
///
/// # Errors
/// Why no process could bind it here.
pub(crate) fn probe(bind: &Bind) -> Result<Free, ListenError> {
    let problem = |problem| ListenError::of(bind, problem);
    match bind {
        Bind::Named(address, _) => probe(address),
        Bind::Tcp { host, port } => {
            let targets = tcp::resolve(host, *port).map_err(problem)?;
            let mut missing = 0;
            let mut occupied = Vec::new();
            for target in &targets {
                match tcp::probe(*target) {
                    Ok(()) => {}
                    Err(it @ ListenProblem::PortInUse { .. }) => {
                        occupied.push((target.to_string(), ListenError::new(target, it)));
                    }
                    Err(it) if it.is_no_such_address() && missing + 1 < targets.len() => {
                        missing += 1;
                    }
                    Err(ListenProblem::System {
                        operation: Operation::BindTcp,
                        errno: Errno::EACCES | Errno::EPERM,
                    }) => return Ok(Free::Unknown("this user may not bind it")),
                    Err(it) => return Err(ListenError::new(target, it)),
                }
            }
            Ok(if occupied.is_empty() {
                Free::Yes
            } else {
                Free::Occupied(occupied)
            })
        }
        Bind::Unix {
            path,
            mode,
            owner,
            group,
        } => {
            let wanted = unix::Wanted::new(path, *mode, owner.as_deref(), group.as_deref())
                .map_err(problem)?;
            match unix::probe(&wanted.path) {
                Ok(()) if wanted.path.parent().is_some_and(std::path::Path::is_dir) => {
                    Ok(Free::Yes)
                }
                Ok(()) => Ok(Free::Unknown("its directory does not exist yet")),
                Err(it @ ListenProblem::SocketInUse) => {
                    let address = format!("unix:{}", wanted.path.display());
                    Ok(Free::Occupied(vec![(address, problem(it))]))
                }
                Err(ListenProblem::System {
                    errno: Errno::EACCES | Errno::EPERM,
                    ..
                }) => Ok(Free::Unknown("this user may not look at it")),
                Err(it) => Err(problem(it)),
            }
        }
        // The configuration is refused when they are missing.
        Bind::Fd(_) | Bind::Inherited(_) => Ok(Free::Yes),
    }
}
