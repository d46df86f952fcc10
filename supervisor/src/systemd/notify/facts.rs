//! Decisions of the core as notifications to systemd. Not of the workers: see `server`.

use super::Notifier;
use prefork_core::Fact;
use std::io;

/// Notifies systemd of a fact that concerns it. Every RELOADING=1 is followed by a READY=1, or the
/// unit would hang in "reloading".
///
/// # Errors
/// Those of the notifier: after `WouldBlock` it has to be called again.
pub(crate) fn report(notifier: &Notifier, fact: &Fact, booted: bool) -> io::Result<()> {
    match fact {
        Fact::ServerReady(_, workers) => notifier.ready(&format!("{workers} workers serve")),
        // Before the first READY=1 the unit is starting, and a reload is part of that.
        Fact::ReloadBegan(generation) if booted => {
            notifier.reloading(&format!("reloading: trying generation {generation}"))
        }
        Fact::Reloaded(generation, workers) if booted => notifier.ready(&format!(
            "{workers} workers of generation {generation} serve"
        )),
        Fact::ReloadFailed(_, serving, reason) if booted => notifier.ready(&format!(
            "generation {serving} serves; the last reload failed: {reason}"
        )),
        Fact::Degraded(slots, reason) => {
            notifier.status(&format!("degraded: {slots} slots are empty: {reason}"))
        }
        Fact::Recovered => notifier.status("every slot is filled again"),
        Fact::Resized(_, to) | Fact::Scaled { to, .. } => {
            notifier.status(&format!("scaling to {to} workers"))
        }
        Fact::DrainingAll => notifier.status("draining all workers"),
        Fact::PreStop(delay) => notifier.stopping(&format!("stopping in {delay:?}")),
        Fact::Stopping(_) => notifier.stopping("stopping"),
        Fact::StartupFailed(reason) => notifier.stopping(&format!("giving up: {reason}")),
        _ => Ok(()),
    }
}
