//! The end of a reload, as far as it is reported: the new generation serves, and the old one
//! accepts nothing more.
//!
//! The core commits a generation when its workers are good, and only then asks the old ones to
//! drain. For a moment these may still accept a connection. A client that waits for the verdict
//! (`supervisor reload --wait`, and so `systemctl reload`) relies on it that the next request gets
//! the new code. So a good verdict is held back until every old worker has reported that it stopped
//! accepting, or is dead; a program that never reports it has a second.
//!
//! This is never part of an upgrade's state: what is held back is reported before.

use super::Server;
use crate::control::Answer;
use prefork_core::{Fact, Time};
use prefork_protocol::WorkerId;
use std::collections::BTreeSet;
use std::time::Duration;

/// The longest that a verdict is held back for a program that does not report.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A verdict that is held back.
#[derive(Debug)]
pub(crate) struct Quiesce {
    /// What systemd is to be notified of.
    fact: Fact,
    /// The control clients that wait, and their answers.
    answers: Vec<(u64, Answer)>,
    /// The workers that may still accept.
    old: BTreeSet<WorkerId>,
    deadline: Time,
}

impl Quiesce {
    pub(crate) fn deadline(&self) -> Time {
        self.deadline
    }
}

impl Server {
    /// Holds the verdict of a reload back, as its generation has just been committed. `false`: no
    /// worker of an older one is left, so it can be reported at once.
    pub(crate) fn begin_quiesce(&mut self, fact: &Fact) -> bool {
        let accepted = self.generations.accepted;
        let handles = self.workers.handles.values();
        let old: BTreeSet<WorkerId> = handles
            .filter(|handle| handle.generation != accepted && !handle.stopped_accepting)
            .map(|handle| handle.id)
            .collect();
        if old.is_empty() {
            return false;
        }
        self.operators.quiesce = Some(Quiesce {
            fact: fact.clone(),
            answers: Vec::new(),
            old,
            deadline: self.now + TIMEOUT,
        });
        true
    }

    /// Answers now, or when the reload has quiesced.
    pub(crate) fn answer_quiesced(&mut self, client: u64, answer: Answer) {
        match &mut self.operators.quiesce {
            Some(quiesce) => quiesce.answers.push((client, answer)),
            None => self.answer(client, &answer),
        }
    }

    /// Reports what was held back, if it is time.
    pub(crate) fn quiesce(&mut self) {
        let handles = &self.workers.handles;
        let accepts = |id: &WorkerId| handles.get(id).is_some_and(|it| !it.stopped_accepting);
        let over = |it: &Quiesce| it.deadline <= self.now || !it.old.iter().any(accepts);
        if self.operators.quiesce.as_ref().is_some_and(over) {
            self.quiesce_now();
        }
    }

    /// Reports what was held back: something else is about to be reported, or the server is about
    /// to be handed over.
    pub(crate) fn quiesce_now(&mut self) {
        let Some(Quiesce { fact, answers, .. }) = self.operators.quiesce.take() else {
            return;
        };
        self.systemd.report(self.now, self.booted, &fact);
        for (client, answer) in answers {
            self.answer(client, &answer);
        }
    }
}
