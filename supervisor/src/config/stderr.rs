//! Where workers' standard error goes.

use super::reader::Word;

/// Where a worker's standard error goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerStderr {
    /// Through the supervisor, which passes on whole lines and remembers the last ones.
    Capture,
    /// Straight to the supervisor's own.
    Inherit,
}

impl WorkerStderr {
    /// The word for it, as on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Inherit => "inherit",
        }
    }
}

impl Word for WorkerStderr {
    const LIKE: &'static str = "\"capture\"";

    fn read(text: &str) -> Result<Self, String> {
        [Self::Capture, Self::Inherit]
            .into_iter()
            .find(|way| way.as_str() == text)
            .ok_or_else(|| {
                format!("`{text}` is no way for standard error (choose capture or inherit)")
            })
    }
}
