//! A request being served: [`RequestGuard`], which counts, times and logs it.
//!
//! It knows neither who answers the request ([`crate::answer`], [`crate::raw`]) nor how its bytes
//! travel.

use crate::access_log::Completion;
use crate::clock::{now_ms, now_us};
use crate::connection::Connection;
use crate::serving_thread::{LogRecord, ServingThread};
use http::Request;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// A request being served. Dropping it ends the request, however that comes about.
pub(crate) struct RequestGuard {
    pub(crate) thread: Rc<ServingThread>,
    pub(crate) connection: Arc<Connection>,
    /// The status of the response; 0 until there is one.
    pub(crate) status: u16,
    /// Bytes of the response's body sent so far.
    pub(crate) sent: u64,
    ticket: usize,
    /// When the request began, by [`now_us`].
    began: u64,
    /// What the logs record of the request.
    log_record: Option<LogRecord>,
    /// The permit to run a handler, in classes that run one at a time.
    permit: Option<OwnedSemaphorePermit>,
}

impl RequestGuard {
    /// Begins a request: its head is complete.
    pub(crate) fn begin(thread: Rc<ServingThread>, connection: Arc<Connection>) -> Self {
        let began = now_us();
        connection.state().begin();
        let ticket = thread.request_begun(&connection, began / 1000);
        Self {
            thread,
            connection,
            status: 0,
            sent: 0,
            ticket,
            began,
            log_record: None,
            permit: None,
        }
    }

    /// Records what the logs need of the request, before the handler consumes it.
    pub(crate) fn start_log_record<B>(&mut self, request: &Request<B>) {
        self.log_record = self.thread.start_log_record(&self.connection, request);
    }

    /// Waits until the thread may run one more handler.
    pub(crate) async fn acquire_handler(&mut self) {
        if let Some(permits) = &self.thread.handler_permits {
            self.permit = permits.clone().acquire_owned().await.ok();
        }
    }

    /// Notes that the handler begins.
    pub(crate) fn handler_begins(&self) {
        // It begins with the request, unless it had to wait for its permit.
        let began = if self.permit.is_some() {
            now_ms()
        } else {
            self.began / 1000
        };
        self.thread.set_handler_start(self.ticket, Some(began));
    }

    /// Notes that the handler has ended.
    pub(crate) fn handler_ended(&self) {
        self.thread.set_handler_start(self.ticket, None);
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let now = now_us();
        let mut state = self.connection.state();
        state.end(now / 1000);
        let requests = state.requests;
        drop(state);
        let took_us = now.saturating_sub(self.began);
        self.thread
            .request_ended(self.ticket, took_us, self.status >= 500);
        if let Some(record) = self.log_record.take() {
            let completion = Completion {
                status: self.status,
                body: self.sent,
                took_us,
                connection: self.connection.serial(),
                requests,
            };
            self.thread
                .log_request(&self.connection, record, &completion);
        }
    }
}
