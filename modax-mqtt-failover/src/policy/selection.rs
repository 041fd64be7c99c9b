//! Which broker next.

use std::time::Duration;

use crate::{breaker::Failure, config::ConfigError};

/// How the next broker is chosen. The one that just failed always comes last: starting again at the head of the list
/// is how other clients spend minutes on a broker that hangs.
///
/// ```
/// use modax_mqtt_failover::{Selection, policy::selection::Candidate};
///
/// // Broker 1 is in use, and all of them work.
/// let order = |selection: Selection| {
///     let mut candidates = [0, 1, 2].map(|index| Candidate { index, demoted: None });
///     selection.rank(&mut candidates, Some(1), 3);
///     candidates.map(|candidate| candidate.index)
/// };
/// assert_eq!(order(Selection::priority()), [0, 1, 2]);
/// assert_eq!(order(Selection::round_robin()), [2, 0, 1]);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Selection {
    order: Order,
    pub(crate) failback_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Order {
    #[default]
    Priority,
    RoundRobin,
}

/// What is known of one broker when the next is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Place in the list.
    pub index: usize,
    /// Its last failure while that still demotes it, with a stamp: larger is later.
    pub demoted: Option<(Failure, u64)>,
}

impl Selection {
    /// In the order of the list; the default.
    pub const fn priority() -> Self {
        Self { order: Order::Priority, failback_after: None }
    }

    /// The one after the broker used last.
    pub const fn round_robin() -> Self {
        Self { order: Order::RoundRobin, failback_after: None }
    }

    /// Goes back to a more preferred broker that has been reachable for this long without a break; default: never,
    /// because a client whose broker works has no reason of its own to move. Set it where it matters that all clients
    /// end up on the same broker again, as with independent brokers without a bridge between them.
    ///
    /// A connection under the identity `<client id>~failback` proves that the broker is reachable. Each return that did
    /// not last (ten times this long, and at least a minute) doubles the time, from 1 s at least up to 64 times. Has no meaning for [`round_robin`](Self::round_robin).
    pub const fn failback_after(mut self, reachable: Duration) -> Self {
        self.failback_after = Some(reachable);
        self
    }

    pub(crate) fn check(self) -> Result<(), ConfigError> {
        let error = |limit| Err(ConfigError::OutOfRange { field: "selection.failback_after", limit });
        match (self.order, self.failback_after) {
            (Order::RoundRobin, Some(_)) => error("only with Selection::priority: in turn, no broker is preferred"),
            (Order::Priority, Some(after)) if after > Duration::from_secs(86_400) => error("at most a day"),
            (Order::Priority, Some(_)) | (_, None) => Ok(()),
        }
    }

    /// Puts `candidates` in the order in which they are to be tried. `last` is the broker used or tried last, `count`
    /// the length of the list.
    pub fn rank(&self, candidates: &mut [Candidate], last: Option<usize>, count: usize) {
        let distance = |index: usize| match (self.order, last) {
            (Order::Priority, _) | (Order::RoundRobin, None) => index,
            (Order::RoundRobin, Some(last)) => {
                let behind = index.saturating_add(count).saturating_sub(last).saturating_sub(1);
                behind.checked_rem(count).unwrap_or(0)
            }
        };
        candidates.sort_by_key(|candidate| (candidate.demoted, distance(candidate.index)));
    }
}
