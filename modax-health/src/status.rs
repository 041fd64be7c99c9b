//! What a check says, how much it matters, and who else sees the same thing.

use std::fmt;

/// How well something is. Ordered: the worst of several is their maximum.
///
/// A closed set: the three values are the wire contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Works.
    Healthy,
    /// Works with less than it should have; still worth sending requests to.
    Degraded,
    /// Does not work.
    Unhealthy,
}

impl Status {
    /// The lower-case word of the wire formats.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
        }
    }

    /// The worse of the two: the join of the order. Commutative, associative, idempotent.
    #[must_use]
    pub const fn join(self, other: Self) -> Self {
        if (self as u8) >= (other as u8) { self } else { other }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether the service can do its work without what a check looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Need {
    /// Its loss is the service's loss. The default, because forgetting to say so must not hide an outage.
    #[default]
    Required,
    /// Its loss degrades and no more.
    Optional,
}

impl Need {
    /// What a check's status means for the whole: an optional one counts as degraded at most.
    #[must_use]
    pub const fn weigh(self, status: Status) -> Status {
        match (self, status) {
            (Self::Optional, Status::Unhealthy) => Status::Degraded,
            _ => status,
        }
    }
}

/// Whether the other instances of this service look at the same thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Scope {
    /// Only this instance is affected: taking it out of rotation helps, another one serves. The default.
    #[default]
    Private,
    /// All instances are affected alike (the database, the broker cluster): taking one out takes all out, which turns
    /// a partial outage into a total one. Such a check degrades; it never unreadies.
    Shared,
}

#[cfg(test)]
mod tests {
    use super::{Need, Status};
    use Status::{Degraded, Healthy, Unhealthy};

    const ALL: [Status; 3] = [Healthy, Degraded, Unhealthy];

    #[test]
    fn joining_is_commutative_associative_idempotent_and_healthy_is_its_unit() {
        for a in ALL {
            assert_eq!(a.join(a), a);
            assert_eq!(a.join(Healthy), a);
            for b in ALL {
                assert_eq!(a.join(b), b.join(a));
                assert_eq!(a.join(b), a.max(b));
                for c in ALL {
                    assert_eq!(a.join(b).join(c), a.join(b.join(c)));
                }
            }
        }
    }

    #[test]
    fn an_optional_failure_is_never_more_than_degraded() {
        for status in ALL {
            assert!(Need::Optional.weigh(status) <= Degraded);
            assert_eq!(Need::Required.weigh(status), status);
        }
    }
}
