//! The child's life: it adopts what it was given, serves, and leaves when the supervisor has let go of it.

use super::budget::Budget;
use super::connection::{Seats, serve};
use super::source::Source;
use super::{ROLE, agent};
use prefork_protocol::environment::FIRST_FD;
use std::future::poll_fn;
use std::net::TcpListener;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::LocalSet;

/// How long whoever is being served when the child is to leave has for that.
const GRACE: Duration = Duration::from_secs(5);
/// How long nobody is accepted when the system refuses that.
const PAUSE: Duration = Duration::from_millis(100);

/// Whom to serve, when this process was started for that. To be asked before anything else.
pub(crate) fn task() -> Option<Task> {
    let mut words = std::env::args_os().skip(1);
    if words.next()? != ROLE {
        return None;
    }
    let mut number = || {
        words
            .next()
            .and_then(|word| word.into_string().ok()?.parse().ok())
            .unwrap_or(0)
    };
    Some(Task {
        http: number(),
        agent: number(),
    })
}

/// How many sockets this process has inherited, of each kind. Its two connections follow them.
#[derive(Debug)]
pub(crate) struct Task {
    http: RawFd,
    agent: RawFd,
}

impl Task {
    /// Serves until the supervisor lets go.
    pub(crate) fn perform(self) -> ExitCode {
        let _ = nix::sys::prctl::set_name(c"admin");
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
        else {
            return ExitCode::FAILURE;
        };
        match LocalSet::new().block_on(&runtime, self.serve()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                // It goes where the supervisor's log does.
                eprintln!("admin child: {error}");
                ExitCode::FAILURE
            }
        }
    }

    async fn serve(self) -> std::io::Result<()> {
        let mut next = FIRST_FD;
        let mut adopt = || {
            next += 1;
            prefork_os::adopt(next - 1)
        };
        let http = (0..self.http)
            .map(|_| Door::open(adopt()?))
            .collect::<std::io::Result<Vec<_>>>()?;
        let agent = (0..self.agent)
            .map(|_| Door::open(adopt()?))
            .collect::<std::io::Result<Vec<_>>>()?;
        let (status, events) = (stream(adopt()?)?, stream(adopt()?)?);
        let (source, gone) = Source::open(status, events);
        // Whoever fills the seats of one kind takes none of the other's.
        let (seats, checks) = (Seats::default(), Seats::default());
        let budget = Budget::new();
        for door in http {
            let (source, seats, budget) = (source.clone(), seats.clone(), budget.clone());
            spawn(
                &budget.clone(),
                door.receive(move |client| {
                    if let Some(seat) = seats.take() {
                        spawn(&budget, serve(client, source.clone(), seat, budget.clone()));
                    }
                }),
            );
        }
        for door in agent {
            let (source, seats, budget) = (source.clone(), checks.clone(), budget.clone());
            spawn(
                &budget.clone(),
                door.receive(move |client| {
                    if let Some(seat) = seats.take() {
                        spawn(&budget, agent::answer(client, source.clone(), seat));
                    }
                }),
            );
        }
        gone.wait().await;
        seats.close();
        checks.close();
        // Whoever waits in the queues is the next child's.
        let _ = tokio::time::timeout(GRACE, async { tokio::join!(seats.empty(), checks.empty()) })
            .await;
        Ok(())
    }
}

/// Has something done that clients cause, within the budget.
fn spawn(budget: &Budget, task: impl Future<Output = ()> + 'static) {
    let budget = budget.clone();
    tokio::task::spawn_local(async move {
        let mut task = pin!(task);
        poll_fn(|context| {
            let polled = task.as_mut().poll(context);
            budget.spend();
            polled
        })
        .await;
    });
}

fn stream(socket: OwnedFd) -> std::io::Result<tokio::net::UnixStream> {
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(stream)
}

/// A client, of either kind of socket.
pub(crate) trait Client: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Client for T {}

/// A listening socket.
enum Door {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

impl Door {
    fn open(socket: OwnedFd) -> std::io::Result<Self> {
        let domain = socket2::SockRef::from(&socket).domain()?;
        if domain == socket2::Domain::UNIX {
            let listener = UnixListener::from(socket);
            listener.set_nonblocking(true)?;
            return Ok(Self::Unix(tokio::net::UnixListener::from_std(listener)?));
        }
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(Self::Tcp(tokio::net::TcpListener::from_std(listener)?))
    }

    async fn receive(self, mut welcome: impl FnMut(Box<dyn Client>)) {
        loop {
            let client: std::io::Result<Box<dyn Client>> = match &self {
                Self::Tcp(listener) => listener
                    .accept()
                    .await
                    .map(|(client, _)| Box::new(client) as _),
                Self::Unix(listener) => listener
                    .accept()
                    .await
                    .map(|(client, _)| Box::new(client) as _),
            };
            match client {
                Ok(client) => {
                    welcome(client);
                    // However many wait, they are welcomed one by one.
                    tokio::task::yield_now().await;
                }
                // Descriptors have run out, or the client is gone already.
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}
