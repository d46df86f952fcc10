//! Where to listen: the syntax of `--bind`.

use super::reader::{ConfigValue, InvalidValue, invalid};
use super::toml_text::quoted;
use super::values::socket_path;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

/// An address to listen on, as `--bind` writes it. [`Display`](fmt::Display) writes what
/// [`FromStr`] reads.
///
/// ```
/// use prefork_supervisor::internals::Bind;
/// let bind: Bind = "[::1]:8000".parse()?;
/// assert_eq!(bind, Bind::Tcp { host: "::1".to_owned(), port: 8000 });
/// assert_eq!(bind.to_string(), "[::1]:8000");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bind {
    /// `HOST:PORT`.
    Tcp {
        /// An IPv4 address, an IPv6 address without brackets (perhaps with `%zone`), or a name to
        /// be looked up.
        host: String,
        /// The port; 0 lets the kernel choose one.
        port: u16,
    },
    /// `unix:/path[,mode=0660][,owner=USER][,group=GROUP]`.
    Unix {
        /// The socket's absolute path.
        path: PathBuf,
        /// Its permission bits; the umask decides when there are none.
        mode: Option<u32>,
        /// Its owner, by name or number.
        owner: Option<String>,
        /// Its group, by name or number.
        group: Option<String>,
    },
    /// `fd://N`: an inherited listening socket, by its number.
    Fd(RawFd),
    /// `fd://NAME`: the inherited listening sockets of that name in `LISTEN_FDNAMES`. There may be
    /// several.
    Inherited(String),
    /// Any of these with `,name=NAME`: what workers find in `LISTEN_FDNAMES`. It holds none of its
    /// kind.
    Named(Box<Self>, String),
}

impl Bind {
    /// Returns the address without its name.
    pub(crate) fn address(&self) -> &Self {
        match self {
            Self::Named(address, _) => address,
            other => other,
        }
    }

    /// Returns the name that workers know it by, if it was given one.
    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            Self::Named(_, name) => Some(name),
            Self::Tcp { .. } | Self::Unix { .. } | Self::Fd(_) | Self::Inherited(_) => None,
        }
    }
}

impl ConfigValue for Bind {
    type Resolved = Self;
    const EXAMPLE: &'static str = "\"127.0.0.1:8000\"";

    fn read(text: &str) -> Result<Self, InvalidValue> {
        text.parse()
    }

    fn write(value: &Self) -> String {
        quoted(value)
    }
}

impl FromStr for Bind {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        if text.is_empty() {
            return Err(invalid!(
                "no address is given (write HOST:PORT, unix:/PATH or fd://N)"
            ));
        }
        if let Some((address, name)) = named(text)? {
            let address = Box::new(address.parse()?);
            return Ok(Self::Named(address, name));
        }
        if let Some(unix) = text.strip_prefix("unix:") {
            return unix_socket(text, unix);
        }
        if let Some(fd) = text.strip_prefix("fd://") {
            return inherited(text, fd);
        }
        if text.contains("://") {
            return Err(invalid!(
                "`{text}` is a URL (write HOST:PORT, unix:/PATH or fd://N)"
            ));
        }
        if text.starts_with(['/', '.', '@']) {
            return Err(invalid!(
                "`{text}` names no kind of address (write unix:/PATH for a Unix socket)"
            ));
        }
        tcp(text)
    }
}

/// Returns an address without its `name=NAME`, and the name; `None` without one.
fn named(text: &str) -> Result<Option<(String, String)>, InvalidValue> {
    let (names, rest): (Vec<&str>, Vec<&str>) =
        text.split(',').partition(|part| part.starts_with("name="));
    let name = match names[..] {
        [] => return Ok(None),
        [name] => name.trim_start_matches("name="),
        _ => {
            return Err(invalid!(
                "`{text}` has two names (leave one out; workers tell sockets apart by one)"
            ));
        }
    };
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) {
        return Err(invalid!(
            "`{text}`: `{name}` cannot name a socket (write up to 64 letters, digits, dashes, dots \
             and underscores)"
        ));
    }
    Ok(Some((rest.join(","), name.to_owned())))
}

fn tcp(text: &str) -> Result<Bind, InvalidValue> {
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Err(invalid!(
            "`{text}` needs brackets and a port (write it like [{address}]:8000)"
        ));
    }
    let Some((host, port)) = text.rsplit_once(':').filter(|_| !text.ends_with(']')) else {
        return Err(match text.parse::<u16>() {
            Ok(port) => invalid!(
                "`{text}` names no host (write 127.0.0.1:{port}, or 0.0.0.0:{port} and \
                 [::]:{port} for everyone)"
            ),
            Err(_) => invalid!("`{text}` names no port (write it like {text}:8000)"),
        });
    };
    let port: u16 = port
        .parse()
        .ok()
        .filter(|_| port.bytes().all(|byte| byte.is_ascii_digit()))
        .ok_or_else(|| {
            invalid!("`{text}`: `{port}` is no port (write a number from 0 to 65535)")
        })?;
    if matches!(host, "" | "*") {
        return Err(invalid!(
            "`{text}` names no host (for every address bind 0.0.0.0:{port} for IPv4 and \
             [::]:{port} for IPv6)"
        ));
    }
    Ok(Bind::Tcp {
        host: self::host(text, host)?,
        port,
    })
}

/// The host in the form in which equal hosts look equal.
fn host(text: &str, host: &str) -> Result<String, InvalidValue> {
    if let Some(inner) = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        let (address, zone) = inner
            .split_once('%')
            .map_or((inner, None), |(a, z)| (a, Some(z)));
        let address: Ipv6Addr = address
            .parse()
            .map_err(|_| invalid!("`{text}`: `{inner}` is no IPv6 address"))?;
        return match zone {
            None => Ok(address.to_string()),
            Some(zone) if !zone.is_empty() && zone.bytes().all(is_name_byte) => {
                Ok(format!("{address}%{zone}"))
            }
            Some(_) => Err(invalid!(
                "`{text}`: `{inner}` names no network interface after `%`"
            )),
        };
    }
    if host.contains(':') {
        return Err(invalid!(
            "`{text}`: an IPv6 address needs brackets (write it like [::1]:8000)"
        ));
    }
    let numeric = host
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    if numeric && host.parse::<Ipv4Addr>().is_err() {
        return Err(invalid!(
            "`{text}`: `{host}` is no IPv4 address (write four numbers from 0 to 255)"
        ));
    }
    if !host.bytes().all(is_name_byte) || host.starts_with(['-', '.']) {
        return Err(invalid!("`{text}`: `{host}` is no host name"));
    }
    Ok(host.to_ascii_lowercase())
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')
}

fn unix_socket(text: &str, rest: &str) -> Result<Bind, InvalidValue> {
    let mut parts = rest.split(',');
    let path = parts.next().unwrap_or_default();
    if !path.starts_with('/') {
        return Err(invalid!(
            "`{text}`: the path must start with `/` (write it like unix:/run/app.sock)"
        ));
    }
    // `unix:///run/app.sock` is how others write it, and means the same.
    let path = socket_path(&format!("/{}", path.trim_start_matches('/')))?;
    let (mut mode, mut owner, mut group) = (None, None, None);
    for part in parts {
        let twice = match part.split_once('=') {
            Some(("mode", bits)) => mode.replace(permissions(text, bits)?).is_some(),
            Some(("owner", name)) if !name.is_empty() => owner.replace(name.to_owned()).is_some(),
            Some(("group", name)) if !name.is_empty() => group.replace(name.to_owned()).is_some(),
            _ => {
                return Err(invalid!(
                    "`{text}`: `{part}` is no option of a Unix socket (there are mode=0660, \
                     owner=USER and group=GROUP)"
                ));
            }
        };
        if twice {
            return Err(invalid!(
                "`{text}`: `{part}` is the second of its kind (leave one out)"
            ));
        }
    }
    Ok(Bind::Unix {
        path,
        mode,
        owner,
        group,
    })
}

fn permissions(text: &str, bits: &str) -> Result<u32, InvalidValue> {
    let octal = !bits.is_empty() && bits.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    octal
        .then(|| u32::from_str_radix(bits, 8).ok())
        .flatten()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| {
            invalid!(
                "`{text}`: `mode={bits}` is no mode (write octal digits up to 0777, like mode=0660)"
            )
        })
}

fn inherited(text: &str, rest: &str) -> Result<Bind, InvalidValue> {
    if rest.bytes().all(|byte| byte.is_ascii_digit()) && !rest.is_empty() {
        return match rest.parse() {
            Ok(fd @ 3..) => Ok(Bind::Fd(fd)),
            Ok(fd) => Err(invalid!(
                "`{text}`: descriptor {fd} is standard input, output or error (inherited sockets \
                 start at 3)"
            )),
            Err(_) => Err(invalid!("`{text}`: `{rest}` is no descriptor")),
        };
    }
    // The names that sd_listen_fds(3) allows.
    let valid = (1..=255).contains(&rest.len())
        && rest
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b':');
    if !valid {
        return Err(invalid!(
            "`{text}` names no inherited socket (write fd://3, or fd://NAME as in LISTEN_FDNAMES)"
        ));
    }
    Ok(Bind::Inherited(rest.to_owned()))
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix {
                path,
                mode,
                owner,
                group,
            } => {
                write!(f, "unix:{}", path.display())?;
                if let Some(mode) = mode {
                    write!(f, ",mode={mode:04o}")?;
                }
                if let Some(owner) = owner {
                    write!(f, ",owner={owner}")?;
                }
                if let Some(group) = group {
                    write!(f, ",group={group}")?;
                }
                Ok(())
            }
            Self::Fd(fd) => write!(f, "fd://{fd}"),
            Self::Inherited(name) => write!(f, "fd://{name}"),
            Self::Named(address, name) => write!(f, "{address},name={name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn tcp(host: &str, port: u16) -> Bind {
        Bind::Tcp {
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn any_kind_of_address_can_have_a_name() {
        for (text, address) in [
            ("127.0.0.1:80,name=web", "127.0.0.1:80"),
            ("unix:/run/a.sock,name=web", "unix:/run/a.sock"),
            ("fd://3,name=web", "fd://3"),
        ] {
            let bind: Bind = text.parse().unwrap();
            assert_eq!(
                (bind.address().to_string(), bind.name()),
                (address.to_owned(), Some("web"))
            );
            assert_eq!(bind.to_string(), text);
        }
        let bind: Bind = "unix:/run/a.sock,name=web,mode=0660".parse().unwrap();
        assert_eq!(bind.to_string(), "unix:/run/a.sock,mode=0660,name=web");
        for (text, words) in [
            ("127.0.0.1:80,name=", "cannot name a socket"),
            ("127.0.0.1:80,name=a:b", "cannot name a socket"),
            ("127.0.0.1:80,name=a,name=b", "has two names"),
        ] {
            let error = text.parse::<Bind>().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn each_kind_of_address_is_read() {
        let unix = |mode, owner: Option<&str>, group: Option<&str>| Bind::Unix {
            path: PathBuf::from("/run/app.sock"),
            mode,
            owner: owner.map(str::to_owned),
            group: group.map(str::to_owned),
        };
        let table = [
            ("127.0.0.1:8000", tcp("127.0.0.1", 8000)),
            ("0.0.0.0:0", tcp("0.0.0.0", 0)),
            ("[::]:80", tcp("::", 80)),
            ("[0:0::1]:80", tcp("::1", 80)),
            ("[fe80::1%eth0]:80", tcp("fe80::1%eth0", 80)),
            ("LocalHost:65535", tcp("localhost", 65535)),
            ("my-host_1.example.org:80", tcp("my-host_1.example.org", 80)),
            ("unix:/run/app.sock", unix(None, None, None)),
            ("unix:///run/app.sock", unix(None, None, None)),
            ("unix:/run/app.sock,mode=660", unix(Some(0o660), None, None)),
            (
                "unix:/run/app.sock,group=www-data,owner=33,mode=0600",
                unix(Some(0o600), Some("33"), Some("www-data")),
            ),
            ("fd://3", Bind::Fd(3)),
            ("fd://web.socket", Bind::Inherited("web.socket".to_owned())),
        ];
        for (text, bind) in table {
            assert_eq!(text.parse(), Ok(bind), "{text}");
        }
    }

    /// What is written, and what is said of it.
    const SLIPS: &[(&str, &str)] = &[
        (
            "",
            "no address is given (write HOST:PORT, unix:/PATH or fd://N)",
        ),
        (
            "8000",
            "`8000` names no host (write 127.0.0.1:8000, or 0.0.0.0:8000 and [::]:8000 for \
                 everyone)",
        ),
        (
            ":80",
            "`:80` names no host (for every address bind 0.0.0.0:80 for IPv4 and [::]:80 for \
                 IPv6)",
        ),
        (
            "*:80",
            "`*:80` names no host (for every address bind 0.0.0.0:80 for IPv4 and [::]:80 \
                 for IPv6)",
        ),
        (
            "localhost",
            "`localhost` names no port (write it like localhost:8000)",
        ),
        (
            "::1",
            "`::1` needs brackets and a port (write it like [::1]:8000)",
        ),
        ("[::1]", "`[::1]` names no port (write it like [::1]:8000)"),
        (
            "fe80::1%lo:80",
            "`fe80::1%lo:80`: an IPv6 address needs brackets (write it like [::1]:8000)",
        ),
        ("[::g]:80", "`[::g]:80`: `::g` is no IPv6 address"),
        (
            "[::1%]:80",
            "`[::1%]:80`: `::1%` names no network interface after `%`",
        ),
        (
            "a:65536",
            "`a:65536`: `65536` is no port (write a number from 0 to 65535)",
        ),
        (
            "a:+80",
            "`a:+80`: `+80` is no port (write a number from 0 to 65535)",
        ),
        ("a:", "`a:`: `` is no port (write a number from 0 to 65535)"),
        (
            "127.0.0.256:80",
            "`127.0.0.256:80`: `127.0.0.256` is no IPv4 address (write four numbers from 0 \
                 to 255)",
        ),
        ("a b:80", "`a b:80`: `a b` is no host name"),
        ("-a:80", "`-a:80`: `-a` is no host name"),
        (
            "http://a:80",
            "`http://a:80` is a URL (write HOST:PORT, unix:/PATH or fd://N)",
        ),
        (
            "/run/a",
            "`/run/a` names no kind of address (write unix:/PATH for a Unix socket)",
        ),
        (
            "unix:a",
            "`unix:a`: the path must start with `/` (write it like unix:/run/app.sock)",
        ),
        ("unix:/a/", "/a/ is a directory (name the socket in it)"),
        (
            "unix:/a,mode=0888",
            "`unix:/a,mode=0888`: `mode=0888` is no mode (write octal digits up to 0777, \
                 like mode=0660)",
        ),
        (
            "unix:/a,mode=1777",
            "`unix:/a,mode=1777`: `mode=1777` is no mode (write octal digits up to 0777, \
                 like mode=0660)",
        ),
        (
            "unix:/a,user=b",
            "`unix:/a,user=b`: `user=b` is no option of a Unix socket (there are mode=0660, \
                 owner=USER and group=GROUP)",
        ),
        (
            "unix:/a,owner=b,owner=c",
            "`unix:/a,owner=b,owner=c`: `owner=c` is the second of its kind (leave one out)",
        ),
        (
            "fd://",
            "`fd://` names no inherited socket (write fd://3, or fd://NAME as in \
                 LISTEN_FDNAMES)",
        ),
        (
            "fd://1",
            "`fd://1`: descriptor 1 is standard input, output or error (inherited sockets \
                 start at 3)",
        ),
        (
            "fd://99999999999",
            "`fd://99999999999`: `99999999999` is no descriptor",
        ),
    ];

    #[test]
    fn each_slip_gets_a_sentence() {
        for (text, message) in SLIPS {
            assert_eq!(text.parse::<Bind>(), Err(invalid!("{message}")), "{text}");
        }
        let long = format!("unix:/{}", "a".repeat(107));
        let message = long.parse::<Bind>().unwrap_err().to_string();
        assert!(
            message.ends_with("is too long for a Unix socket (108 bytes; at most 107)"),
            "{message}"
        );
    }

    fn bind() -> impl Strategy<Value = Bind> {
        let host = prop_oneof![
            any::<Ipv4Addr>().prop_map(|address| address.to_string()),
            any::<Ipv6Addr>().prop_map(|address| address.to_string()),
            any::<Ipv6Addr>().prop_map(|address| format!("{address}%eth0")),
            "[a-z][a-z0-9_.-]{0,20}",
        ];
        let name = || prop::option::of("[a-z][a-z0-9=-]{0,8}");
        prop_oneof![
            (host, any::<u16>()).prop_map(|(host, port)| Bind::Tcp { host, port }),
            (
                "/[a-zé ][a-zA-Z0-9:é]{0,40}",
                prop::option::of(0..=0o777u32),
                name(),
                name()
            )
                .prop_map(|(path, mode, owner, group)| Bind::Unix {
                    path: path.into(),
                    mode,
                    owner,
                    group
                }),
            (3..=RawFd::MAX).prop_map(Bind::Fd),
            "[a-zA-Z._-][!-9;-~]{0,40}".prop_map(Bind::Inherited),
        ]
    }

    proptest! {
        #[test]
        fn what_is_displayed_is_read_again(bind in bind()) {
            prop_assert_eq!(bind.to_string().parse(), Ok(bind));
        }

        #[test]
        fn what_is_read_is_displayed_so_that_it_is_read_again(text in "[a-z0-9:/.,=\\[\\]%]{0,20}|(unix:/|fd://|\\[::)[ -~]{0,20}") {
            if let Ok(bind) = text.parse::<Bind>() {
                prop_assert_eq!(bind.to_string().parse(), Ok(bind));
            }
        }
    }
}
