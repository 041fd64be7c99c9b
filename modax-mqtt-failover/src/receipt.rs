//! The promise of an outcome that `publish` hands out.

use std::{fmt, sync::Arc};

use tokio::sync::oneshot::{self, error::TryRecvError};

use crate::message::{MessageId, Outcome};

/// Of a client that is gone without a word.
const UNANSWERED: Outcome = Outcome::Undelivered { maybe_delivered: true };

/// Stands for one admitted message until its outcome is known. Dropping it changes nothing for the message. Of several
/// outcomes that become known at once the last is told first, so that who waits for the oldest is woken once: none says that
/// those before it have been told.
#[must_use = "without it nobody learns whether the message arrived; use `drop` where that is meant"]
pub struct Receipt {
    id: MessageId,
    outcome: oneshot::Receiver<Outcome>,
    /// As [`try_outcome`](Self::try_outcome) found it: the channel gives it once.
    known: Option<Outcome>,
}

impl Receipt {
    pub(crate) fn new(id: MessageId) -> (oneshot::Sender<Outcome>, Self) {
        let (sender, outcome) = oneshot::channel();
        (sender, Self { id, outcome, known: None })
    }

    /// The message's identity within this client. Messages that [`ShedNewest`](crate::WhenFull::ShedNewest) does not let in have
    /// none, and all say `u64::MAX` in its place.
    #[must_use]
    pub const fn id(&self) -> MessageId {
        self.id
    }

    /// Waits for the outcome. There always is one: a message stays in the queue until a broker has it, it expires, it
    /// is shed, or the client is closed. When no broker comes back and the message never expires, that can be long.
    ///
    /// # Cancel safety
    /// Dropping the future drops the receipt; the message itself stays on its way.
    pub async fn acked(self) -> Outcome {
        match self.known {
            Some(outcome) => outcome,
            None => self.outcome.await.unwrap_or(UNANSWERED),
        }
    }

    /// The outcome, if it is known; the same at each later call, and of [`acked`](Self::acked).
    pub fn try_outcome(&mut self) -> Option<Outcome> {
        if self.known.is_none() {
            self.known = match self.outcome.try_recv() {
                Ok(outcome) => Some(outcome),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Closed) => Some(UNANSWERED),
            };
        }
        self.known.clone()
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A message that an earlier process had admitted to the queue on disk, and of which no outcome was known when this one
/// opened it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Recovered {
    /// Where it goes.
    pub topic: Arc<str>,
    /// Its identity in the queue, and the promise of its outcome. Latency and attempts count from this start.
    pub receipt: Receipt,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_outcome_that_was_seen_stays_the_same_however_often_it_is_asked_for() {
        let (outcome, mut receipt) = Receipt::new(MessageId::new(1));
        assert_eq!(receipt.try_outcome(), None);
        outcome.send(Outcome::Shed).unwrap();
        assert_eq!([receipt.try_outcome(), receipt.try_outcome()], [Some(Outcome::Shed), Some(Outcome::Shed)]);
        assert_eq!(receipt.acked().await, Outcome::Shed);

        let (gone, mut receipt) = Receipt::new(MessageId::new(2));
        drop(gone);
        assert_eq!([receipt.try_outcome(), receipt.try_outcome()], [Some(UNANSWERED), Some(UNANSWERED)]);
        assert_eq!(receipt.acked().await, UNANSWERED);
    }
}
