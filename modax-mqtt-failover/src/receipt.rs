//! The promise of an outcome that `publish` hands out.

use std::{fmt, sync::Arc};

use tokio::sync::oneshot::{self, error::TryRecvError};

use crate::message::{MessageId, Outcome};

/// Stands for one admitted message until its outcome is known. Dropping it changes nothing for the message.
#[must_use = "without it nobody learns whether the message arrived; use `drop` where that is meant"]
pub struct Receipt {
    id: MessageId,
    outcome: oneshot::Receiver<Outcome>,
}

impl Receipt {
    pub(crate) fn new(id: MessageId) -> (oneshot::Sender<Outcome>, Self) {
        let (sender, outcome) = oneshot::channel();
        (sender, Self { id, outcome })
    }

    /// The message's identity within this client.
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
        self.outcome.await.unwrap_or(Outcome::Undelivered { maybe_delivered: true })
    }

    /// The outcome, if it is known; the first call that returns one takes it.
    pub fn try_outcome(&mut self) -> Option<Outcome> {
        match self.outcome.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Closed) => Some(Outcome::Undelivered { maybe_delivered: true }),
        }
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
