//! Our own standard error, written without waiting for its reader.

use crate::logging::bounded::{BoundedWriter, MAX_BACKLOG};
use std::io;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

static WRITER: Mutex<BoundedWriter> = Mutex::new(BoundedWriter::stderr());

/// Returns the writer of this process.
pub(crate) fn stderr_writer() -> MutexGuard<'static, BoundedWriter> {
    WRITER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sink of the supervisor's log. A line is written, queued or dropped; it never blocks.
#[derive(Debug)]
pub(crate) struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        stderr_writer().queue(line, MAX_BACKLOG);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
