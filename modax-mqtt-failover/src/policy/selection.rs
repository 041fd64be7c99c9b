//! Which broker next.

use crate::breaker::Failure;

/// How the next broker is chosen. The one that just failed always comes last: starting again at the head of the list
/// is how other clients spend minutes on a broker that hangs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Selection {
    order: Order,
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
        Self { order: Order::Priority }
    }

    /// The one after the broker used last.
    pub const fn round_robin() -> Self {
        Self { order: Order::RoundRobin }
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
