//! The access log: a line for each request that a service was asked to answer.
//!
//! A serving thread renders a line in two steps, at the request's head and at its end ([`line`]),
//! into a buffer of its own. Full buffers, and every buffer at each heartbeat, go to the writer's
//! thread ([`writer`]), so that no request waits for a disk or for the reader of a pipe.
//!
//! *Invariant*: the writer receives whole lines, each at most
//! [`MAX_LINE`](prefork_protocol::access_log::MAX_LINE) bytes.

mod clock;
mod line;
mod writer;

pub(crate) use clock::ClockText;
pub(crate) use line::{Completion, escaped_uri};

use crate::context::Context;
use http::Request;
use line::Template;
use prefork_protocol::access_log::Format;
use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use writer::Writer;

/// A buffer of this many bytes is passed on.
const FULL: usize = 32 * 1024;

/// The worker's access log, shared by its threads.
pub(crate) struct AccessLog {
    template: Template,
    /// One for each serving thread, nearly never contended.
    buffers: Vec<Mutex<Vec<u8>>>,
    writer: Writer,
}

impl AccessLog {
    /// Starts the writer's thread.
    pub(crate) fn start(
        descriptor: OwnedFd,
        format: &Format,
        context: Context,
        threads: usize,
    ) -> std::io::Result<Self> {
        Ok(Self {
            template: Template::new(format, context),
            buffers: (0..threads).map(|_| Mutex::default()).collect(),
            writer: Writer::start(descriptor)?,
        })
    }

    /// Writes to another file from now on.
    pub(crate) fn reopen(&self, descriptor: OwnedFd) {
        self.writer.reopen(descriptor);
    }

    /// Passes a thread's buffer on.
    pub(crate) fn flush(&self, thread: usize) {
        if let Some(buffer) = self.buffers.get(thread) {
            let mut buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
            self.writer.push(std::mem::take(&mut *buffer));
        }
    }

    /// Writes everything, for at most `limit`. Nothing is written after that.
    pub(crate) fn finish(&self, limit: Duration) {
        (0..self.buffers.len()).for_each(|thread| self.flush(thread));
        self.writer.finish(limit);
    }

    /// Renders the first part of a request's line.
    pub(crate) fn begin<B>(&self, line: &mut Vec<u8>, request: &Request<B>, peer: &str, port: u16) {
        self.template.begin(line, request, peer, port);
    }

    /// Completes a request's line.
    pub(crate) fn end(
        &self,
        thread: usize,
        line: &[u8],
        completion: &Completion,
        clock: &RefCell<ClockText>,
    ) {
        let Some(buffer) = self.buffers.get(thread) else {
            return;
        };
        let mut buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.capacity() == 0 {
            buffer.reserve(FULL + prefork_protocol::access_log::MAX_LINE);
        }
        self.template
            .end(&mut buffer, line, completion, &mut clock.borrow_mut());
        if buffer.len() >= FULL {
            self.writer.push(std::mem::take(&mut *buffer));
        }
    }
}
