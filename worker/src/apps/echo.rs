//! `echo`: sends back what it gets, over TCP or Unix sockets.

use crate::raw::{RawService, Stream};
use crate::service::Service;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(super) fn service() -> Service {
    Service::raw(|_| std::future::ready(Ok(Echo)))
}

struct Echo;

impl RawService for Echo {
    async fn serve(&self, mut stream: Stream) -> io::Result<()> {
        let mut buffer = vec![0; 16 * 1024];
        let mut draining = false;
        loop {
            let read = if draining {
                // A conversation goes on; only a silent client is left.
                match tokio::time::timeout(stream.drain_idle(), stream.read(&mut buffer)).await {
                    Ok(read) => read?,
                    Err(_) => break,
                }
            } else {
                let signal = stream.signal();
                tokio::select! {
                    biased;
                    read = stream.read(&mut buffer) => read?,
                    () = signal.draining() => {
                        draining = true;
                        continue;
                    }
                }
            };
            if read == 0 {
                break;
            }
            stream.write_all(&buffer[..read]).await?;
        }
        stream.finish().await;
        Ok(())
    }
}
