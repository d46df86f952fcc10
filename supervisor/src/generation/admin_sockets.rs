//! The listening sockets of the admin child.

use crate::config::Admin;
use crate::listen::{ListenError, ListenSet, Listeners};

/// Connections that may wait for the admin child.
const BACKLOG: u32 = 128;

/// Sockets that the admin child serves, and no worker.
#[derive(Debug)]
pub(crate) struct AdminSockets {
    pub(crate) http: ListenSet,
    /// For HAProxy's agent checks.
    pub(crate) agent: ListenSet,
}

impl AdminSockets {
    /// Creates the sockets that a configuration asks for, all or nothing.
    ///
    /// # Errors
    /// The first address that cannot be bound.
    pub(super) fn prepare(listeners: &mut Listeners, admin: &Admin) -> Result<Self, ListenError> {
        Ok(Self {
            http: listeners.prepare_exclusive("admin", &admin.http, BACKLOG)?,
            agent: listeners.prepare_exclusive("agent", &admin.agent, BACKLOG)?,
        })
    }
}
