//! Signals of this process: counted by handlers, or ignored.

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigHandler, Signal};
use signal_hook::SigId;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The code of a signal that the kernel sends by itself.
const SI_KERNEL: i32 = 0x80;

/// Ignores a signal from now on.
///
/// # Errors
/// Those of sigaction(2).
pub fn ignore(signal: Signal) -> Result<(), Errno> {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { nix::sys::signal::signal(signal, SigHandler::SigIgn) }.map(drop)
}

/// Signals that are counted as long as this lives. Afterwards they are swallowed, not back to
/// default.
#[derive(Debug)]
pub struct Counted {
    signals: Vec<Signal>,
    shared: Arc<Shared>,
    registered: Vec<SigId>,
}

#[derive(Debug)]
struct Shared {
    /// How often each of the signals came since the last `take`.
    counts: Box<[AtomicU32]>,
    wake: EventFd,
}

impl Shared {
    /// Counts a signal in its handler: async-signal-safe, and errno stays as the interrupted code
    /// left it.
    fn came(&self, index: usize) {
        let errno = Errno::last_raw();
        if let Some(count) = self.counts.get(index) {
            count.fetch_add(1, Ordering::SeqCst);
        }
        // It fails only when the loop has 2^64 wake-ups to read.
        let _ = self.wake.write(1);
        Errno::set_raw(errno);
    }
}

impl Counted {
    /// Installs handlers for signals, also where the process was started with some of them ignored.
    /// Whether signals are blocked is left as it is. Those `from_processes` are not counted when the
    /// kernel sends them by itself, as it does to all processes of a terminal's job.
    ///
    /// # Errors
    /// Those of eventfd(2) and sigaction(2).
    pub fn install(signals: &[Signal], from_processes: &[Signal]) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            counts: signals.iter().map(|_| AtomicU32::new(0)).collect(),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        });
        let mut this = Self {
            signals: signals.to_vec(),
            shared,
            registered: Vec::new(),
        };
        for (index, signal) in signals.iter().enumerate() {
            let shared = Arc::clone(&this.shared);
            let from_process = from_processes.contains(signal);
            let came = move |about: &libc::siginfo_t| {
                if !from_process || about.si_code != SI_KERNEL {
                    shared.came(index);
                }
            };
            // SAFETY: `came` is async-signal-safe: atomics, one write(2), errno restored, no
            // allocation, no panic. The last reference is dropped by an unregister, never in the
            // handler.
            let id = unsafe { signal_hook_registry::register_sigaction(*signal as i32, came) }?;
            this.registered.push(id);
        }
        Ok(this)
    }

    /// Returns how often each of the signals came since the last call, in the order in which they
    /// were given. The kernel itself merges what comes while one is pending.
    pub fn take(&self) -> Vec<(Signal, u32)> {
        // First the wake-up, then the counts: a signal in between costs an empty call, and is not
        // lost.
        let _ = self.shared.wake.read();
        let counts = self.shared.counts.iter();
        let counts = counts.map(|count| count.swap(0, Ordering::SeqCst));
        self.signals.iter().copied().zip(counts).collect()
    }
}

impl AsFd for Counted {
    /// Readable when [`take`](Self::take) has something to return.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}
