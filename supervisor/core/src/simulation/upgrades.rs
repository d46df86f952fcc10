//! Random upgrades in place: the core is encoded and decoded, and must be the same core.

use super::world::*;

impl World {
    /// Steps the core, now and then across an upgrade.
    pub(crate) fn step_core(&mut self, event: Event) -> Vec<Action> {
        // The shell hands over only when no reload quiesces.
        if !self.upgrades.percent(1) || self.core.is_quiescing() {
            return self.core.step(self.now, event);
        }
        let mut bytes = Vec::new();
        crate::record::append(&mut bytes, &self.core.state()).expect("it can be written");
        let state = crate::record::take(&mut bytes.as_slice()).expect("it can be read");
        let mut read = Core::resume(state).expect("it is a core");
        let expected = self.core.step(self.now, event.clone());
        let actions = read.step(self.now, event);
        invariant!(
            self,
            actions == expected,
            "an upgrade changes no decision: {actions:?}, not {expected:?}"
        );
        let (found, expected) = (read.next_deadline(), self.core.next_deadline());
        invariant!(
            self,
            found == expected,
            "an upgrade changes no deadline: {found:?}, not {expected:?}"
        );
        if self.upgrades.percent(2) {
            let (found, expected) = (format!("{read:?}"), format!("{:?}", self.core));
            invariant!(self, found == expected, "an upgrade forgets nothing");
        }
        self.core = read;
        actions
    }
}
