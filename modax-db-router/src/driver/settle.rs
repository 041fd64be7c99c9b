//! Asking what became of a commit; the rule itself is in [`crate::commit`].

use std::time::{Duration, Instant};

use super::acquire::Whom;
use super::evidence::columns;
use super::{Shared, now};
use crate::commit::{Evidence, Settled, UnknownBecause, Verdict, judge, read_status};
use crate::error::AcquireError;
use crate::lsn::{Lsn, WriteToken};

/// Pause before asking again about a transaction in progress.
const PAUSE: Duration = Duration::from_millis(10);

/// Longest wait for one answer; the primary may be a frozen one.
const ANSWER: Duration = Duration::from_secs(2);

impl Shared {
    /// `Some` if it was committed, with a token that covers it where that could be had; `None` if it was not.
    pub(crate) async fn settle(
        &self,
        evidence: &Evidence,
        until: Instant,
    ) -> Result<Option<Option<WriteToken>>, UnknownBecause> {
        let mut at_the_end = UnknownBecause::Deadline;
        while now() < until {
            // Only a primary that is accepted tells which history counts.
            let acquired = match self.acquire(until, Whom::Settling).await {
                Ok(acquired) => acquired,
                Err(AcquireError::Closed) => return Err(UnknownBecause::Closed),
                Err(_) => {
                    tokio::time::sleep(PAUSE.min(until.saturating_duration_since(now()))).await;
                    continue;
                }
            };
            let (xid, believe_committed) = match judge(evidence, self.topology().lineage()) {
                Verdict::NotCommitted => {
                    acquired.checkout.give_back_read();
                    return Ok(None);
                }
                Verdict::Unknown(because) => {
                    acquired.checkout.give_back_read();
                    return Err(because);
                }
                Verdict::Ask { xid, believe_committed } => (xid, believe_committed),
            };
            let question = format!("SELECT pg_xact_status('{xid}'::xid8), pg_current_wal_insert_lsn()");
            let wait = ANSWER.min(until.saturating_duration_since(now()));
            let ask = async {
                let answer = acquired.checkout.client().simple_query(&question).await;
                if acquired.checkout.is_fresh().await { Some(answer) } else { None }
            };
            let answer = tokio::time::timeout(wait, ask).await.ok().flatten();
            // The floors were those of that life of the primary: its answer counts if it still is the primary.
            let still = self.may_commit(acquired.node, &acquired.incarnation);
            let settled = match answer {
                Some(Ok(messages)) if still => {
                    acquired.checkout.give_back_read();
                    let Some([status, position]) = columns::<2>(&messages) else { continue };
                    let token = position
                        .and_then(|text| text.parse().ok())
                        .map(Lsn::end_of_record)
                        .map(|lsn| WriteToken::new(acquired.incarnation.system, acquired.incarnation.timeline, lsn));
                    (read_status(status.as_deref(), believe_committed), token)
                }
                Some(Err(error)) if error.code().is_some_and(|code| code.code() == "22023") && still => {
                    acquired.checkout.give_back_read();
                    return Err(UnknownBecause::NotOnRecord);
                }
                Some(_) | None => {
                    self.suspect(acquired.node);
                    (Settled::InProgress, None)
                }
            };
            match settled {
                (Settled::Committed, token) => return Ok(Some(token)),
                (Settled::NotCommitted, _) => return Ok(None),
                (Settled::Unknown(because), _) => return Err(because),
                (Settled::InProgress, _) => at_the_end = UnknownBecause::StillInProgress,
            }
            tokio::time::sleep(PAUSE.min(until.saturating_duration_since(now()))).await;
        }
        Err(at_the_end)
    }
}
