//! A worker process, from its launch to its exit: what is held of it, who its siblings are, its control group, what it
//! died of, and what it left running. *When* a worker starts or stops is decided by the core (`prefork-core`).

pub(crate) mod cgroup;
pub(crate) mod exits;
pub(crate) mod handle;
pub(crate) mod launch;
pub(crate) mod leftovers;
pub(crate) mod proc_stat;
pub(crate) mod sockets;
