//! How old a replica's data may be, without anybody's wall clock.
//!
//! The primary's position is sampled; a replica that has replayed a sample has all that was committed when that
//! sample's probe was *sent*, by our own monotonic clock. "Replayed equals received" would prove nothing: a standby
//! that is cut off satisfies it for ever.

use std::collections::VecDeque;
use std::time::Instant;

use crate::lsn::Lsn;

/// Samples kept. At the calm pace two minutes; a replica further behind has no age that anybody asks for.
const CAPACITY: usize = 128;

/// Positions of the primary over time.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    ring: VecDeque<(Instant, Lsn)>,
}

impl Samples {
    /// No samples.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that the primary, asked at `sent`, had written up to `position`.
    pub fn push(&mut self, sent: Instant, position: Lsn) {
        let position = position.end_of_record();
        if let Some((at, last)) = self.ring.back_mut() {
            if sent < *at || position < *last {
                return;
            }
            if position == *last {
                *at = sent;
                return;
            }
        }
        if self.ring.len() >= CAPACITY {
            self.thin();
        }
        self.ring.push_back((sent, position));
    }

    /// The newest moment at which the primary had nothing that `replayed` does not cover.
    #[must_use]
    pub fn fresh_at(&self, replayed: Lsn) -> Option<Instant> {
        self.ring.iter().rev().find(|(_, position)| *position <= replayed).map(|&(sent, _)| sent)
    }

    /// The highest position seen.
    #[must_use]
    pub fn newest(&self) -> Option<Lsn> {
        self.ring.back().map(|&(_, position)| position)
    }

    /// Forgets what lies beyond `switch`: it is not part of the history any more. Without one, forgets all.
    pub fn cut(&mut self, switch: Option<Lsn>) {
        self.ring.retain(|&(_, position)| switch.is_some_and(|switch| position <= switch));
    }

    /// Drops every second one, but not the newest: old ages need no fine steps.
    fn thin(&mut self) {
        let newest = self.ring.back().copied();
        let mut keep = false;
        self.ring.retain(|_| {
            keep = !keep;
            keep
        });
        if self.ring.back().copied() != newest {
            self.ring.extend(newest);
        }
    }
}
