//! The channel of a worker to its supervisor: a `SOCK_SEQPACKET` Unix socketpair, one message a
//! packet.
//!
//! The two ends have different types, so that sending a message the wrong way does not compile.
//! Neither end ever blocks. The channel does not know what a message means, nor which one is
//! allowed at what time.

use crate::message::{ToSupervisor, ToWorker};
use crate::wire::{self, MAX_PACKET, WireError};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, send, sendmsg, socketpair,
};
use prefork_os as sys;
use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use thiserror::Error;

/// The supervisor's end of a channel.
pub type SupervisorEnd = Channel<ToWorker, ToSupervisor>;
/// The worker's end of a channel.
pub type WorkerEnd = Channel<ToSupervisor, ToWorker>;

/// One end of a channel, on which `Out` is sent and `In` is received.
#[derive(Debug)]
pub struct Channel<Out, In> {
    socket: OwnedFd,
    direction: PhantomData<fn(Out) -> In>,
}

/// What [`Channel::receive`] found.
#[derive(Debug, PartialEq)]
pub enum Received<In> {
    /// A message.
    Message(In),
    /// Nothing for now.
    Nothing,
    /// The other side is gone.
    Closed,
}

/// Why a channel cannot be used any more.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The other side does not read: the queue is full.
    #[error("the channel is full: the other side does not read it")]
    Full,
    /// The other side is gone.
    #[error("the channel is closed")]
    Closed,
    /// What was received is no message, or what is to be sent is too long.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A system call failed.
    #[error(transparent)]
    System(io::Error),
}

impl From<io::Error> for ChannelError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock => Self::Full,
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected => Self::Closed,
            _ => Self::System(error),
        }
    }
}

/// Makes a channel: the supervisor's end and the worker's. Both are closed on exec.
///
/// # Errors
/// Those of socketpair(2).
///
/// ```
/// use prefork_protocol::channel::{Received, pair};
/// use prefork_protocol::message::ToSupervisor;
/// let (supervisor, worker) = pair()?;
/// worker.send(&ToSupervisor::Ready)?;
/// assert_eq!(supervisor.receive()?, Received::Message(ToSupervisor::Ready));
/// assert_eq!(supervisor.receive()?, Received::Nothing);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn pair() -> io::Result<(SupervisorEnd, WorkerEnd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    Ok((Channel::from_socket(ours), Channel::from_socket(theirs)))
}

impl<Out: bincode::Encode, In: bincode::Decode<()>> Channel<Out, In> {
    /// Takes over one end of a `SOCK_SEQPACKET` socketpair.
    pub fn from_socket(socket: OwnedFd) -> Self {
        Self {
            socket,
            direction: PhantomData,
        }
    }

    /// Sends one message, or fails at once.
    ///
    /// # Errors
    /// [`ChannelError::Full`] when the other side has stopped reading; the message is not sent.
    pub fn send(&self, message: &Out) -> Result<(), ChannelError> {
        let packet = wire::encode(message)?;
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(self.socket.as_raw_fd(), &packet, flags).map_err(io::Error::from)?;
        Ok(())
    }

    /// Takes one message, if there is one.
    ///
    /// # Errors
    /// [`ChannelError::Wire`] for bytes that are no message: the other side must not be trusted
    /// again.
    pub fn receive(&self) -> Result<Received<In>, ChannelError> {
        let mut buffer = [0_u8; MAX_PACKET];
        let mut received = sys::receive_packet(self.socket.as_fd(), &mut buffer);
        if matches!(&received, Err(error) if error.kind() == io::ErrorKind::ConnectionReset) {
            // The peer has exited without reading everything, which is reported once, before what
            // it had sent.
            received = sys::receive_packet(self.socket.as_fd(), &mut buffer);
        }
        let (length, cut) = match received {
            Ok(packet) => packet,
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(Received::Nothing),
                    io::ErrorKind::ConnectionReset => Ok(Received::Closed),
                    _ => Err(ChannelError::System(error)),
                };
            }
        };
        match length {
            0 => Ok(Received::Closed),
            _ if cut => Err(ChannelError::Wire(WireError::TooLong(MAX_PACKET + 1))),
            _ => Ok(Received::Message(wire::decode(&buffer[..length])?)),
        }
    }
}

impl SupervisorEnd {
    /// Sends one message together with a descriptor, or fails at once.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn send_with(
        &self,
        message: &ToWorker,
        descriptor: BorrowedFd<'_>,
    ) -> Result<(), ChannelError> {
        let packet = wire::encode(message)?;
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let numbers = [descriptor.as_raw_fd()];
        let along = [ControlMessage::ScmRights(&numbers)];
        sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&packet)],
            &along,
            flags,
            None,
        )
        .map_err(io::Error::from)?;
        Ok(())
    }
}

impl WorkerEnd {
    /// Receives one message, if there is one, with the descriptor that came along. A supervisor
    /// never accepts descriptors.
    ///
    /// # Errors
    /// As for [`receive`](Self::receive).
    pub fn receive_with(&self) -> Result<(Received<ToWorker>, Option<OwnedFd>), ChannelError> {
        let mut buffer = [0_u8; MAX_PACKET];
        match sys::receive_with_descriptor(self.socket.as_fd(), &mut buffer) {
            Ok((0, ..)) => Ok((Received::Closed, None)),
            Ok((_, true, _)) => Err(ChannelError::Wire(WireError::TooLong(MAX_PACKET + 1))),
            Ok((length, false, descriptor)) => Ok((
                Received::Message(wire::decode(&buffer[..length])?),
                descriptor,
            )),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {
                    Ok((Received::Nothing, None))
                }
                io::ErrorKind::ConnectionReset => Ok((Received::Closed, None)),
                _ => Err(ChannelError::System(error)),
            },
        }
    }
}

impl<Out, In> AsFd for Channel<Out, In> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<Out, In> From<Channel<Out, In>> for OwnedFd {
    fn from(channel: Channel<Out, In>) -> Self {
        channel.socket
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Drain;

    #[test]
    fn a_descriptor_comes_with_its_message() {
        let (supervisor, worker) = pair().expect("a socketpair");
        let (read, write) = nix::unistd::pipe().expect("a pipe");
        supervisor
            .send_with(&ToWorker::Reopen, write.as_fd())
            .expect("sent");
        drop(write);
        let (received, descriptor) = worker.receive_with().expect("received");
        assert_eq!(received, Received::Message(ToWorker::Reopen));
        nix::unistd::write(descriptor.expect("a descriptor"), b"x").expect("written");
        assert_eq!(nix::unistd::read(&read, &mut [0; 2]), Ok(1));
        assert!(matches!(
            worker.receive_with(),
            Ok((Received::Nothing, None))
        ));
    }

    #[test]
    fn messages_of_a_peer_that_exits_without_reading_are_received() {
        let (supervisor, worker) = pair().expect("a socketpair");
        let drain = ToWorker::Drain(Drain {
            deadline_ms: 1,
            empty_queue: false,
        });
        supervisor.send(&drain).expect("sent");
        worker.send(&ToSupervisor::Ready).expect("sent");
        drop(worker);
        assert!(matches!(
            supervisor.receive(),
            Ok(Received::Message(ToSupervisor::Ready))
        ));
        assert!(matches!(supervisor.receive(), Ok(Received::Closed)));
    }
}
