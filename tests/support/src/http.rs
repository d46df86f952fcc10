//! Just enough HTTP/1.1 to ask a server and to judge its answer.

use crate::Address;
use crate::address::Stream;
use std::borrow::Cow;
use std::io::{self, ErrorKind, Write};

/// What the bytes read so far are.
#[derive(Debug)]
pub enum Parsed<'a> {
    /// Not yet a whole response.
    Incomplete,
    /// No response at all; why.
    Bad(&'static str),
    /// A whole response.
    Complete(Head<'a>),
}

/// A whole response, borrowed from the bytes that it was read from.
#[derive(Debug)]
pub struct Head<'a> {
    /// The status code.
    pub status: u16,
    /// Everything between the status line and the empty line.
    pub headers: &'a str,
    /// The body, with chunks joined.
    pub body: Cow<'a, [u8]>,
    /// Whether the server announced that it closes.
    pub close: bool,
    /// How many bytes the response took.
    pub used: usize,
}

impl<'a> Head<'a> {
    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        find(self.headers, name)
    }
}

fn find<'a>(headers: &'a str, name: &str) -> Option<&'a str> {
    headers
        .split("\r\n")
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

/// Judges the bytes of a response. `eof` tells that no more will come, which ends a body without a
/// length.
pub fn parse(bytes: &[u8], eof: bool) -> Parsed<'_> {
    let enough = bytes.len().min(7);
    if bytes[..enough] != b"HTTP/1."[..enough] {
        return Parsed::Bad("no HTTP/1 status line");
    }
    let Some(end) = position(bytes, b"\r\n\r\n") else {
        return Parsed::Incomplete;
    };
    let Ok(head) = std::str::from_utf8(&bytes[..end]) else {
        return Parsed::Bad("head is not UTF-8");
    };
    let (line, headers) = head.split_once("\r\n").unwrap_or((head, ""));
    let mut words = line.splitn(3, ' ');
    let old = words.next() == Some("HTTP/1.0");
    let Some(status) = words.next().and_then(|word| word.parse().ok()) else {
        return Parsed::Bad("no status code");
    };
    let said = find(headers, "connection").unwrap_or("");
    let close =
        said.eq_ignore_ascii_case("close") || (old && !said.eq_ignore_ascii_case("keep-alive"));
    let start = end + 4;
    let rest = &bytes[start..];
    let (body, length) = if let Some(length) = find(headers, "content-length") {
        let Ok(length) = length.parse::<usize>() else {
            return Parsed::Bad("Content-Length is no number");
        };
        if rest.len() < length {
            return Parsed::Incomplete;
        }
        (Cow::Borrowed(&rest[..length]), length)
    } else if find(headers, "transfer-encoding")
        .is_some_and(|how| how.eq_ignore_ascii_case("chunked"))
    {
        match chunks(rest) {
            Ok(Some((body, length))) => (Cow::Owned(body), length),
            Ok(None) => return Parsed::Incomplete,
            Err(why) => return Parsed::Bad(why),
        }
    } else if matches!(status, 100..=199 | 204 | 304) {
        (Cow::Borrowed(&rest[..0]), 0)
    } else if eof {
        (Cow::Borrowed(rest), rest.len())
    } else {
        return Parsed::Incomplete;
    };
    Parsed::Complete(Head {
        status,
        headers,
        body,
        close,
        used: start + length,
    })
}

/// The joined chunks and how many bytes they took, or `None` when some are missing.
fn chunks(mut rest: &[u8]) -> Result<Option<(Vec<u8>, usize)>, &'static str> {
    let whole = rest.len();
    let mut body = Vec::new();
    loop {
        let Some(end) = position(rest, b"\r\n") else {
            return Ok(None);
        };
        let size = std::str::from_utf8(&rest[..end])
            .ok()
            .and_then(|text| text.split(';').next());
        let size = size.and_then(|text| usize::from_str_radix(text.trim(), 16).ok());
        let size = size.ok_or("chunk size is no number")?;
        rest = &rest[end + 2..];
        // No trailers: none of the servers under test sends any.
        if rest.len() < size + 2 {
            return Ok(None);
        }
        if &rest[size..size + 2] != b"\r\n" {
            return Err("chunk does not end where it should");
        }
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
        if size == 0 {
            return Ok(Some((body, whole - rest.len())));
        }
    }
}

/// A whole response.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names and values, in their order.
    pub headers: Vec<(String, String)>,
    /// The body, as text.
    pub body: String,
    /// Whether the server announced that it closes.
    pub close: bool,
}

impl Response {
    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// A header that is a number.
    ///
    /// # Panics
    /// When there is none, or when it is no number.
    #[track_caller]
    pub fn number(&self, name: &str) -> u64 {
        let value = self
            .header(name)
            .unwrap_or_else(|| panic!("no header {name} in {self:?}"));
        value
            .parse()
            .unwrap_or_else(|_| panic!("header {name}: `{value}` is no number"))
    }
}

/// A connection on which several requests can be made, one after the other.
pub struct Client {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut client = formatter.debug_struct("Client");
        client.field("buffered", &self.buffer.len());
        client.finish_non_exhaustive()
    }
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn connect(address: &Address) -> io::Result<Self> {
        Ok(Self {
            stream: address.connect()?,
            buffer: Vec::new(),
        })
    }

    /// Gives up reading after `limit` instead of ten seconds.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn patience(&self, limit: std::time::Duration) -> io::Result<()> {
        self.stream.set_limit(limit)
    }

    /// Asks for `path` and waits for the whole response. The connection stays open if the server
    /// agrees.
    ///
    /// # Errors
    /// Those of the connection; `UnexpectedEof` when the server closes first; `InvalidData` for
    /// what is no HTTP.
    pub fn get(&mut self, path: &str) -> io::Result<Response> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes())?;
        self.receive()
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Waits for a whole response.
    ///
    /// # Errors
    /// As for [`Client::get`].
    pub fn receive(&mut self) -> io::Result<Response> {
        let mut eof = false;
        loop {
            match parse(&self.buffer, eof) {
                Parsed::Complete(head) => {
                    let headers = head
                        .headers
                        .split("\r\n")
                        .filter_map(|line| line.split_once(':'));
                    let response = Response {
                        status: head.status,
                        headers: headers
                            .map(|(k, v)| (k.to_owned(), v.trim().to_owned()))
                            .collect(),
                        body: String::from_utf8_lossy(&head.body).into_owned(),
                        close: head.close,
                    };
                    let used = head.used;
                    self.buffer.drain(..used);
                    return Ok(response);
                }
                Parsed::Bad(why) => return Err(io::Error::new(ErrorKind::InvalidData, why)),
                Parsed::Incomplete if eof => return Err(ErrorKind::UnexpectedEof.into()),
                Parsed::Incomplete => {}
            }
            let mut bytes = [0; 16 * 1024];
            let length = self.stream.read(&mut bytes)?;
            eof = length == 0;
            self.buffer.extend_from_slice(&bytes[..length]);
        }
    }

    /// Whether the server closes now without another byte.
    ///
    /// # Errors
    /// Those of the connection, such as a reset.
    pub fn at_end(&mut self) -> io::Result<bool> {
        Ok(self.buffer.is_empty() && self.stream.read(&mut [0])? == 0)
    }
}

/// Asks for `path` on a new connection.
///
/// # Errors
/// As for [`Client::get`].
pub fn get(address: &Address, path: &str) -> io::Result<Response> {
    raw(
        address,
        format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").as_bytes(),
    )
}

/// Sends `request` as it is on a new connection and waits for one response.
///
/// # Errors
/// As for [`Client::get`].
pub fn raw(address: &Address, request: &[u8]) -> io::Result<Response> {
    let mut client = Client::connect(address)?;
    client.send(request)?;
    client.receive()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(bytes: &[u8], eof: bool) -> Option<String> {
        match parse(bytes, eof) {
            Parsed::Complete(head) => Some(String::from_utf8_lossy(&head.body).into_owned()),
            Parsed::Incomplete | Parsed::Bad(_) => None,
        }
    }

    #[test]
    fn every_prefix_of_a_response_is_incomplete() {
        for whole in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n",
        ] {
            for length in 0..whole.len() {
                assert!(
                    matches!(parse(&whole[..length], false), Parsed::Incomplete),
                    "{length} bytes"
                );
            }
            assert_eq!(body(whole, false).as_deref(), Some("hi"));
        }
    }

    #[test]
    fn a_body_without_a_length_ends_with_the_connection() {
        let bytes = b"HTTP/1.0 200 OK\r\n\r\nhi";
        assert_eq!(body(bytes, false), None);
        assert_eq!(body(bytes, true).as_deref(), Some("hi"));
    }

    #[test]
    fn an_announced_close_is_seen() {
        let close = |bytes| {
            matches!(
                parse(bytes, true),
                Parsed::Complete(Head { close: true, .. })
            )
        };
        assert!(close(
            b"HTTP/1.1 200 OK\r\nconnection: Close\r\ncontent-length: 0\r\n\r\n"
        ));
        assert!(close(b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n"));
        assert!(!close(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
        assert!(matches!(parse(b"SSH-2.0", false), Parsed::Bad(_)));
    }
}
