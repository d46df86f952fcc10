//! The generations that the server holds: the one that serves, and around a reload one more.

use crate::config::Config;
use crate::generation::Generation;
use crate::generation::loader::Loader;
use crate::listen::Listeners;
use prefork_core::GenerationId;
use std::collections::BTreeMap;

/// The generations, what they are loaded by, and the sockets that they share.
#[derive(Debug)]
pub(crate) struct Generations {
    pub(crate) loader: Loader,
    pub(crate) listeners: Listeners,
    pub(crate) held: BTreeMap<GenerationId, Generation>,
    /// The one that serves.
    pub(crate) accepted: GenerationId,
    /// The values that hold of the options that a reload cannot change.
    pub(crate) read_at_start: BTreeMap<String, String>,
}

impl Generations {
    /// Returns a warning for each option that a configuration changes in vain.
    pub(crate) fn changed_in_vain(&self, config: &Config) -> Vec<String> {
        let changed = config.read_at_start().into_iter().filter(|(name, value)| {
            let now = self.read_at_start.get(name);
            now.is_some_and(|now| now != value)
        });
        changed
            .map(|(name, _)| {
                format!(
                    "{name}: the change has no effect before the next start (restart the server)"
                )
            })
            .collect()
    }

    /// Returns the server's own name.
    pub(crate) fn instance(&self) -> Option<&str> {
        let name = self.read_at_start.get("name")?.trim_matches('"');
        (!name.is_empty()).then_some(name)
    }

    /// Returns the generation that serves.
    pub(crate) fn accepted(&self) -> Option<&Generation> {
        self.held.get(&self.accepted)
    }

    /// Returns a generation, if it is still held.
    pub(crate) fn get(&self, id: GenerationId) -> Option<&Generation> {
        self.held.get(&id)
    }

    /// Returns all of them, the oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (GenerationId, &Generation)> {
        self.held.iter().map(|(id, generation)| (*id, generation))
    }
}
