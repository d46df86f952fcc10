//! Which slots an address is steered to.
//!
//! The core decides on a rotation of slots. It holds for every address that all generations serve,
//! which is nearly always every address. While a reload adds or removes an address, only some slots
//! have a worker that serves it. Once the accepted generation does not name it and its last workers
//! leave, it is blackholed: new connections would wait in vain.

use super::Generation;
use crate::listen::{AddressId, SteerError};
use prefork_core::{WorkerState, WorkerView};
use prefork_protocol::{GenerationId, Slot};
use std::collections::BTreeMap;

/// Steers every address of every generation.
///
/// # Errors
/// The first address that could not be steered; the others are.
pub(crate) fn steer(
    generations: &BTreeMap<GenerationId, Generation>,
    accepted: GenerationId,
    rotation: &[Slot],
    workers: &[WorkerView],
) -> Result<(), SteerError> {
    let names =
        |generation: &Generation, address| generation.sockets.addresses().any(|own| own == address);
    let mut result = Ok(());
    let mut done: Vec<AddressId> = Vec::new();
    // Where generations share an address, the one with the most slots decides.
    let mut descending: Vec<&Generation> = generations.values().collect();
    descending.sort_by_key(|generation| std::cmp::Reverse(generation.opened));
    for generation in descending {
        for address in generation.sockets.addresses() {
            if done.contains(&address) {
                continue;
            }
            done.push(address);
            let serves = |id| {
                generations
                    .get(&id)
                    .is_some_and(|other| names(other, address))
            };
            let slots = if generations.values().all(|other| names(other, address)) {
                Some(rotation.to_vec())
            } else {
                match served(workers, serves) {
                    slots if !slots.is_empty() => Some(slots),
                    // Its first workers are still starting.
                    _ if serves(accepted) => continue,
                    _ => None,
                }
            };
            let queues = slots.map(|slots| generation.queues(&slots));
            if let Err(error) = generation.sockets.steer_address(address, queues.as_deref()) {
                result = result.and(Err(error));
            }
        }
    }
    result
}

/// Returns the slots with a ready worker of a generation that `serves`.
fn served(workers: &[WorkerView], serves: impl Fn(GenerationId) -> bool) -> Vec<Slot> {
    let ready = workers
        .iter()
        .filter(|worker| worker.state == WorkerState::Ready && serves(worker.generation));
    let mut slots: Vec<Slot> = ready.map(|worker| worker.slot).collect();
    slots.sort_unstable();
    slots.dedup();
    slots
}
