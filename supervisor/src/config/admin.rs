//! What the admin child serves: `--admin`, `--agent`, `--admin-user`.

use super::bind::Bind;
use super::privileges::Account;

/// What the admin child serves, and as which user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Addresses for HTTP: TCP or Unix.
    pub http: Vec<Bind>,
    /// Addresses for HAProxy's agent-check: TCP or Unix.
    pub agent: Vec<Bind>,
    /// Its user; `None`: the supervisor's, which is not root then.
    pub user: Option<Account>,
}
