//! `greeter`: the teaching server. Reads once, logs what it got, greets, closes.

use crate::raw::{RawService, Stream};
use crate::service::Service;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How much of what the client says is read.
const LISTEN: usize = 1024;

pub(super) fn service() -> Service {
    Service::raw(|_| std::future::ready(Ok(Greeter)))
}

struct Greeter;

impl RawService for Greeter {
    async fn serve(&self, mut stream: Stream) -> io::Result<()> {
        let mut buffer = [0; LISTEN];
        let length = stream.read(&mut buffer).await?;
        // Escaped, so that a client cannot write lines of its own into the log.
        log::info!(
            "Received data: {}",
            String::from_utf8_lossy(&buffer[..length]).escape_debug()
        );
        stream.write_all(b"Hello, client!").await?;
        stream.finish().await;
        Ok(())
    }
}
