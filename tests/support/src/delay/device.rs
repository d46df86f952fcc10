//! The TUN device, made and set up by ioctl(2): nothing outside the kernel is needed.

use super::{NEAR_V4, NEAR_V6, NotPossible, failed};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use prefork_os::testing::Interface;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

const CLONE: &str = "/dev/net/tun";
const NAME: &str = "delay";
/// The kernel drops what does not fit: half a second of 100,000 packets a second.
const QUEUE: u32 = 65_536;

/// The device's end in this process.
#[derive(Debug)]
pub(super) struct Device {
    file: File,
    has_v6: bool,
}

/// Fails early, while the thread is still where it was.
pub(super) fn check_access() -> Result<(), NotPossible> {
    open().map(drop)
}

fn open() -> Result<File, NotPossible> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK);
    options
        .open(CLONE)
        .map_err(failed(&format!("cannot open {CLONE}")))
}

impl Device {
    /// Makes the device in this thread's network namespace, with its addresses, and raises it.
    pub(super) fn make() -> Result<Self, NotPossible> {
        // The device will be where the file was opened.
        let file = open()?;
        let interface = interface(NAME)?;
        interface
            .make_tun(&file)
            .map_err(failed("cannot make a TUN device"))?;
        interface
            .set_v4(NEAR_V4, Ipv4Addr::new(255, 255, 0, 0))
            .map_err(failed("cannot give the TUN device an address"))?;
        raise(NAME)?;
        let index = interface
            .index()
            .map_err(failed(&format!("cannot find {NAME}")))?;
        lengthen_queue(index).map_err(failed("cannot lengthen its queue"))?;
        let has_v6 = interface.add_v6(NEAR_V6).is_ok();
        Ok(Self { file, has_v6 })
    }

    pub(super) fn has_v6(&self) -> bool {
        self.has_v6
    }

    /// The next packet that the kernel sends; `WouldBlock` when there is none.
    pub(super) fn read(&self, room: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(room)
    }

    /// Puts a packet in, as if it had arrived.
    pub(super) fn write(&self, packet: &[u8]) -> io::Result<usize> {
        (&self.file).write(packet)
    }

    /// The kernel's own counts about the device.
    pub(super) fn statistics() -> Result<Statistics, NotPossible> {
        // Opened here, it tells of this thread's namespace for ever, in whichever thread it is
        // read.
        File::open("/proc/thread-self/net/dev")
            .map(Statistics)
            .map_err(failed("cannot open /proc/net/dev"))
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The kernel's counts about the devices of one namespace.
#[derive(Debug)]
pub(super) struct Statistics(File);

impl Statistics {
    /// How many packets the kernel dropped in front of the device and behind it.
    pub(super) fn dropped(&self) -> u64 {
        let mut text = vec![0; 8192];
        let length = self.0.read_at(&mut text, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(&text[..length]);
        let row = text
            .lines()
            .find_map(|row| row.trim().strip_prefix(NAME)?.strip_prefix(':'));
        let fields: Vec<u64> = row
            .into_iter()
            .flat_map(str::split_whitespace)
            .filter_map(|field| field.parse().ok())
            .collect();
        // Eight columns of what came in, then eight of what went out; the fourth of each counts
        // drops.
        fields.get(3).unwrap_or(&0) + fields.get(11).unwrap_or(&0)
    }
}

/// Raises an interface of this thread's namespace.
pub(super) fn raise(name: &str) -> Result<(), NotPossible> {
    interface(name)?
        .raise()
        .map_err(failed(&format!("cannot raise {name}")))
}

fn interface(name: &str) -> Result<Interface, NotPossible> {
    Interface::named(name).map_err(failed("cannot make a socket"))
}

/// Sets the length of a device's queue by rtnetlink(7), since the ioctl for it demands to be root
/// outside as well.
fn lengthen_queue(index: libc::c_int) -> io::Result<()> {
    // A header of 16 bytes, an ifinfomsg of 16, an attribute of 8.
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).expect("two small flags");
    let mut message = Vec::new();
    message.extend(40_u32.to_ne_bytes());
    message.extend(libc::RTM_SETLINK.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 12]);
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(8_u16.to_ne_bytes());
    message.extend(libc::IFLA_TXQLEN.to_ne_bytes());
    message.extend(QUEUE.to_ne_bytes());
    let line = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    send(line.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 256];
    let length = recv(line.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // The answer is a header and then an error number, negated, which is 0 for success.
    let error = answer[..length]
        .get(16..20)
        .and_then(|bytes| bytes.try_into().ok());
    match error.map_or(libc::EPROTO, |bytes| -i32::from_ne_bytes(bytes)) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
