//! The end of a reload, as far as others are told of it: the new generation serves, and the old one takes no more.
//!
//! The core accepts a generation when its workers are good, and only then asks the old ones to drain. For a moment these
//! may still accept a connection. Whoever waits for the verdict (`supervisor reload --wait`, and so `systemctl
//! reload`) means by it that the next request gets the new code. So a good verdict is held back until every old worker
//! has said that it accepts no more, or is dead; a program that never says so has a second.
//!
//! This is never part of an upgrade's state: what is held back is said before.

use super::Server;
use crate::control::Answer;
use prefork_core::{Fact, Time};
use prefork_protocol::WorkerId;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long a program may take to leave, or to say that it stops, until nobody waits for that any more.
const PATIENCE: Duration = Duration::from_secs(1);

/// A verdict that is held back.
#[derive(Debug)]
pub(crate) struct Quiesce {
    /// What systemd is to be told.
    fact: Fact,
    /// Who is to be told, and what.
    answers: Vec<(u64, Answer)>,
    /// Whom it waits for.
    old: BTreeSet<WorkerId>,
    until: Time,
}

impl Quiesce {
    pub(crate) fn deadline(&self) -> Time {
        self.until
    }
}

impl Server {
    /// Another generation has just been accepted. `false`: nobody of an older one is left, so it can be told at once.
    pub(crate) fn begin_to_settle(&mut self, fact: &Fact) -> bool {
        let old: BTreeSet<WorkerId> = self
            .hands
            .values()
            .filter(|hand| hand.generation != self.accepted && !hand.stopped_accepting)
            .map(|hand| hand.id)
            .collect();
        if old.is_empty() {
            return false;
        }
        let until = self.now + PATIENCE;
        self.settling = Some(Quiesce {
            fact: fact.clone(),
            answers: Vec::new(),
            old,
            until,
        });
        true
    }

    /// Answers now, or when the reload has settled.
    pub(crate) fn answer_settled(&mut self, client: u64, answer: Answer) {
        match &mut self.settling {
            Some(settling) => settling.answers.push((client, answer)),
            None => self.answer(client, &answer),
        }
    }

    /// Tells what was held back, if it is time.
    pub(crate) fn settle(&mut self) {
        let accepts = |id: &WorkerId| {
            self.hands
                .get(id)
                .is_some_and(|hand| !hand.stopped_accepting)
        };
        if self
            .settling
            .as_ref()
            .is_some_and(|it| it.until <= self.now || !it.old.iter().any(accepts))
        {
            self.settle_now();
        }
    }

    /// Tells what was held back: something else is about to be told, or somebody else will go on.
    pub(crate) fn settle_now(&mut self) {
        let Some(Quiesce { fact, answers, .. }) = self.settling.take() else {
            return;
        };
        self.tell_systemd(&fact);
        for (client, answer) in answers {
            self.answer(client, &answer);
        }
    }
}
