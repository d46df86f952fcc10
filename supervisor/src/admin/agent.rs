//! HAProxy's agent check: one line about the whole server, then the end (HAProxy's configuration manual, `agent-check`).

use super::child::Client;
use super::connection::Seat;
use super::source::Source;
use serde_json::Value;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// How long a client may take to read a line.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tells a client, and closes.
pub(crate) async fn answer(mut client: Box<dyn Client>, source: Source, seat: Rc<Seat>) {
    let line = match source.status().await {
        Some(picture) => line(&picture.status),
        None => "down #the supervisor does not answer\n".to_owned(),
    };
    let _ = tokio::time::timeout(PATIENCE, async {
        client.write_all(line.as_bytes()).await?;
        client.shutdown().await
    })
    .await;
    drop(seat);
}

/// `up 75%`: it serves, and a quarter of it is busy. `drain`: it is leaving. `down #why`: it serves nobody.
fn line(status: &Value) -> String {
    let state = status["state"].as_str().unwrap_or("unknown");
    match state {
        "pre-stop" | "draining" | "stopping" => return "drain\n".to_owned(),
        _ if status["ready"] != true => return format!("down #{state}\n"),
        _ => {}
    }
    format!("up ready {}%\n", weight(status))
}

/// How much of the server has time, in percent; at least 1, as 0 would mean to drain.
fn weight(status: &Value) -> u64 {
    let slots = status["slots"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let capacity = status["capacity"].as_u64();
    let (mut able, mut busy) = (0_f64, 0_f64);
    for slot in slots {
        for worker in slot["workers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|one| one["state"] == "ready")
        {
            able += 1.0;
            let (in_hand, open) = (
                worker["scoreboard"]["busy"].as_f64(),
                worker["scoreboard"]["open"].as_f64(),
            );
            // Of what has requests in hand one at a time, requests tell; of the rest, connections do.
            let share = match capacity {
                Some(most @ 1..=1024) => in_hand.unwrap_or(0.0) / most as f64,
                Some(most) => open.unwrap_or(0.0) / most as f64,
                None => 0.0,
            };
            busy += share.clamp(0.0, 1.0);
        }
        // Whoever waits, waits for want of somebody who has time.
        if slot["queue"].as_u64().unwrap_or(0) > 0 {
            busy += 0.5;
        }
    }
    let open = status["workers"]
        .as_f64()
        .unwrap_or(able)
        .max(able)
        .max(1.0);
    (((able - busy).max(0.0) / open * 100.0).round() as u64).clamp(1, 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(state: &str, ready: bool, busy: [u64; 2]) -> Value {
        let worker = |busy: u64| json!({"state":"ready","scoreboard":{"busy":busy,"open":busy}});
        json!({"state":state,"ready":ready,"capacity":4,"workers":2,"slots":[
            {"slot":0,"queue":0,"workers":[worker(busy[0])]}, {"slot":1,"queue":0,"workers":[worker(busy[1])]}]})
    }

    #[test]
    fn the_weight_is_what_is_not_busy() {
        assert_eq!(line(&status("serving", true, [0, 0])), "up ready 100%\n");
        assert_eq!(line(&status("serving", true, [4, 0])), "up ready 50%\n");
        assert_eq!(
            line(&status("serving", true, [4, 4])),
            "up ready 1%\n",
            "never 0"
        );
        assert_eq!(line(&status("degraded", true, [1, 1])), "up ready 75%\n");
    }

    #[test]
    fn whoever_leaves_is_drained_and_whoever_serves_nobody_is_down() {
        for state in ["pre-stop", "draining", "stopping"] {
            assert_eq!(line(&status(state, false, [0, 0])), "drain\n");
        }
        assert_eq!(line(&status("starting", false, [0, 0])), "down #starting\n");
        assert_eq!(line(&json!({})), "down #unknown\n");
    }
}
