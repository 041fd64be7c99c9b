//! Who may be written: the one place where the monitor's state changes.

use super::{
    BLIND_AFTER, Event, FAST_FOR, Floor, HeadVerdict, Incarnation, Instant, Leader, Lsn, Monitor, Output, ProbeFailure,
    Refusal, SLOW_DOUBT, WritesClosed, refuse,
};
use std::time::Duration;

impl Monitor {
    /// Decides again, from all that is known.
    pub(super) fn decide(&mut self, now: Instant) {
        let before = self.closed;
        let closed = self.decide_heads(now);
        self.closed = match closed {
            None if self.paused => Some(WritesClosed::Paused),
            None if self.leader_drains() => Some(WritesClosed::Draining),
            other => other,
        };
        if self.closed == Some(WritesClosed::Draining)
            && before != self.closed
            && let Some(watch) = self.leader.as_ref().and_then(|leader| self.watches.get(leader.node))
        {
            self.outputs.push_back(Output::Event(Event::Draining { node: watch.id.clone() }));
        }
        let doubtful = self.closed.is_some_and(|why| why != WritesClosed::Paused) || self.leader_failed();
        match (doubtful, self.doubt_since) {
            (true, None) => self.doubt_since = Some(now),
            (false, Some(_)) => self.doubt_since = None,
            (true, Some(_)) | (false, None) => {}
        }
    }

    fn decide_heads(&mut self, now: Instant) -> Option<WritesClosed> {
        // The first primary is taken on trust; so everybody is heard first.
        if self.fence.lineage().current().is_none() && !self.watches.iter().all(super::Watch::is_heard) {
            return Some(WritesClosed::NoPrimary);
        }
        let heads = self.live_heads();
        match heads.as_slice() {
            [] => {
                self.lose_leader();
                Some(self.why_nobody())
            }
            &[head] => self.decide_single(now, head),
            many => Some(self.decide_contest(now, many)),
        }
    }

    /// Servers out of recovery that answer and are not refused. In a contest one refusal to a probe that was sent after
    /// the newest of them appeared is enough to be out: the other one's promotion is proved. Silence is not: it takes
    /// `fall` of it, because a busy server that lives must not be taken for a dead one.
    fn live_heads(&self) -> Vec<usize> {
        let heads: Vec<(usize, Instant)> = self
            .watches
            .iter()
            .enumerate()
            .filter(|(_, watch)| watch.failures < self.pace.fall)
            .filter(|(_, watch)| !matches!(watch.verdict, None | Some(HeadVerdict::Refused(_))))
            .filter_map(|(node, watch)| watch.head_since.map(|(_, since)| (node, since)))
            .collect();
        let newest = heads.iter().map(|&(_, since)| since).max();
        let contested = heads.len() > 1;
        heads
            .into_iter()
            .filter(|&(node, _)| {
                let failed = self.watches.get(node).and_then(|watch| watch.failure);
                let refused = |(why, sent)| why != ProbeFailure::TimedOut && Some(sent) >= newest;
                !(contested && failed.is_some_and(refused))
            })
            .map(|(node, _)| node)
            .collect()
    }

    fn decide_single(&mut self, now: Instant, head: usize) -> Option<WritesClosed> {
        if !self.split.is_empty() {
            if !self.split_is_over(head) {
                self.lose_leader();
                return Some(WritesClosed::SplitBrain);
            }
            self.split.clear();
        }
        let Some(watch) = self.watches.get_mut(head) else { return Some(WritesClosed::NoPrimary) };
        let Some((incarnation, _)) = watch.head_since else { return Some(WritesClosed::NoPrimary) };
        match watch.verdict {
            Some(HeadVerdict::Same) => {
                self.confirm_leader(now, head, incarnation);
                None
            }
            Some(HeadVerdict::First | HeadVerdict::Restarted | HeadVerdict::Successor) => {
                self.follow(now, head, incarnation);
                None
            }
            Some(HeadVerdict::Rival) => {
                watch.verdict = Some(HeadVerdict::Refused(Refusal::Fork));
                refuse(watch, head, incarnation, Refusal::Fork, &mut self.outputs);
                self.lose_leader();
                Some(WritesClosed::StalePrimary)
            }
            Some(HeadVerdict::Refused(_)) | None => Some(WritesClosed::NoPrimary),
        }
    }

    /// Several heads at once, or so it seems: whoever was not asked since the newest appeared is asked again.
    fn decide_contest(&mut self, now: Instant, heads: &[usize]) -> WritesClosed {
        let newest = heads
            .iter()
            .filter_map(|&node| self.watches.get(node))
            .filter_map(|watch| watch.head_since.map(|(_, since)| since))
            .max();
        let mut confirmed = true;
        for &node in heads {
            let Some(watch) = self.watches.get_mut(node) else { continue };
            let is_newest = watch.head_since.map(|(_, since)| since) == newest;
            let asked_since = watch.seen.as_ref().map(|seen| seen.sent) >= newest;
            if !(is_newest || asked_since) {
                confirmed = false;
                watch.hurry(now, self.pace.doubt);
            }
        }
        if !confirmed && self.split.is_empty() {
            return WritesClosed::Unconfirmed;
        }
        if self.split.is_empty() {
            let ids = heads.iter().filter_map(|&node| self.watches.get(node)).map(|watch| watch.id.clone()).collect();
            self.outputs.push_back(Output::Event(Event::SplitBrain { nodes: ids }));
        }
        for &node in heads {
            if self.split.insert(node) {
                self.outputs.push_back(Output::Sever { node });
            }
        }
        WritesClosed::SplitBrain
    }

    /// A split brain is over when every other head was seen to have given up, or is out of reach and on an older
    /// timeline of the same cluster than the one that is left. A newer one out of reach may still be writing.
    fn split_is_over(&self, head: usize) -> bool {
        let own = self.watches.get(head).and_then(|watch| watch.head_since).map(|(incarnation, _)| incarnation);
        self.split.iter().filter(|&&node| node != head).all(|&node| {
            let Some(watch) = self.watches.get(node) else { return true };
            let Some((theirs, _)) = watch.head_since else { return true };
            let refused = matches!(watch.verdict, Some(HeadVerdict::Refused(_)));
            let older = own.is_some_and(|own| own.system == theirs.system && theirs.timeline < own.timeline);
            refused || older
        })
    }

    fn confirm_leader(&mut self, now: Instant, head: usize, incarnation: Incarnation) {
        let last_good = self.watches.get(head).and_then(|watch| watch.seen.as_ref()).map_or(now, |seen| seen.sent);
        self.sample(head);
        let regained = match self.leader.as_mut() {
            Some(leader) if leader.node == head && leader.incarnation == incarnation => {
                let outage = leader.lost.then(|| now.saturating_duration_since(leader.last_good));
                leader.last_good = last_good;
                leader.lost = false;
                outage
            }
            Some(_) | None => {
                self.leader = Some(Leader { node: head, incarnation, last_good, lost: false });
                None
            }
        };
        if let (Some(outage), Some(watch)) = (regained, self.watches.get(head)) {
            let (from, to) = (watch.id.clone(), watch.id.clone());
            let timeline = incarnation.timeline;
            self.outputs.push_back(Output::Event(Event::FailedOver { from, to, timeline, outage, cut_bytes: Some(0) }));
        }
    }

    /// Takes that server's life as the newest of the current history.
    fn follow(&mut self, now: Instant, head: usize, incarnation: Incarnation) {
        let Some(watch) = self.watches.get_mut(head) else { return };
        let Some(seen) = watch.seen.as_ref() else { return };
        let outage = self.leader.as_ref().map(|old| now.saturating_duration_since(old.last_good));
        let blind = outage.is_some_and(|outage| outage > BLIND_AFTER);
        self.fence.adopt(&watch.id, &seen.observation, &watch.record, blind);
        let (to, last_good, timeline) = (watch.id.clone(), seen.sent, incarnation.timeline);
        watch.verdict = Some(HeadVerdict::Same);
        let floor = self.fence.lineage().current().map_or(Floor::Unknown, |life| life.floor);
        let cut_bytes = self.cut_samples(floor);
        let event = match self.leader.take() {
            None => Event::PrimaryFound { node: to, timeline },
            Some(old) => {
                let from = self.watches.get(old.node).map_or_else(|| to.clone(), |watch| watch.id.clone());
                if old.node != head {
                    self.outputs.push_back(Output::Sever { node: old.node });
                }
                Event::FailedOver { from, to, timeline, outage: outage.unwrap_or_default(), cut_bytes }
            }
        };
        self.outputs.push_back(Output::Event(event));
        self.leader = Some(Leader { node: head, incarnation, last_good, lost: false });
        self.sample(head);
        for index in 0..self.watches.len() {
            if index != head {
                self.judge_again(index);
            }
        }
    }

    /// Bytes that were seen and are cut off; `None` if that is not known.
    fn cut_samples(&mut self, floor: Floor) -> Option<u64> {
        let newest = self.samples.newest();
        match floor {
            Floor::At(at) => {
                self.samples.cut(Some(at));
                newest.map(|newest: Lsn| newest.bytes_since(at))
            }
            Floor::Clean => Some(0),
            Floor::Unknown => {
                self.samples.cut(None);
                None
            }
        }
    }

    fn sample(&mut self, head: usize) {
        if let Some(seen) = self.watches.get(head).and_then(|watch| watch.seen.as_ref())
            && let Some(position) = seen.observation.position()
        {
            self.samples.push(seen.sent, position);
        }
    }

    fn lose_leader(&mut self) {
        let Some(leader) = self.leader.as_mut().filter(|leader| !leader.lost) else { return };
        leader.lost = true;
        let node = leader.node;
        let Some(watch) = self.watches.get(node) else { return };
        let failure = watch.failure.map(|(failure, _): (ProbeFailure, _)| failure);
        self.outputs.push_back(Output::Sever { node });
        self.outputs.push_back(Output::Event(Event::PrimaryLost { node: watch.id.clone(), failure }));
    }

    fn why_nobody(&self) -> WritesClosed {
        if !self.split.is_empty() {
            return WritesClosed::SplitBrain;
        }
        let refused = self
            .watches
            .iter()
            .any(|watch| watch.failures < self.pace.fall && matches!(watch.verdict, Some(HeadVerdict::Refused(_))));
        if refused { WritesClosed::StalePrimary } else { WritesClosed::NoPrimary }
    }

    fn leader_drains(&self) -> bool {
        self.leader
            .as_ref()
            .and_then(|leader| self.watches.get(leader.node))
            .and_then(|watch| watch.seen.as_ref())
            .is_some_and(|seen| seen.observation.read_only)
    }

    fn leader_failed(&self) -> bool {
        self.leader.as_ref().and_then(|leader| self.watches.get(leader.node)).is_some_and(|watch| watch.failures > 0)
    }

    pub(super) fn interval(&self, now: Instant) -> Duration {
        match self.doubt_since {
            None => self.pace.calm,
            Some(since) if now.saturating_duration_since(since) < FAST_FOR => self.pace.doubt,
            Some(_) => SLOW_DOUBT.clamp(self.pace.doubt, self.pace.calm.max(self.pace.doubt)),
        }
    }

    /// Sends what is due.
    pub(super) fn schedule(&mut self, now: Instant) {
        let interval = self.interval(now);
        for (node, watch) in self.watches.iter_mut().enumerate() {
            if let Some(sent) = watch.last_sent {
                watch.due = watch.due.min(sent + interval);
            }
            if watch.in_flight.is_none() && watch.due <= now {
                watch.in_flight = Some(now);
                watch.last_sent = Some(now);
                watch.due = now + interval;
                self.outputs.push_back(Output::Probe { node, sent: now, deadline: now + self.pace.deadline });
            }
        }
    }
}
