//! The control socket and its clients, written down for the next version of the program, and taken over by it.
//!
//! Lasting clients are left out: the children that have the other ends are started anew.

use super::{Client, ControlServer, Door, Stage};
use crate::process::poll::{Interest, Poll, Token};
use crate::upgrade::{ClientState, ControlState, Kind, Packing, Unpacking};
use nix::unistd::Gid;
use std::io;

/// A client that has more than this to read is let go of.
const MOST_UNREAD: usize = 64 << 10;

impl ControlServer {
    /// What has to be known to go on in another program; `None` without a socket.
    pub(crate) fn state(&self, packing: &mut Packing) -> Option<ControlState> {
        let door = self.door.as_ref()?;
        let kept = |client: &Client| !client.lasting && client.output.len() <= MOST_UNREAD;
        let listener = packing.add(Kind::Listener, &door.listener);
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
            listener,
            path: (&door.path).into(),
            device: door.identity.0,
            inode: door.identity.1,
            last: self.last,
            pause: door.pause,
            clients: self
                .clients
                .iter()
                .filter(|(_, client)| kept(client))
                .map(client)
                .collect(),
            readers: self.readers.map(Gid::as_raw),
        })
    }

    /// Goes on with the socket and the clients of another program.
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
        let door = Door {
            listener: unpacking.take(state.listener, Kind::Listener).into(),
            path: state.path.path(),
            identity: (state.device, state.inode),
            pause: state.pause,
        };
        Self {
            door: Some(door),
            clients,
            last: state.last,
            readers: state.readers.map(Gid::from_raw),
        }
    }

    /// Watches everything that is to be watched.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(crate) fn watch_all(&self, poll: &Poll) -> io::Result<()> {
        if self.door.as_ref().is_some_and(|door| door.pause.is_none()) {
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
