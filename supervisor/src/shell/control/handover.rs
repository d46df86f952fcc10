//! The control socket and its clients, written down for the next version of the program, and taken over by it.

use super::{Client, ControlServer};
use crate::shell::handover::{ClientState, ControlState, Kind, Packing, Unpacking};
use crate::shell::poll::{Interest, Poll, Token};
use std::io;

/// A client that has more than this to read is let go of.
const MOST_UNREAD: usize = 64 << 10;

impl ControlServer {
    /// What has to be known to go on in another program.
    pub(in crate::shell) fn state(&self, packing: &mut Packing) -> ControlState {
        let clients = self.clients.iter().filter(|(_, client)| client.output.len() <= MOST_UNREAD);
        let listener = packing.add(Kind::Listener, &self.listener);
        let client = |(id, client): (&u64, &Client)| ClientState {
            id: *id,
            stream: packing.add(Kind::Stream, &client.stream),
            input: client.input.clone(),
            output: client.output.clone(),
            deadline: client.deadline,
            answered: client.answered,
        };
        ControlState {
            listener,
            path: (&self.path).into(),
            device: self.identity.0,
            inode: self.identity.1,
            last: self.last,
            pause: self.pause,
            clients: clients.map(client).collect(),
        }
    }

    /// Goes on with the socket and the clients of another program.
    pub(in crate::shell) fn adopted(state: ControlState, unpacking: &mut Unpacking) -> Self {
        let client = |client: &ClientState| {
            let stream = unpacking.take(client.stream, Kind::Stream).into();
            let ClientState { input, output, deadline, answered, .. } = client.clone();
            (client.id, Client { stream, input, output, deadline, answered })
        };
        let clients = state.clients.iter().map(client).collect();
        Self {
            listener: unpacking.take(state.listener, Kind::Listener).into(),
            path: state.path.path(),
            identity: (state.device, state.inode),
            clients,
            last: state.last,
            pause: state.pause,
        }
    }

    /// Watches everything that is to be watched.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(in crate::shell) fn watch_all(&self, poll: &Poll) -> io::Result<()> {
        if self.pause.is_none() {
            self.watch(poll)?;
        }
        self.clients.iter().try_for_each(|(id, client)| {
            let interest = if client.output.is_empty() { Interest::Read } else { Interest::Write };
            poll.add(&client.stream, Token::Client(*id), interest)
        })
    }
}
