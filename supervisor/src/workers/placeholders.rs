//! What differs from worker to worker in a program's arguments and variables: `{worker}`, `{slot}`,
//! `{generation}` and `{port}`.

use std::cell::OnceCell;
use std::io;
use std::net::{Ipv4Addr, TcpListener};

/// What is filled in for one worker.
#[derive(Debug)]
pub(crate) struct Placeholders {
    values: [(&'static str, String); 3],
    /// Chosen when it is first asked for, and the same wherever the worker asks.
    port: OnceCell<u16>,
}

impl Placeholders {
    /// Those of a worker.
    pub(crate) fn new(worker: u64, slot: u16, generation: u32) -> Self {
        Self {
            values: [
                ("{worker}", worker.to_string()),
                ("{slot}", slot.to_string()),
                ("{generation}", generation.to_string()),
            ],
            port: OnceCell::new(),
        }
    }

    /// Fills them in. Everything else stays, and so does what has double braces, which lose one
    /// pair.
    ///
    /// # Errors
    /// When no port is free.
    pub(crate) fn fill(&self, text: &[u8]) -> io::Result<Vec<u8>> {
        let mut filled = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(byte) = rest.first() {
            if let Some(name) = self.literal_at(rest) {
                filled.extend_from_slice(name.as_bytes());
                rest = &rest[name.len() + 2..];
            } else if let Some(name) = self.name_at(rest) {
                filled.extend_from_slice(self.value(name)?.as_bytes());
                rest = &rest[name.len()..];
            } else {
                filled.push(*byte);
                rest = &rest[1..];
            }
        }
        Ok(filled)
    }

    fn name_at(&self, text: &[u8]) -> Option<&'static str> {
        let names = self.values.iter().map(|(name, _)| *name);
        let mut names = names.chain([PORT]);
        names.find(|name| text.starts_with(name.as_bytes()))
    }

    /// Returns the placeholder that is meant as it stands: `{slot}` for `{{slot}}`.
    fn literal_at(&self, text: &[u8]) -> Option<&'static str> {
        let name = self.name_at(text.strip_prefix(b"{")?)?;
        (text.get(name.len() + 1) == Some(&b'}')).then_some(name)
    }

    fn value(&self, name: &str) -> io::Result<String> {
        if let Some((_, value)) = self.values.iter().find(|(known, _)| *known == name) {
            return Ok(value.clone());
        }
        if let Some(port) = self.port.get() {
            return Ok(port.to_string());
        }
        let port = free_port()?;
        Ok(self.port.get_or_init(|| port).to_string())
    }
}

const PORT: &str = "{port}";

/// Returns a TCP port that nothing has now. The kernel does not give the same one soon again.
fn free_port() -> io::Result<u16> {
    let socket = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    Ok(socket.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_in_and_everything_else_stays() {
        let of = Placeholders::new(17, 3, 2);
        let fill = |text: &str| {
            let filled = of.fill(text.as_bytes()).expect("a port");
            String::from_utf8(filled).expect("text")
        };
        for (text, filled) in [
            ("--id={worker}", "--id=17"),
            ("{slot}{generation}", "32"),
            ("{{slot}} {{worker}}", "{slot} {worker}"),
            (
                "{slots} {Slot} {} { slot} {print $1}",
                "{slots} {Slot} {} { slot} {print $1}",
            ),
            ("{{slot} {slot}}", "{3 3}"),
            ("größe {slot}", "größe 3"),
            ("", ""),
        ] {
            assert_eq!(fill(text), filled, "{text}");
        }
        assert!(fill("{port}").parse::<u16>().is_ok_and(|port| port > 0));
        assert_eq!(fill("{port}"), fill("{port}"), "one port for one worker");
        let other = Placeholders::new(18, 3, 2).fill(b"{port}").expect("a port");
        assert_ne!(fill("{port}").into_bytes(), other);
    }
}
