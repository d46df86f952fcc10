//! Where a server listens: `HOST:PORT`, `[v6]:PORT` or `unix:/path`.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// An address to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// TCP over IPv4 or IPv6.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let mut found = text
            .to_socket_addrs()
            .map_err(|error| format!("address `{text}`: {error}"))?;
        found
            .next()
            .map(Self::Tcp)
            .ok_or_else(|| format!("address `{text}`: the name has no address"))
    }
}

/// A connected stream, blocking.
pub trait Stream: Read + Write + Send {
    /// Gives up reading after `limit`.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    fn set_limit(&self, limit: Duration) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn set_limit(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))
    }
}

impl Stream for UnixStream {
    fn set_limit(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))
    }
}

impl Address {
    /// Connects; reads give up after ten seconds unless told otherwise.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let stream: Box<dyn Stream> = match self {
            Self::Tcp(address) => Box::new(TcpStream::connect_timeout(
                address,
                Duration::from_secs(10),
            )?),
            Self::Unix(path) => Box::new(UnixStream::connect(path)?),
        };
        stream.set_limit(Duration::from_secs(10))?;
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_they_are_written() {
        for text in ["127.0.0.1:80", "[::1]:8000", "unix:/run/x.sock"] {
            assert_eq!(
                text.parse::<Address>().expect("an address").to_string(),
                text
            );
        }
        assert!("nonsense".parse::<Address>().is_err());
    }
}
