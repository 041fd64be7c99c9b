//! What an earlier run left in the disk queue: it is sent first, unasked, and its outcomes are told as well.
//!
//! The client gives no receipt for a message of an earlier run. What became of it is known from outside: it is gone
//! from the queue, and the client counts what it gave up.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use modax_mqtt_failover::disk;
use serde_json::{Value, json};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::output;

/// Between two looks at whether the queue has become empty.
const LOOK_EVERY: Duration = Duration::from_millis(50);

struct Waiting {
    sequence: u64,
    topic: String,
    expires_at_unix_ms: Option<u64>,
}

/// The messages of earlier runs whose lines are still owed.
pub(super) struct Replay {
    directory: PathBuf,
    waiting: Vec<Waiting>,
    look: Interval,
}

/// Messages that the client counts as given up and that are none of this run.
#[derive(Clone, Copy)]
pub(super) struct GivenUp {
    pub(super) expired: u64,
    pub(super) rejected: u64,
}

impl Replay {
    /// Looks into the queue before the client opens it; `None` when nothing is left there.
    pub(super) async fn find(directory: &Path) -> io::Result<Option<Self>> {
        let directory = directory.to_owned();
        let found = tokio::task::spawn_blocking(move || Self::read(directory)).await;
        let (directory, waiting) = found.unwrap_or_else(|error| Err(io::Error::other(error)))?;
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok((!waiting.is_empty()).then_some(Self { directory, waiting, look }))
    }

    fn read(directory: PathBuf) -> io::Result<(PathBuf, Vec<Waiting>)> {
        if !directory.exists() {
            return Ok((directory, Vec::new()));
        }
        let survey = disk::inspect(&directory)?;
        let bytes = survey.damaged_bytes();
        if !survey.is_sound() {
            output::event("queue_damaged", json!({ "queue": directory.display().to_string(), "bytes": bytes }));
        }
        if !survey.waiting.is_empty() {
            output::event("replaying", json!({ "messages": survey.waiting.len() }));
        }
        let waiting = survey.waiting.into_iter().map(|message| Waiting {
            sequence: message.sequence,
            topic: message.topic.to_string(),
            expires_at_unix_ms: message.expires_at_unix_ms,
        });
        Ok((directory, waiting.collect()))
    }

    /// Returns when it is time to look again. Cancel safe.
    pub(super) async fn time_to_look(&mut self) {
        self.look.tick().await;
    }

    /// The lines once nothing is left in the queue.
    pub(super) fn all_gone(self, given_up: GivenUp) -> Vec<Value> {
        self.lines(&BTreeSet::new(), given_up)
    }

    /// The lines once the client has let go of the queue.
    pub(super) async fn at_the_end(self, given_up: GivenUp) -> Vec<Value> {
        let directory = self.directory.clone();
        let left = tokio::task::spawn_blocking(move || disk::inspect(directory)).await;
        match left.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(survey) => {
                let left = survey.waiting.iter().map(|message| message.sequence).collect();
                self.lines(&left, given_up)
            }
            Err(error) => {
                let error = format!("the queue could not be read again: {error}");
                self.waiting.iter().map(|message| message.line("unknown", Some(&error))).collect()
            }
        }
    }

    fn lines(&self, left: &BTreeSet<u64>, given_up: GivenUp) -> Vec<Value> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis());
        let is_late = |message: &Waiting| {
            message.expires_at_unix_ms.is_some_and(|at| u128::from(at) <= now) && !left.contains(&message.sequence)
        };
        let late = self.waiting.iter().filter(|message| is_late(message)).count();
        let all_late_expired = usize::try_from(given_up.expired).is_ok_and(|expired| expired == late);
        let outcome = |message: &Waiting| {
            if left.contains(&message.sequence) {
                return message.line("undelivered", None);
            }
            match (given_up.rejected, given_up.expired, is_late(message)) {
                (0, 0, _) | (0, _, false) => message.line("acked", None),
                (0, _, true) if all_late_expired => message.line("expired", None),
                _ => message.line("unknown", Some("it was acknowledged or given up: only the counts are known")),
            }
        };
        self.waiting.iter().map(outcome).collect()
    }
}

impl Waiting {
    fn line(&self, outcome: &str, error: Option<&str>) -> Value {
        let mut line = json!({ "replayed": true, "sequence": self.sequence, "topic": self.topic, "outcome": outcome });
        if outcome == "undelivered" {
            line["on_disk"] = json!(true);
        }
        if let Some(error) = error {
            line["error"] = json!(error);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(expiries: &[Option<u64>], left: &[u64], expired: u64, rejected: u64) -> Vec<String> {
        let waiting = expiries.iter().zip(0..).map(|(at, sequence)| Waiting {
            sequence,
            topic: "t".to_owned(),
            expires_at_unix_ms: *at,
        });
        let replay = Replay { directory: PathBuf::new(), waiting: waiting.collect(), look: interval(LOOK_EVERY) };
        let lines = replay.lines(&left.iter().copied().collect(), GivenUp { expired, rejected });
        lines.iter().map(|line| line["outcome"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn an_outcome_is_told_only_where_it_is_certain() {
        let expiries = [None, Some(1), Some(u64::MAX), Some(2)];
        assert_eq!(outcomes(&expiries, &[2], 0, 0), ["acked", "acked", "undelivered", "acked"]);
        assert_eq!(outcomes(&expiries, &[], 2, 0), ["acked", "expired", "acked", "expired"]);
        assert_eq!(outcomes(&expiries, &[3], 1, 0), ["acked", "expired", "acked", "undelivered"]);
        assert_eq!(outcomes(&expiries, &[], 1, 0), ["acked", "unknown", "acked", "unknown"]);
        assert_eq!(outcomes(&expiries, &[0], 0, 1), ["undelivered", "unknown", "unknown", "unknown"]);
    }
}
