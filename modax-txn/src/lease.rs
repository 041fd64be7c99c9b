//! How long this relay may believe that it owns the outbox.
//!
//! The row in the database decides who owns; its times are the database's. Here is only the local, cautious view: the lease is
//! counted from before the statement that renewed it was sent, and a tenth is kept back for clocks that run at different rates.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) epoch: u64,
    until: Instant,
    renew_at: Instant,
}

impl Lease {
    pub(crate) fn new(epoch: u64, sent_at: Instant, length: Duration) -> Self {
        Self { epoch, until: sent_at + length.saturating_sub(length / 10), renew_at: sent_at + length / 3 }
    }

    pub(crate) fn renewed(&mut self, sent_at: Instant, length: Duration) {
        *self = Self::new(self.epoch, sent_at, length);
    }

    /// Whether messages may be published at `now`.
    pub(crate) fn is_certain(&self, now: Instant) -> bool {
        now < self.until
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now >= self.renew_at
    }

    /// Nothing may be published from here on without a renewal.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    pub(crate) fn renew_at(&self) -> Instant {
        self.renew_at
    }
}
