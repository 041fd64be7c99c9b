//! The tables and the lease, as simply as possible.

use std::{collections::BTreeSet, time::Duration};

use modax_txn::{
    MessageId, OutgoingMessage,
    relay::{Fetched, Input, Outcome, Settlement, Statement},
};

use crate::world::{Flaw, config};

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) id: MessageId,
    pub(crate) seq: u64,
    pub(crate) key: String,
    pub(crate) version: u32,
    pub(crate) expires_at: Option<u64>,
    pub(crate) status: Status,
    pub(crate) attempts: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Pending,
    Delivered,
    Expired(u64),
    Rejected(u64),
    Parked,
}

#[derive(Debug, Default)]
pub(crate) struct Database {
    pub(crate) rows: Vec<Row>,
    pub(crate) next_seq: u64,
    pub(crate) epoch: u64,
    pub(crate) token: u64,
    pub(crate) lease_until: u64,
    pub(crate) is_up: bool,
    /// For the flawed reader.
    pub(crate) cursor: u64,
}

impl Database {
    pub(crate) fn execute(&mut self, now: u64, flaw: Flaw, token: u64, statement: Statement) -> Input {
        let lease = u64::try_from(config().lease.as_micros()).unwrap_or(u64::MAX);
        let database = self;
        let no_fence = flaw == Flaw::NoFence;
        let holds = |database: &Database, epoch: u64| no_fence || (database.epoch == epoch && database.token == token);
        match statement {
            Statement::Claim => {
                if database.lease_until > now && database.token != token {
                    return Input::ClaimRefused { left: Duration::from_micros(database.lease_until - now) };
                }
                database.epoch += 1;
                database.token = token;
                database.lease_until = now + lease;
                Input::Claimed { epoch: database.epoch }
            }
            Statement::Renew { epoch } => {
                let held = holds(database, epoch);
                if held {
                    database.lease_until = now + lease;
                }
                Input::Renewed { held }
            }
            Statement::Record { epoch, settlements } => {
                let held = holds(database, epoch);
                if held {
                    database.lease_until = now + lease;
                    for settlement in &settlements {
                        database.record(epoch, settlement);
                    }
                }
                Input::Recorded { held }
            }
            Statement::Fetch { limit, exclude, full_keys } => {
                let hide_keys = flaw == Flaw::NoKeys;
                let by_cursor = flaw == Flaw::NumberCursor;
                Input::Fetched { messages: database.fetch(now, limit, &exclude, &full_keys, hide_keys, by_cursor) }
            }
            Statement::Sweep => {
                let mut expired = Vec::new();
                for row in &mut database.rows {
                    if row.status == Status::Parked && row.expires_at.is_some_and(|at| at <= now) {
                        row.status = Status::Expired(u64::MAX);
                        expired.push(row.id);
                    }
                }
                Input::Swept { expired, more: false }
            }
            Statement::Release { epoch } => {
                if holds(database, epoch) {
                    database.lease_until = 0;
                }
                Input::Released
            }
            _ => unreachable!("every statement is known here"),
        }
    }

    fn record(&mut self, epoch: u64, settlement: &Settlement) {
        let Some(row) = self.rows.iter_mut().find(|row| row.id == settlement.id && row.status == Status::Pending)
        else {
            return;
        };
        row.attempts = settlement.attempts;
        row.status = match settlement.outcome {
            Outcome::Delivered => Status::Delivered,
            Outcome::Expired => Status::Expired(epoch),
            Outcome::Rejected { .. } => Status::Rejected(epoch),
            Outcome::Parked { .. } => Status::Parked,
            Outcome::Retried { .. } => Status::Pending,
            _ => unreachable!("every outcome is known here"),
        };
    }

    fn fetch(
        &mut self,
        now: u64,
        limit: usize,
        exclude: &[MessageId],
        full_keys: &[String],
        hide_keys: bool,
        by_cursor: bool,
    ) -> Vec<Fetched> {
        let parked: BTreeSet<&str> =
            self.rows.iter().filter(|row| row.status == Status::Parked).map(|row| row.key.as_str()).collect();
        let mut rows: Vec<&Row> = self
            .rows
            .iter()
            .filter(|row| row.status == Status::Pending && !exclude.contains(&row.id))
            .filter(|row| !by_cursor || row.seq > self.cursor)
            .filter(|row| {
                row.expires_at.is_some_and(|at| at <= now)
                    || (!full_keys.contains(&row.key) && !parked.contains(row.key.as_str()))
            })
            .collect();
        rows.sort_by_key(|row| row.seq);
        rows.truncate(limit);
        let fetched = rows
            .iter()
            .map(|row| {
                let mut message = OutgoingMessage::new(row.id, "t");
                message.key = (!hide_keys).then(|| row.key.clone());
                message.expires_in = row.expires_at.map(|at| Duration::from_micros(at.saturating_sub(now)));
                Fetched { message, attempts: row.attempts, fault: None }
            })
            .collect();
        self.cursor = rows.last().map_or(self.cursor, |row| row.seq);
        fetched
    }
}
