//! On which other addresses a worker listens than on those that it was given.

use super::procfs::{DESCRIPTORS, inode_of, numbers};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The most that is read of a list of sockets. Listening TCP sockets come first in it.
const MAX_LIST: u64 = 1 << 20;
/// The most addresses that are returned.
const MAX_ADDRESSES: usize = 4;

/// Returns where one of these processes listens, apart from `own` sockets. `pid` is one of them,
/// in whose network they live.
pub(super) fn listens(pid: u32, family: &[u32], own: &BTreeSet<u64>) -> Vec<String> {
    let mut held = BTreeSet::new();
    for process in family {
        let directory = format!("/proc/{process}/fd");
        for descriptor in numbers(&directory, DESCRIPTORS).unwrap_or_default() {
            let target = fs::read_link(format!("{directory}/{descriptor}"));
            held.extend(target.ok().and_then(|it| inode_of(it.to_str()?)));
        }
    }
    let list = |name: &str| {
        let mut text = Vec::new();
        if let Ok(file) = File::open(format!("/proc/{pid}/net/{name}")) {
            let _ = file.take(MAX_LIST).read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    };
    let (tcp, tcp6, unix) = (list("tcp"), list("tcp6"), list("unix"));
    let tcp = tcp.lines().chain(tcp6.lines()).filter_map(listening_tcp);
    let all = tcp.chain(unix.lines().filter_map(listening_unix));
    all.filter(|(inode, _)| held.contains(inode) && !own.contains(inode))
        .map(|(_, address)| address)
        .take(MAX_ADDRESSES)
        .collect()
}

/// Parses a line of `/proc/net/tcp` or `tcp6`, if it is that of a listening socket.
fn listening_tcp(line: &str) -> Option<(u64, String)> {
    const LISTEN: &str = "0A";
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (local, state, inode) = (words.get(1)?, words.get(3)?, words.get(9)?);
    if *state != LISTEN {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of 32 bits, in the machine's order.
    let mut bytes = Vec::new();
    for word in address.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let address: IpAddr = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        _ => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
    };
    Some((
        inode.parse().ok()?,
        SocketAddr::new(address, port).to_string(),
    ))
}

/// Parses a line of `/proc/net/unix`, if it is that of a listening socket with a name.
fn listening_unix(line: &str) -> Option<(u64, String)> {
    const ACCEPTS: u32 = 0x1_0000;
    let mut words = line.split_ascii_whitespace().skip(3);
    let flags = u32::from_str_radix(words.next()?, 16).ok()?;
    let mut words = words.skip(2);
    let inode = words.next()?.parse().ok()?;
    let path = words.next()?;
    (flags & ACCEPTS != 0).then(|| (inode, format!("unix:{path}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net;

    #[test]
    fn other_listeners_of_a_process_are_found() {
        let own = std::process::id();
        let tcp = ["127.0.0.1:0", "[::1]:0"].map(TcpListener::bind);
        let name = format!("prefork-elsewhere-{own}");
        let name = net::SocketAddr::from_abstract_name(name.as_bytes()).expect("a name");
        let _unix = net::UnixListener::bind_addr(&name).expect("bound");
        let found = listens(own, &[own], &BTreeSet::new()).join(" ");
        for listener in tcp.iter().flatten() {
            let address = listener.local_addr().expect("an address").to_string();
            // Other tests of this process listen, too.
            let many = found.split(' ').count() == MAX_ADDRESSES;
            assert!(many || found.contains(&address), "{address}: {found}");
        }
        assert_eq!(listens(own, &[], &BTreeSet::new()), [] as [&str; 0]);
    }

    #[test]
    fn lines_of_the_kernel_are_read() {
        let line = "   0: 0100007F:1F56 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 \
                    0 4711 1 0000000000000000 100 0 0 10 0";
        let expected = Some((4711, "127.0.0.1:8022".to_owned()));
        if cfg!(target_endian = "little") {
            assert_eq!(listening_tcp(line), expected);
            assert_eq!(listening_tcp(&line.replace(" 0A ", " 01 ")), None);
        }
        let line = "0000000000000000: 00000002 00000000 00010000 0001 01 4712 /run/x.sock";
        assert_eq!(
            listening_unix(line),
            Some((4712, "unix:/run/x.sock".to_owned()))
        );
        assert_eq!(listening_unix(&line.replace("00010000", "00000000")), None);
        assert_eq!(listening_tcp("").or(listening_unix("")), None);
    }
}
