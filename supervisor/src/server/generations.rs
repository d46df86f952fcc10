//! The generations that the server holds: the one that serves, and around a reload one more.

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
}

impl Generations {
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
