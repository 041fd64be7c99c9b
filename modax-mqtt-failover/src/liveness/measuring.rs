//! How long answers take, and what that says.

use std::time::{Duration, Instant};

use super::{Liveness, Output};

impl Liveness {
    /// A probe that went out after a packet was answered before it: the broker lives and does not acknowledge.
    pub(super) fn compare(&mut self, now: Instant, probed: Instant) {
        let overtaken = |since: Instant| since <= probed && since.max(self.grace) + self.deadline() <= now;
        if self.slow.is_none() && self.waiting.is_some_and(overtaken) {
            self.slow = now.checked_sub(self.deadline().min(self.slow_after() / 10)).or(Some(now));
            self.outputs.push_back(Output::Slow);
        }
    }

    pub(super) fn measure_since(&mut self, now: Instant, sent: Instant) {
        if self.resumed.is_none_or(|resumed| resumed < sent) {
            self.measure(now, now.saturating_duration_since(sent));
        }
    }

    /// RFC 6298, 2.2 and 2.3; and the slowest.
    fn measure(&mut self, now: Instant, took: Duration) {
        self.slowest.measure(now, took);
        self.rtt = Some(match self.rtt {
            None => (took, took / 2),
            Some((srtt, rttvar)) => {
                let error = srtt.abs_diff(took);
                ((srtt * 7 + took) / 8, (rttvar * 3 + error) / 4)
            }
        });
    }

    /// A broker that falls silent right after its CONNACK has given no other measure. One that took long over it may
    /// have been restoring our session, which says nothing of its next answers: then the first deadline stays.
    pub(super) fn learn_from_connack(&mut self, now: Instant, took: Duration) {
        if self.rtt.is_none() && took.saturating_mul(5) <= self.config.first {
            self.measure(now, took);
        }
    }
}
