//! The process of the admin child: it adopts its sockets, serves, and exits when the supervisor
//! closes its connections.

use super::budget::Budget;
use super::connection::{Client, serve};
use super::limiter::Limiter;
use super::source::Source;
use super::{ROLE, agent_check};
use crate::helpers::words_of;
use prefork_protocol::environment::FIRST_FD;
use std::future::poll_fn;
use std::net::TcpListener;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;
use tokio::task::LocalSet;

/// How long active clients have when the child is to exit.
const GRACE: Duration = Duration::from_secs(5);
/// How long no client is accepted after accept(2) has failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Returns the task of this process, if it was started as an admin child. Call it before anything
/// else.
pub(crate) fn task() -> Option<Task> {
    let mut words = words_of(ROLE)?.into_iter();
    let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    Some(Task {
        http: number(),
        agent: number(),
    })
}

/// The number of inherited sockets of each kind, which are followed by the two connections to the
/// supervisor.
#[derive(Debug)]
pub(crate) struct Task {
    http: RawFd,
    agent: RawFd,
}

impl Task {
    /// Serves until the supervisor closes the connections.
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
                // Standard error is that of the supervisor's log.
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
            .map(|_| Listener::open(adopt()?))
            .collect::<std::io::Result<Vec<_>>>()?;
        let agent = (0..self.agent)
            .map(|_| Listener::open(adopt()?))
            .collect::<std::io::Result<Vec<_>>>()?;
        let (status, events) = (stream(adopt()?)?, stream(adopt()?)?);
        let (source, gone) = Source::open(status, events);
        // Separate limits: clients of one kind cannot exhaust those of the other.
        let (http_limiter, agent_limiter) = (Limiter::default(), Limiter::default());
        let budget = Budget::new();
        for listener in http {
            let (source, limiter, budget) = (source.clone(), http_limiter.clone(), budget.clone());
            spawn(
                &budget.clone(),
                listener.accept(move |client| {
                    if let Some(permit) = limiter.acquire() {
                        spawn(
                            &budget,
                            serve(client, source.clone(), permit, budget.clone()),
                        );
                    }
                }),
            );
        }
        for listener in agent {
            let (source, limiter, budget) = (source.clone(), agent_limiter.clone(), budget.clone());
            spawn(
                &budget.clone(),
                listener.accept(move |client| {
                    if let Some(permit) = limiter.acquire() {
                        spawn(&budget, agent_check::answer(client, source.clone(), permit));
                    }
                }),
            );
        }
        gone.wait().await;
        http_limiter.close();
        agent_limiter.close();
        // Clients still in the queues are the next child's.
        let _ = tokio::time::timeout(GRACE, async {
            tokio::join!(http_limiter.idle(), agent_limiter.idle())
        })
        .await;
        Ok(())
    }
}

/// Spawns a task on behalf of a client, within the budget.
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

/// A listening socket.
#[derive(Debug)]
enum Listener {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

impl Listener {
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

    async fn accept(self, mut serve: impl FnMut(Box<dyn Client>)) {
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
                    serve(client);
                    // Accepts are interleaved with the clients' tasks.
                    tokio::task::yield_now().await;
                }
                // Descriptors have run out, or the client is gone already.
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}
