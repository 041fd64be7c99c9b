//! What is waited for, and when waiting ends.

use std::time::{Duration, Instant};

use super::{Liveness, Reason};

/// A packet that waits so many times longer than a slow broker may, while later ones are acknowledged, waits in vain.
const SKIPPED: u32 = 4;
/// And so many times longer, while packets come, whatever stands in line behind them: over a slow link that may be all that
/// was kept for a session.
const IN_LINE: u32 = 12;
/// Shortest time without any progress in writing that counts as a stall.
const SHORTEST_STALL: Duration = Duration::from_secs(1);

impl Liveness {
    /// What is awaited, and from when its deadline counts.
    pub(super) fn expectation(&self) -> Option<(Reason, Instant)> {
        let probe = self.probes.front().map(|sent| (Reason::ProbeUnanswered, *sent));
        let ack = self.waiting.filter(|_| self.slow.is_none()).map(|since| (Reason::AckOverdue, since));
        let (reason, since) = match (probe, ack) {
            (Some(probe), Some(ack)) => Some(if ack.1 <= probe.1 { ack } else { probe }),
            (probe, ack) => probe.or(ack),
        }?;
        Some((reason, since.max(self.heard).max(self.grace)))
    }

    pub(super) fn slow_at(&self) -> Option<Instant> {
        let since = self.waiting?;
        let (from, slow_after) = (since.max(self.grace), self.slow_after());
        if self.partial.is_large() {
            return Some(from.max(self.heard) + slow_after);
        }
        let waited = self.patient_since(self.waited);
        // Later packets are acknowledged and this one is not: its acknowledgement was lost, and will not come.
        let skipped = waited.max(self.passed) + slow_after * SKIPPED;
        Some(match self.slow {
            Some(known) => (from.max(self.acked) + slow_after).min(skipped).max(known + slow_after),
            None if self.acked_sent > since => skipped,
            None => waited + slow_after * IN_LINE,
        })
    }

    /// Where acknowledgements take seconds all the time, as over a slow link, that is no news of the broker.
    pub(super) fn slow_after(&self) -> Duration {
        let usual = self.rtt.map_or(Duration::ZERO, |(srtt, _)| srtt.saturating_mul(2));
        self.config.slow_after.max(usual).saturating_mul(self.leniency())
    }

    /// Packets come, and never the answer to a probe.
    pub(super) fn deaf_at(&self) -> Option<Instant> {
        let asked = self.probes.front().filter(|_| !self.partial.is_large())?;
        Some(self.patient_since(*asked) + self.slow_after() * IN_LINE)
    }

    /// From when the time counts in which an answer may stand in line: a reader that pauses now and then does not put it off.
    fn patient_since(&self, sent: Instant) -> Instant {
        sent.max(self.on_time).max(self.cleared)
    }

    pub(super) fn stall_at(&self) -> Option<Instant> {
        self.stalled.map(|since| since.max(self.grace) + (self.deadline() * 2).max(SHORTEST_STALL))
    }

    /// Silence of theirs after the probe interval, or of ours after half the keep-alive, asks for a probe. So does a verdict
    /// in vain where nothing waits for an answer, at once: who only reads hears bytes all the time, and would stay lenient for
    /// ever; and where the next broker hangs soon, too. And so does an acknowledgement that is overdue while other packets come:
    /// the answer stands in line with it, or overtakes it.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        let waiting = self.paused.is_some() || self.probe_due || !self.probes.is_empty();
        let is_owed = self.in_vain > 0 && self.waiting.is_none();
        let due = if is_owed { self.idle } else { self.heard + self.config.probe_interval };
        // Once a deadline at most: nothing that is heard makes it due in the past.
        let progress = self.grace.max(self.acked).max(self.probed);
        let overdue = self.waiting.filter(|_| self.slow.is_none()).map(|since| since.max(progress) + self.deadline());
        let theirs = overdue.map_or(due, |overdue| due.min(overdue));
        let theirs = (!waiting).then_some(theirs);
        [theirs, self.own_probe()].into_iter().flatten().min()
    }

    /// The broker was promised a packet within the keep-alive, whatever we hear, and whether or not we listen.
    pub(super) fn own_probe(&self) -> Option<Instant> {
        (!self.keep_alive.is_zero() && !self.probe_due).then(|| self.sent + self.keep_alive / 2)
    }
}
