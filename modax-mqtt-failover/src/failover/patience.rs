//! How long a broker is waited for.

use std::time::{Duration, Instant};

use super::{FIRST_DEADLINE, Failover, HELD, LAST_DEADLINE};
use crate::breaker::{Breaker, Failure};

/// The deadline of one that was silent, while another one is to be asked again soon.
const BRIEF: Duration = Duration::from_secs(2);

impl Failover {
    /// Dial and CONNACK deadline of a try that begins at `since`: doubled with every full round of failures.
    ///
    /// One that was silent gets no more than 2 s while another one refuses quickly, which may be back at any time and is
    /// not to wait for one that hangs; but 4 s each second time, 8 s each fourth and so on, for it may only be slow.
    pub(super) fn patience(&self, since: Instant, broker: usize) -> Duration {
        let brokers = u32::try_from(self.breakers.len()).unwrap_or(u32::MAX).max(1);
        let rounds = self.failures.checked_div(brokers).unwrap_or(0).min(16);
        let patience = FIRST_DEADLINE.saturating_mul(2_u32.saturating_pow(rounds)).min(LAST_DEADLINE);
        let failed = |breaker: &Breaker| breaker.demoted(since).map(|(failure, _)| failure);
        let is_quick = |(index, other): (usize, &Breaker)| {
            let soon = other.ready_at(since).is_some_and(|at| at <= since + self.backoff.cap);
            index != broker && soon && failed(other).is_some_and(|failure| failure != Failure::Silent)
        };
        match self.breakers.get(broker).filter(|breaker| failed(breaker) == Some(Failure::Silent)) {
            Some(silent) if self.breakers.iter().enumerate().any(is_quick) => {
                let times = 2_u32.saturating_pow(silent.failures().trailing_zeros());
                patience.min(BRIEF.saturating_mul(times))
            }
            _ => patience,
        }
    }

    pub(super) fn greeting_patience(&self, since: Instant, broker: usize, planned: bool) -> Duration {
        let patience = self.patience(since, broker);
        if self.scouting && !planned { patience.max(HELD) } else { patience }
    }
}
