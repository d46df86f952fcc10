//! The control socket and its clients over an upgrade in place: one version of the program packs
//! them, the next one unpacks them.
//!
//! Lasting clients are left out: the children that have the other ends are started again.

use super::{Client, ControlServer, Listener, Stage};
use crate::process::poll::{Interest, Poll, Token};
use crate::upgrade::{ClientState, ControlState, Kind, Packing, Unpacking};
use nix::unistd::Gid;
use std::io;

/// A client with more unread output, in bytes, is dropped.
const MAX_UNREAD: usize = 64 << 10;

impl ControlServer {
    /// Packs the socket and the clients; `None` without a socket.
    pub(crate) fn state(&self, packing: &mut Packing) -> Option<ControlState> {
        let listener = self.listener.as_ref()?;
        let packs = |client: &Client| !client.lasting && client.output.len() <= MAX_UNREAD;
        let socket = packing.add(Kind::Listener, &listener.socket);
        let client = |(id, client): (&u64, &Client)| ClientState {
            id: *id,
            stream: packing.add(Kind::Stream, &client.stream),
            input: client.input.clone(),
            output: client.output.clone(),
            deadline: client.deadline(),
            answered: client.stage == Stage::Answered,
            role: client.role,
            follows: client.stage == Stage::Follows,
        };
        Some(ControlState {
            listener: socket,
            path: (&listener.path).into(),
            device: listener.identity.0,
            inode: listener.identity.1,
            last: self.last,
            pause: listener.pause,
            clients: self
                .clients
                .iter()
                .filter(|(_, client)| packs(client))
                .map(client)
                .collect(),
            readers: self.readers.map(Gid::as_raw),
        })
    }

    /// Unpacks the socket and the clients of another version.
    pub(crate) fn adopted(state: ControlState, unpacking: &mut Unpacking) -> Self {
        let client = |client: &ClientState| {
            let stream = unpacking.take(client.stream, Kind::Stream).into();
            let ClientState {
                input,
                output,
                deadline,
                answered,
                role,
                follows,
                ..
            } = client.clone();
            let (stage, read_by) = match deadline {
                _ if answered => (Stage::Answered, deadline),
                _ if follows => (Stage::Follows, deadline),
                Some(_) if output.is_empty() => (Stage::Asks { by: deadline }, None),
                _ => (Stage::Waits, deadline),
            };
            (
                client.id,
                Client {
                    stream,
                    role,
                    lasting: false,
                    stage,
                    input,
                    output,
                    read_by,
                },
            )
        };
        let clients = state.clients.iter().map(client).collect();
        let listener = Listener {
            socket: unpacking.take(state.listener, Kind::Listener).into(),
            path: state.path.path(),
            identity: (state.device, state.inode),
            pause: state.pause,
        };
        Self {
            listener: Some(listener),
            clients,
            last: state.last,
            readers: state.readers.map(Gid::from_raw),
        }
    }

    /// Watches the socket and all clients.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(crate) fn watch_all(&self, poll: &Poll) -> io::Result<()> {
        if self
            .listener
            .as_ref()
            .is_some_and(|listener| listener.pause.is_none())
        {
            self.watch(poll)?;
        }
        self.clients.iter().try_for_each(|(id, client)| {
            let interest = if client.output.is_empty() {
                Interest::Read
            } else {
                Interest::Write
            };
            poll.add(&client.stream, Token::Client(*id), interest)
        })
    }
}
