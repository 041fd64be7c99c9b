//! One session takes over from another while both have a connection: the way back to a preferred broker.

use std::time::Instant;

use super::{End, Output, Session};
use crate::config::Config;

impl Session {
    /// A session on another broker, beside `old`, that wants what `old` wants. It sends no messages before it
    /// [takes over](Self::take_over).
    #[must_use]
    pub fn beside(config: &Config, old: &Self) -> Self {
        let mut session = Self::new(config);
        session.subscriptions = old.subscriptions.clone();
        session.last_broker = old.last_broker;
        session.generation = old.generation;
        session.next_id = old.next_id;
        session.resent = old.resent;
        session.presence.follow(&old.presence);
        session
    }

    /// Takes everything without an outcome from `old`, whose connection is gone, and sends it again first.
    pub fn take_over(&mut self, now: Instant, mut old: Self) {
        for (_, admitted) in old.unwritten.drain(..) {
            self.outputs.push_back(Output::Settled { admitted, attempts: 1, end: End::Broken });
        }
        self.outputs.extend(old.outputs.drain(..).filter(|output| !matches!(output, Output::Send(_))));
        // Its packet identifiers mean nothing here, and what it had received of a QoS 2 message is the other broker's.
        old.inflight.disconnect();
        old.inflight.forget_packet_ids();
        self.inflight = old.inflight;
        self.gate = old.gate;
        self.incoming.follow(&old.incoming);
        self.resent = self.resent.max(old.resent);
        self.pump(now);
    }
}
