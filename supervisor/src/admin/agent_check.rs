//! HAProxy's agent check: one line about the server, then the end (HAProxy's configuration manual,
//! `agent-check`).

use super::connection::Client;
use super::limiter::Permit;
use super::source::Source;
use crate::api::status::{SlotStatus, State, Status, WorkerState, WorkerStatus, approximate};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// How long a client may take to read the line.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// The most connections per worker at which its load is measured in requests; above, in
/// connections.
const MAX_CAPACITY_BY_REQUESTS: u64 = 1024;

/// Answers a client, and closes.
pub(crate) async fn answer(mut client: Box<dyn Client>, source: Source, permit: Rc<Permit>) {
    let line = match source.status().await {
        Some(snapshot) => line(&snapshot.status),
        None => "down #the supervisor does not answer\n".to_owned(),
    };
    let _ = tokio::time::timeout(READ_TIMEOUT, async {
        client.write_all(line.as_bytes()).await?;
        client.shutdown().await
    })
    .await;
    drop(permit);
}

/// `up ready 75%`: it serves, and a quarter of it is busy. `drain`: it is stopping. `down #why`: it
/// does not serve.
fn line(status: &Status) -> String {
    match status.state {
        State::PreStop | State::Draining | State::Stopping => "drain\n".to_owned(),
        state if !status.ready => format!("down #{state}\n"),
        _ => format!("up ready {}%\n", weight(status)),
    }
}

/// Returns the idle share of the server in percent; at least 1, as 0 would mean to drain.
fn weight(status: &Status) -> f64 {
    let (mut ready, mut busy) = (0.0, 0.0);
    for SlotStatus { workers, queue, .. } in &status.slots {
        for worker in workers {
            if worker.state == WorkerState::Ready {
                ready += 1.0;
                busy += busy_share(worker, status.capacity);
            }
        }
        // A connection waits because no worker is idle.
        if queue.is_some_and(|waiting| waiting > 0) {
            busy += 0.5;
        }
    }
    let workers = f64::from(status.workers).max(ready).max(1.0);
    ((ready - busy).max(0.0) / workers * 100.0)
        .round()
        .clamp(1.0, 100.0)
}

/// Returns the busy share of a worker, from 0 to 1; 0 where its capacity is not known.
fn busy_share(worker: &WorkerStatus, capacity: Option<u64>) -> f64 {
    let (used, capacity) = match capacity {
        None | Some(0) => return 0.0,
        Some(most @ 1..=MAX_CAPACITY_BY_REQUESTS) => (worker.scoreboard.busy.unwrap_or(0), most),
        Some(most) => (worker.scoreboard.open.unwrap_or(0), most),
    };
    approximate(used.min(capacity)) / approximate(capacity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::Scoreboard;

    fn status(state: State, ready: bool, busy: [u64; 2]) -> Status {
        let slot = |busy: u64| SlotStatus {
            workers: vec![WorkerStatus {
                state: WorkerState::Ready,
                scoreboard: Scoreboard {
                    busy: Some(busy),
                    open: Some(busy),
                    ..Scoreboard::default()
                },
                ..WorkerStatus::default()
            }],
            ..SlotStatus::default()
        };
        Status {
            state,
            ready,
            capacity: Some(4),
            workers: 2,
            slots: busy.map(slot).into(),
            ..Status::default()
        }
    }

    #[test]
    fn the_weight_is_the_idle_share() {
        let line = |state, busy| line(&status(state, true, busy));
        assert_eq!(line(State::Serving, [0, 0]), "up ready 100%\n");
        assert_eq!(line(State::Serving, [4, 0]), "up ready 50%\n");
        assert_eq!(line(State::Serving, [4, 4]), "up ready 1%\n", "never 0");
        assert_eq!(line(State::Degraded, [1, 1]), "up ready 75%\n");
    }

    #[test]
    fn a_stopping_server_is_drained_and_one_that_does_not_serve_is_down() {
        for state in [State::PreStop, State::Draining, State::Stopping] {
            assert_eq!(line(&status(state, false, [0, 0])), "drain\n");
        }
        assert_eq!(
            line(&status(State::Starting, false, [0, 0])),
            "down #starting\n"
        );
        assert_eq!(line(&Status::default()), "down #unknown\n");
    }
}
