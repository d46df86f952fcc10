//! Processes of the server's own, each for one thing that the loop must not wait for: the readiness probe, the memory
//! sampler, and hooks. The admin child has a folder of its own, [`admin`](crate::admin).

pub(crate) mod hooks;
pub(crate) mod memory_sampler;
pub(crate) mod readiness_probe;
pub(crate) mod terminating;
