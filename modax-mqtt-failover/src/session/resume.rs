//! What follows a CONNACK: which generation it is, what is wanted, what is to be sent again.

use std::{sync::Arc, time::Instant};

use super::{Control, Output, Request, Session, State};
use crate::{
    config::Topology,
    event::{Filter, GapReason},
    packet::{Packet, PacketId, Qos, Version},
    reason::Reason,
};

impl Session {
    pub(super) fn resume(&mut self, now: Instant, broker: usize, session_present: bool) {
        self.state = State::Up;
        self.begins_anew = false;
        let first = self.last_broker.is_none();
        let same_broker = self.last_broker == Some(broker);
        let same_store = same_broker || (self.topology == Topology::Cluster && !first);
        let ours = session_present && same_store && !self.connect.clean_session;
        let doubtful = std::mem::take(&mut self.doubtful);
        let certain = ours && !doubtful && self.doubtful_until.is_none_or(|until| until <= now);
        self.last_broker = Some(broker);
        if !ours {
            self.generation = self.generation.saturating_add(1);
            self.inflight.forget_packet_ids();
            self.incoming.forget();
            self.unwanted.clear();
            self.subscriptions.forget_told();
        }
        if session_present && !ours {
            self.inflight.inherit_packet_ids();
        }
        if ours && doubtful {
            self.inflight.doubt_receipts();
        }
        if ours {
            self.incoming.doubt();
        }
        // First: the broker may have no place for anything else.
        if self.version == Version::V5 && self.limits.max_qos == Qos::ExactlyOnce {
            self.inflight.mark_qos_2();
        }
        // A broker that knows no QoS 2 closes on this, once; another one may have no place for anything else.
        for id in self.inflight.try_unanswered() {
            self.send(Packet::PubRel { id, code: 0 });
        }
        self.release_left_open();
        for message in self.inflight.releases().collect::<Vec<_>>() {
            self.release(message);
        }
        self.greet_others();
        let reason = if same_broker { GapReason::SessionLost } else { GapReason::BrokerChanged };
        for (filter, reason) in self.subscriptions.gaps(certain, reason) {
            self.outputs.push_back(Output::Gap { filter, reason });
        }
        // Also a session of the same broker: one that was restored from an older copy may lack what it granted since.
        self.subscriptions.forget_grants();
        self.apply_subscriptions();
        self.withdraw();
        self.pump(now);
    }

    /// An identifier is free again: what found none before may have it.
    pub(super) fn ask_again(&mut self) {
        if std::mem::take(&mut self.starved) && self.is_up() {
            self.apply_subscriptions();
            self.withdraw();
        }
    }

    /// Asks the broker for every wanted filter that this session has not granted.
    pub(super) fn apply_subscriptions(&mut self) {
        let mut missing = self.subscriptions.ungranted();
        missing.retain(|(filter, _)| {
            let refusal = self.filter_refusal(filter);
            if let Some(reason) = refusal {
                self.not_taken(filter, reason);
            }
            refusal.is_none()
        });
        for filters in self.packets_of(missing, |(filter, _)| filter) {
            let Some(id) = self.free_id() else {
                self.starved = true;
                return;
            };
            self.subscriptions.mark_asked(filters.iter().map(|(filter, _)| filter));
            self.send(Packet::Subscribe { id, filters: filters.clone() });
            self.control.insert(id, Control { sequence: self.sent, request: Request::Subscribe(filters) });
        }
    }

    pub(super) fn subscribe(&mut self, filter: Filter, qos: Qos) {
        self.unwanted.remove(&filter);
        // Whoever reads it from now on has had none.
        self.incoming.forget_gap(&filter);
        // The program is to get what is retained there too.
        if self.presence.note_wish(&filter, true) {
            self.subscriptions.forget_grant(&filter);
        }
        if !self.subscriptions.want(Arc::clone(&filter), qos) {
            let granted = self.subscriptions.get(&filter).and_then(|wish| wish.granted_before);
            self.outputs.extend(granted.map(|qos| Output::Granted { filter, qos }));
        } else if self.is_up() {
            self.apply_subscriptions();
        }
    }

    pub(super) fn unsubscribe(&mut self, filter: Filter) {
        if self.presence.note_wish(&filter, false) {
            return;
        }
        let Some(wish) = self.subscriptions.drop_wish(&filter) else { return };
        self.retract(&filter);
        // What this session never heard of is not in it.
        if wish.told {
            self.unwanted.insert(filter);
            if self.is_up() {
                self.withdraw();
            }
        }
    }

    /// This broker has no such filters. Where another one granted it, the next may again.
    fn not_taken(&mut self, filter: &Filter, reason: Reason) {
        let code = reason.number();
        if self.subscriptions.get(filter).is_some_and(|wish| wish.granted_before.is_some()) {
            let is_first = self.subscriptions.suspend(filter, code);
            self.tell_postponed(filter, code, is_first);
        } else {
            self.refused(Arc::clone(filter), code);
        }
    }

    /// What we watch ourselves is asked for again on the next connection; where the program does not want it, nobody has to be
    /// told.
    fn refused(&mut self, filter: Filter, code: u8) {
        let is_wanted = !self.presence.is_ours_alone(&filter);
        if self.presence.note_wish(&filter, false) {
            self.subscriptions.suspend(&filter, code);
        } else {
            self.subscriptions.drop_wish(&filter);
        }
        if is_wanted {
            self.outputs.push_back(Output::Refused { filter, code });
        }
    }

    /// Once until it is granted again: a broker may be asked for ever.
    fn tell_postponed(&mut self, filter: &Filter, code: u8, is_first: bool) {
        if is_first {
            self.outputs.push_back(Output::Postponed { filter: Arc::clone(filter), code });
        }
    }

    /// Whether the present session has granted this filter.
    #[must_use]
    pub fn has_granted(&self, filter: &str) -> bool {
        self.subscriptions.get(&Filter::from(filter)).is_some_and(|wish| wish.granted)
    }

    /// Whether this broker refuses a filter that is granted there.
    #[must_use]
    pub fn refuses_what(&self, other: &Self) -> bool {
        self.subscriptions.refused().any(|filter| other.has_granted(filter))
    }

    /// When that is to be done again, of what was refused for a while.
    pub(super) fn ask_at(&self) -> Option<Instant> {
        self.subscriptions.ask_at().filter(|_| self.is_up())
    }

    /// What was refused for a while is asked for again in its time.
    pub(super) fn ask_refused(&mut self, now: Instant) {
        if self.is_up() && self.subscriptions.is_due(now) {
            self.apply_subscriptions();
        }
    }

    /// Tells the broker what is not wanted any more, but for what it would close the connection on: it may take that on a
    /// later one.
    pub(super) fn withdraw(&mut self) {
        let all = std::mem::take(&mut self.unwanted);
        let (fitting, kept) = all.into_iter().partition::<Vec<_>, _>(|filter| self.filter_fits(filter));
        self.unwanted.extend(kept);
        for filters in self.packets_of(fitting, |filter| filter) {
            let Some(id) = self.free_id() else {
                self.starved = true;
                self.unwanted.extend(filters);
                continue;
            };
            self.send(Packet::Unsubscribe { id, filters: filters.clone() });
            self.control.insert(id, Control { sequence: self.sent, request: Request::Unsubscribe(filters) });
        }
    }

    /// What was asked for and is not wanted any more: its answer grants nothing, because an UNSUBSCRIBE follows it.
    pub(super) fn retract(&mut self, unwanted: &Filter) {
        for control in self.control.values_mut() {
            let Request::Subscribe(filters) = &mut control.request else { continue };
            for (filter, _) in filters.iter_mut().filter(|(filter, _)| filter == unwanted) {
                *filter = Filter::from("");
            }
        }
    }

    /// The connection is gone, and answers with it. A session that goes on may still hold what is not wanted.
    pub(super) fn forget_requests(&mut self) {
        for control in std::mem::take(&mut self.control).into_values() {
            let Request::Unsubscribe(filters) = control.request else { continue };
            self.unwanted.extend(filters.into_iter().filter(|filter| self.subscriptions.get(filter).is_none()));
        }
    }

    pub(super) fn subscribed(&mut self, now: Instant, id: PacketId, codes: &[u8]) {
        let Some(Control { request: Request::Subscribe(filters), .. }) = self.control.remove(&id) else {
            self.outputs.push_back(Output::StrayAck);
            return;
        };
        if filters.len() != codes.len() {
            return self.violation("a SUBACK with the wrong number of codes");
        }
        self.outputs.push_back(Output::RequestAnswered);
        for ((filter, requested), code) in filters.into_iter().zip(codes.iter().copied()) {
            let Some(wish) = self.subscriptions.answered(&filter, requested) else { continue };
            let Some(qos) = Qos::from_level(code) else {
                let may_pass = Reason::new(code).is_failure() && Reason::new(code).is_transient();
                if may_pass && wish.granted_before.is_some() {
                    let is_first = self.subscriptions.postpone(now, &filter, code);
                    self.tell_postponed(&filter, code, is_first);
                    continue;
                }
                self.refused(filter, code);
                continue;
            };
            self.outputs.push_back(Output::Granted { filter: Arc::clone(&filter), qos });
            // A wish that was raised meanwhile has a SUBSCRIBE of its own.
            if wish.qos <= requested
                && let Some(code) = self.subscriptions.granted(&filter, qos)
            {
                let reason = GapReason::RefusedForNow { code };
                self.outputs.push_back(Output::Gap { filter: Arc::clone(&filter), reason });
            }
            if code < requested.level() {
                self.outputs.push_back(Output::QosLowered {
                    filter: Some(Arc::clone(&filter)),
                    requested,
                    granted: code,
                });
            }
        }
    }

    pub(super) fn unsubscribed(&mut self, id: PacketId) {
        match self.control.remove(&id) {
            Some(Control { request: Request::Unsubscribe(_), .. }) => self.outputs.push_back(Output::RequestAnswered),
            Some(Control { request: Request::Subscribe(_) | Request::Announce, .. }) | None => {
                self.outputs.push_back(Output::StrayAck);
            }
        }
    }

    /// The next packet identifier that nothing uses; `None` when all 65535 are in use.
    pub(super) fn free_id(&mut self) -> Option<PacketId> {
        for _ in 0..=u16::MAX {
            let id = self.next_id;
            self.next_id = id.following();
            if !self.inflight.holds(id) && !self.control.contains_key(&id) {
                return Some(id);
            }
        }
        None
    }
}
