//! A worker process, from its launch to its exit: the sockets that it inherits, its handle, its
//! control group, why it exited, and what it left running. *When* a worker starts or stops is
//! decided by the core (`prefork-core`).

pub(crate) mod cgroup;
pub(crate) mod exits;
pub(crate) mod handle;
pub(crate) mod launch;
pub(crate) mod leftovers;
mod placeholders;
pub(crate) mod proc_stat;
pub(crate) mod process_tree;
pub(crate) mod sockets;
