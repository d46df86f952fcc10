//! The table of workers: its rows, its columns, its order.

use super::snapshot::Rates;
use super::text::{bytes, short, span};
use crate::api::status::{SlotStatus, Status, WorkerStatus, approximate};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column {
    Slot,
    Worker,
    Pid,
    Generation,
    State,
    Age,
    Requests,
    P99,
    Errors,
    Busy,
    Open,
    Queue,
    Memory,
    Oldest,
}

impl Column {
    /// All columns, from the left. A narrow screen leaves out those at the right.
    pub(crate) const ALL: [Self; 14] = [
        Self::Slot,
        Self::Worker,
        Self::Pid,
        Self::Generation,
        Self::State,
        Self::Age,
        Self::Requests,
        Self::P99,
        Self::Errors,
        Self::Busy,
        Self::Open,
        Self::Queue,
        Self::Memory,
        Self::Oldest,
    ];

    /// Returns its heading, and how wide it is.
    pub(crate) fn heading(self) -> (&'static str, usize) {
        match self {
            Self::Slot => ("SLOT", 4),
            Self::Worker => ("WORKER", 7),
            Self::Pid => ("PID", 7),
            Self::Generation => ("GEN", 3),
            Self::State => ("STATE", 8),
            Self::Age => ("AGE", 5),
            Self::Requests => ("REQ/S", 5),
            Self::P99 => ("P99", 5),
            Self::Errors => ("ERR/S", 5),
            Self::Busy => ("BUSY", 4),
            Self::Open => ("CONN", 5),
            Self::Queue => ("QUEUE", 5),
            Self::Memory => ("MEM", 5),
            Self::Oldest => ("OLDEST", 6),
        }
    }
}

/// A worker, or a slot that has none.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row<'a> {
    pub(crate) slot: &'a SlotStatus,
    pub(crate) worker: Option<&'a WorkerStatus>,
    pub(crate) rates: Rates,
}

impl Row<'_> {
    /// Returns the state of the worker, or why there is none.
    pub(crate) fn state(&self) -> &'static str {
        match self.worker {
            Some(worker) => worker.state.word(),
            None if self.slot.held => "held",
            None if !self.slot.open => "retired",
            None => "empty",
        }
    }

    /// Returns the text for a column.
    pub(crate) fn cell(&self, column: Column) -> String {
        let of = |what: &dyn Fn(&WorkerStatus) -> String| {
            self.worker.map_or_else(|| "-".to_owned(), what)
        };
        let or_none = |number: Option<f64>, write: fn(f64) -> String| {
            number.map_or_else(|| "-".to_owned(), write)
        };
        let count = |number: Option<u64>| {
            number.map_or_else(|| "-".to_owned(), |number| number.to_string())
        };
        match column {
            Column::Slot => self.slot.slot.to_string(),
            Column::Worker => of(&|worker| worker.worker.to_string()),
            Column::Pid => of(&|worker| worker.pid.to_string()),
            Column::Generation => of(&|worker| worker.generation.to_string()),
            Column::State => self.state().to_owned(),
            Column::Age => of(&|worker| span(worker.age)),
            Column::Requests => or_none(self.rates.requests, short),
            Column::P99 => or_none(self.rates.p99, span),
            Column::Errors => or_none(self.rates.errors, short),
            Column::Busy => count(self.worker.and_then(|worker| worker.scoreboard.busy)),
            Column::Open => count(self.worker.and_then(|worker| worker.scoreboard.open)),
            Column::Queue => self
                .slot
                .queue
                .map_or_else(|| "-".to_owned(), |queue| queue.to_string()),
            Column::Memory => or_none(self.memory(), bytes),
            Column::Oldest => or_none(self.worker.and_then(|worker| worker.oldest_age), span),
        }
    }

    fn memory(&self) -> Option<f64> {
        self.worker
            .and_then(|worker| worker.memory)
            .map(approximate)
    }

    /// Returns the key by which it is sorted: numbers in descending order, the rest ascending.
    fn key(&self, column: Column) -> f64 {
        let of = |what: &dyn Fn(&WorkerStatus) -> f64| self.worker.map_or(-1.0, what);
        match column {
            Column::Slot | Column::State => -f64::from(self.slot.slot),
            Column::Worker => of(&|worker| approximate(worker.worker)),
            Column::Pid => of(&|worker| f64::from(worker.pid)),
            Column::Generation => of(&|worker| f64::from(worker.generation)),
            Column::Age => of(&|worker| worker.age),
            Column::Requests => self.rates.requests.unwrap_or(-1.0),
            Column::P99 => self.rates.p99.unwrap_or(-1.0),
            Column::Errors => self.rates.errors.unwrap_or(-1.0),
            Column::Busy => of(&|worker| worker.scoreboard.busy.map_or(-1.0, approximate)),
            Column::Open => of(&|worker| worker.scoreboard.open.map_or(-1.0, approximate)),
            Column::Queue => self.slot.queue.map_or(-1.0, f64::from),
            Column::Memory => self.memory().unwrap_or(-1.0),
            Column::Oldest => of(&|worker| worker.oldest_age.unwrap_or(-1.0)),
        }
    }
}

/// The order of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) column: Column,
    pub(crate) reversed: bool,
}

impl Order {
    /// Returns the order by the column to the left (-1) or to the right (1).
    pub(crate) fn shifted(self, by: isize) -> Self {
        let count = Column::ALL.len();
        let columns = &mut Column::ALL.iter();
        let index = columns.position(|column| *column == self.column);
        let next = (index.unwrap_or(0) + count).saturating_add_signed(by) % count;
        Self {
            column: Column::ALL[next],
            reversed: false,
        }
    }
}

/// Returns all rows in order; those that are equal by slot.
pub(crate) fn rows<'a>(
    status: &'a Status,
    rates: &BTreeMap<u16, Rates>,
    order: Order,
) -> Vec<Row<'a>> {
    let mut rows: Vec<Row<'a>> = Vec::new();
    for slot in &status.slots {
        let rates = rates.get(&slot.slot).cloned().unwrap_or_default();
        if slot.workers.is_empty() {
            rows.push(Row {
                slot,
                worker: None,
                rates,
            });
            continue;
        }
        // A slot's rates are shown once, at the worker that takes its connections.
        for (index, worker) in slot.workers.iter().rev().enumerate() {
            let rates = if index == 0 {
                rates.clone()
            } else {
                Rates::default()
            };
            rows.push(Row {
                slot,
                worker: Some(worker),
                rates,
            });
        }
    }
    rows.sort_by(|one, other| {
        let by_slot = one.slot.slot.cmp(&other.slot.slot);
        let by = match order.column {
            Column::State => one.state().cmp(other.state()),
            column => other
                .key(column)
                .partial_cmp(&one.key(column))
                .unwrap_or(Ordering::Equal),
        };
        let by = if order.reversed { by.reverse() } else { by };
        by.then(by_slot)
    });
    rows
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::Snapshot;
    use super::super::snapshot::tests::status;
    use super::*;

    fn slots(order: Order) -> Vec<u16> {
        let (before, now) = (
            Snapshot::new(status(1000.0, [0, 0])),
            Snapshot::new(status(1001.0, [5, 50])),
        );
        let (rates, _) = now.since(&before);
        rows(&now.status, &rates, order)
            .iter()
            .map(|row| row.slot.slot)
            .collect()
    }

    #[test]
    fn rows_are_sorted_by_any_column() {
        let by = |column| Order {
            column,
            reversed: false,
        };
        assert_eq!(slots(by(Column::Slot)), [0, 1]);
        assert_eq!(
            slots(Order {
                column: Column::Slot,
                reversed: true
            }),
            [1, 0]
        );
        assert_eq!(slots(by(Column::Requests)), [1, 0], "the busiest first");
        assert_eq!(slots(by(Column::Memory)), [1, 0]);
        assert_eq!(slots(by(Column::State)), [0, 1], "equal ones by slot");
        assert_eq!(by(Column::Slot).shifted(-1).column, Column::Oldest);
    }

    #[test]
    fn a_slot_without_a_worker_has_its_reason() {
        let mut status = status(1000.0, [0, 0]);
        status.slots[0].workers.clear();
        status.slots[0].held = true;
        let order = Order {
            column: Column::Slot,
            reversed: false,
        };
        let rows = rows(&status, &BTreeMap::new(), order);
        assert_eq!(
            (rows[0].state(), rows[0].cell(Column::Pid).as_str()),
            ("held", "-")
        );
        assert_eq!(rows[1].cell(Column::Memory), "8.0M");
        for column in Column::ALL {
            assert!(
                rows[1].cell(column).len() <= column.heading().1,
                "{column:?}"
            );
        }
    }
}
