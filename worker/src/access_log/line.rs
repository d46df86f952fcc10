//! Renders a line: first what the request's head says, later what is known at its end.
//!
//! Between the two, a [`MARK`] stands in the line for each missing part. Nothing else can be one:
//! all values are escaped, and no format has control characters.

use super::clock::ClockText;
use crate::context::Context;
use http::header::HeaderName;
use http::{Request, Uri, Version};
use prefork_protocol::access_log::{Escape, Format, MAX_LINE, Piece, Variable};
use std::io::Write;

/// Stands for what is not known yet.
const MARK: u8 = 0;
/// The longest value that no client chooses.
const SHORT: usize = 48;
/// What is reserved for each later value, however long one is.
const SHARE: usize = 96;

enum Part {
    Text(Vec<u8>),
    Header(HeaderName),
    Early(Variable),
    Completion,
}

/// A format that is compiled for writing.
pub(super) struct Template {
    parts: Vec<Part>,
    /// The parts that are known at the end, in their order.
    completion: Vec<Variable>,
    escape: Escape,
    /// How many bytes of a line are left for what clients choose, and how many such parts there
    /// are.
    budget: usize,
    long: usize,
    needs_clock: bool,
}

/// What is known at a request's end.
pub(crate) struct Completion {
    /// The status, 0 when there was none.
    pub(crate) status: u16,
    /// Bytes of the body.
    pub(crate) body: u64,
    /// Microseconds.
    pub(crate) took_us: u64,
    /// The connection's number, and its requests.
    pub(crate) connection: u64,
    /// How many requests it has brought.
    pub(crate) requests: u32,
}

impl Template {
    pub(super) fn new(format: &Format, context: Context) -> Self {
        let (mut parts, mut completion, mut long, mut fixed) = (Vec::new(), Vec::new(), 0, 1);
        let mut text = Vec::new();
        for piece in &format.pieces {
            let part = match piece {
                Piece::Text(plain) => {
                    text.extend_from_slice(plain.as_bytes());
                    continue;
                }
                Piece::Variable(variable) => {
                    let known = match variable {
                        Variable::RemoteUser => Some("-".to_owned()),
                        Variable::Pid => Some(std::process::id().to_string()),
                        Variable::Worker => Some(context.worker.to_string()),
                        Variable::Slot => Some(context.slot.to_string()),
                        Variable::Generation => Some(context.generation.to_string()),
                        _ => None,
                    };
                    if let Some(known) = known {
                        text.extend_from_slice(known.as_bytes());
                        continue;
                    }
                    match variable {
                        Variable::TimeLocal
                        | Variable::TimeIso8601
                        | Variable::Msec
                        | Variable::Status
                        | Variable::BodyBytesSent
                        | Variable::RequestTime
                        | Variable::Connection
                        | Variable::ConnectionRequests => {
                            completion.push(*variable);
                            fixed += SHORT;
                            Part::Completion
                        }
                        Variable::RemoteAddr | Variable::RemotePort | Variable::ServerProtocol => {
                            fixed += SHORT;
                            Part::Early(*variable)
                        }
                        _ => {
                            long += 1;
                            Part::Early(*variable)
                        }
                    }
                }
                // The name was checked; one that is none has no value.
                Piece::Header(name) => match HeaderName::from_bytes(name.as_bytes()) {
                    Ok(name) => {
                        long += 1;
                        Part::Header(name)
                    }
                    Err(_) => continue,
                },
            };
            fixed += text.len();
            if !text.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut text)));
            }
            parts.push(part);
        }
        text.push(b'\n');
        fixed += text.len();
        parts.push(Part::Text(text));
        let needs_clock = completion.iter().any(|variable| {
            matches!(
                variable,
                Variable::TimeLocal | Variable::TimeIso8601 | Variable::Msec
            )
        });
        let budget = MAX_LINE.saturating_sub(fixed);
        Self {
            parts,
            completion,
            escape: format.escape,
            budget,
            long,
            needs_clock,
        }
    }

    /// Writes what the head says, with marks for the rest.
    pub(super) fn begin<B>(&self, line: &mut Vec<u8>, request: &Request<B>, peer: &str, port: u16) {
        let mut budget = Budget {
            left: self.budget,
            parts: self.long,
        };
        for part in &self.parts {
            match part {
                Part::Text(text) => line.extend_from_slice(text),
                Part::Completion => line.push(MARK),
                Part::Header(name) => {
                    let value = request.headers().get(name).map(http::HeaderValue::as_bytes);
                    budget.put(line, |line, limit| {
                        self.value(line, value.unwrap_or_default(), limit);
                    });
                }
                Part::Early(Variable::RemoteAddr) => line.extend_from_slice(peer.as_bytes()),
                Part::Early(Variable::RemotePort) => number(line, port.into()),
                Part::Early(Variable::ServerProtocol) => {
                    line.extend_from_slice(protocol(request.version()));
                }
                Part::Early(variable) => budget.put(line, |line, limit| {
                    self.early(line, *variable, request, limit);
                }),
            }
        }
    }

    fn early<B>(&self, line: &mut Vec<u8>, variable: Variable, request: &Request<B>, limit: usize) {
        let uri = request.uri();
        match variable {
            Variable::Request => {
                let end = line.len() + limit.saturating_sub(1 + 1 + 8);
                escape(
                    line,
                    request.method().as_str().as_bytes(),
                    limit.saturating_sub(10),
                    self.escape,
                );
                line.push(b' ');
                let limit = (end + 1).saturating_sub(line.len());
                with_target(uri, |target| escape(line, target, limit, self.escape));
                line.push(b' ');
                line.extend_from_slice(protocol(request.version()));
            }
            Variable::RequestMethod => {
                self.value(line, request.method().as_str().as_bytes(), limit);
            }
            Variable::RequestUri => with_target(uri, |target| self.value(line, target, limit)),
            Variable::Uri => self.value(line, uri.path().as_bytes(), limit),
            Variable::Args => self.value(line, uri.query().unwrap_or_default().as_bytes(), limit),
            Variable::Host => {
                let named = uri.host().map(str::as_bytes);
                let host = request
                    .headers()
                    .get(http::header::HOST)
                    .map(http::HeaderValue::as_bytes);
                self.value(line, named.or(host).unwrap_or_default(), limit);
            }
            // All others are short, or known at the end.
            _ => (),
        }
    }

    fn value(&self, line: &mut Vec<u8>, value: &[u8], limit: usize) {
        if value.is_empty() && self.escape == Escape::Hex {
            line.push(b'-');
        } else {
            escape(line, value, limit, self.escape);
        }
    }

    /// Writes the whole line, now that its end is known.
    pub(super) fn end(
        &self,
        out: &mut Vec<u8>,
        line: &[u8],
        completion: &Completion,
        clock: &mut ClockText,
    ) {
        if self.needs_clock {
            clock.look();
        }
        let mut rest = line;
        for variable in &self.completion {
            let Some(at) = memchr::memchr(MARK, rest) else {
                break;
            };
            out.extend_from_slice(&rest[..at]);
            rest = &rest[at + 1..];
            match variable {
                Variable::TimeLocal => out.extend_from_slice(clock.local()),
                Variable::TimeIso8601 => out.extend_from_slice(clock.iso()),
                Variable::Msec => {
                    let (second, milliseconds) = clock.unix();
                    seconds(out, second, milliseconds);
                }
                // The client left before there was a response: nginx's number for that.
                Variable::Status => number(
                    out,
                    if completion.status == 0 {
                        499
                    } else {
                        completion.status.into()
                    },
                ),
                Variable::BodyBytesSent => number(out, completion.body),
                Variable::RequestTime => {
                    let milliseconds = u32::try_from(completion.took_us / 1000 % 1000).unwrap_or(0);
                    seconds(out, completion.took_us / 1_000_000, milliseconds);
                }
                Variable::Connection => number(out, completion.connection),
                Variable::ConnectionRequests => number(out, completion.requests.into()),
                _ => (),
            }
        }
        out.extend_from_slice(rest);
    }
}

/// The bytes of a line left for values that clients choose: an early one may have much, and each
/// gets a share.
struct Budget {
    left: usize,
    parts: usize,
}

impl Budget {
    fn put(&mut self, line: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>, usize)) {
        self.parts = self.parts.saturating_sub(1);
        let share = self.left / (self.parts + 1);
        let limit = self.left.saturating_sub(SHARE * self.parts).max(share);
        let before = line.len();
        write(line, limit);
        self.left = self.left.saturating_sub(line.len() - before);
    }
}

fn protocol(version: Version) -> &'static [u8] {
    match version {
        Version::HTTP_09 => b"HTTP/0.9",
        Version::HTTP_10 => b"HTTP/1.0",
        Version::HTTP_2 => b"HTTP/2.0",
        _ => b"HTTP/1.1",
    }
}

/// What was asked for: path and query, or the authority of a CONNECT.
fn with_target(uri: &Uri, write: impl FnOnce(&[u8])) {
    let target = uri.path_and_query().map(http::uri::PathAndQuery::as_str);
    let target = target.or(uri.authority().map(http::uri::Authority::as_str));
    write(target.unwrap_or("-").as_bytes());
}

/// A target for a line of the log.
pub(crate) fn escaped_uri(line: &mut Vec<u8>, uri: &Uri, limit: usize) {
    with_target(uri, |target| escape(line, target, limit, Escape::Hex));
}

/// Appends what fits into `limit` bytes, no escape cut in two.
fn escape(line: &mut Vec<u8>, value: &[u8], limit: usize, how: Escape) {
    let plain = |byte: u8| (b' '..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
    if value.len() <= limit && value.iter().all(|byte| plain(*byte)) {
        line.extend_from_slice(value);
        return;
    }
    let end = line.len() + limit;
    match how {
        Escape::Hex => {
            for &byte in value {
                let length = if plain(byte) { 1 } else { 4 };
                if line.len() + length > end {
                    return;
                }
                if plain(byte) {
                    line.push(byte);
                } else {
                    let _ = write!(line, "\\x{byte:02X}");
                }
            }
        }
        Escape::Json => {
            for chunk in value.utf8_chunks() {
                for c in chunk.valid().chars() {
                    let mut bytes = [0; 4];
                    let before = line.len();
                    match c {
                        '"' | '\\' => line.extend_from_slice(&[b'\\', c as u8]),
                        c if c.is_control() => drop(write!(line, "\\u{:04x}", u32::from(c))),
                        c => line.extend_from_slice(c.encode_utf8(&mut bytes).as_bytes()),
                    }
                    if line.len() > end {
                        return line.truncate(before);
                    }
                }
                for byte in chunk.invalid() {
                    let before = line.len();
                    let _ = write!(line, "\\u{byte:04x}");
                    if line.len() > end {
                        return line.truncate(before);
                    }
                }
            }
        }
    }
}

fn number(line: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return line.extend_from_slice(&digits[at..]);
        }
    }
}

fn seconds(line: &mut Vec<u8>, whole: u64, milliseconds: u32) {
    number(line, whole);
    let digit = |place: u32| b'0' + (milliseconds / place % 10) as u8;
    line.extend_from_slice(&[b'.', digit(100), digit(10), digit(1)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use prefork_protocol::{GenerationId, Slot, WorkerId};

    fn render(format: &str, request: &Request<()>) -> String {
        let context = Context {
            slot: Slot(2),
            generation: GenerationId(3),
            worker: WorkerId(7),
            workers: 8,
        };
        let template = Template::new(&format.parse().expect(format), context);
        let (mut first, mut whole) = (Vec::new(), Vec::new());
        template.begin(&mut first, request, "192.0.2.1", 4711);
        let completion = Completion {
            status: 200,
            body: 12,
            took_us: 1_023_400,
            connection: 5,
            requests: 6,
        };
        template.end(&mut whole, &first, &completion, &mut ClockText::default());
        String::from_utf8(whole).expect("text")
    }

    fn request(uri: &str, agent: &[u8]) -> Request<()> {
        let agent = http::HeaderValue::from_bytes(agent).expect("a value");
        Request::get(uri)
            .header("user-agent", agent)
            .body(())
            .expect("a request")
    }

    #[test]
    fn a_line_tells_what_its_format_asks_for() {
        let request = request("/a?b=c", b"test");
        let line = render(
            "$remote_addr:$remote_port \"$request\" $uri $args $status $body_bytes_sent $request_time \
             $connection/$connection_requests $worker $slot $generation \
             $http_user_agent $http_x $remote_user",
            &request,
        );
        assert_eq!(
            line,
            "192.0.2.1:4711 \"GET /a?b=c HTTP/1.1\" /a b=c 200 12 1.023 5/6 7 2 3 test - -\n"
        );
    }

    #[test]
    fn nothing_that_a_client_sends_makes_a_second_line_or_ends_a_quotation() {
        let request = request("/\"q", b"a\"b\\c\td\xff\xc3\xa4");
        let line = render("\"$request_uri\" \"$http_user_agent\"", &request);
        assert_eq!(line, "\"/\\x22q\" \"a\\x22b\\x5Cc\\x09d\\xFF\\xC3\\xA4\"\n");
        let line = render(
            "escape=json {\"u\":\"$request_uri\",\"a\":\"$http_user_agent\"}",
            &request,
        );
        assert_eq!(
            line,
            "{\"u\":\"/\\\"q\",\"a\":\"a\\\"b\\\\c\\u0009d\\u00ffä\"}\n"
        );
    }

    #[test]
    fn a_line_is_never_longer_than_a_pipe_takes_at_once() {
        let long = "x".repeat(8000);
        for agent in [b"\"".repeat(8000), b"y".repeat(8000), b"z".to_vec()] {
            for format in ["combined", "json", "$request $http_user_agent $uri $args"] {
                let line = render(format, &request(&format!("/{long}"), &agent));
                assert!(
                    line.len() <= MAX_LINE && line.ends_with('\n'),
                    "{format}: {}",
                    line.len()
                );
                assert!(line.len() > MAX_LINE / 2, "{format}: {}", line.len());
                assert!(format != "json" || line.ends_with("}\n"));
            }
        }
    }
}
