//! What others know of us: a message said on each connection, and the will that may contradict it.
//!
//! A broker that we have left, or that takes an old connection of ours for the present one, publishes our will although
//! we live (fault F34). Whoever reads it is told the truth again: the message is repeated when our own will comes by.

use std::sync::Arc;

use super::{Control, Output, Request, Session};
use crate::{
    config::Config,
    event::Filter,
    message::Message,
    packet::{Packet, PacketId, Publish, PublishProperties, Qos},
    reason::{Reason, Rejection},
};

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Presence {
    announcement: Option<Message>,
    /// The will, where the announcement stands against it on the same topic.
    contradicted: Option<Message>,
    /// Whether the program wants that topic as well.
    wanted: bool,
    /// Our will came by: the announcement is to be said again once the window has a place for it.
    is_due: bool,
}

impl Presence {
    pub(super) fn new(config: &Config) -> Self {
        let same_topic = |will: &&Message| config.on_connect.as_ref().is_some_and(|said| said.topic == will.topic);
        let contradicted = config.will.as_ref().filter(same_topic).cloned();
        Self { announcement: config.on_connect.clone(), contradicted, wanted: false, is_due: false }
    }

    /// The program wants what it wanted of another session.
    pub(super) const fn follow(&mut self, other: &Self) {
        self.wanted = other.wanted;
    }

    /// The topic on which our own will would appear.
    pub(super) fn watched(&self) -> Option<Filter> {
        self.contradicted.as_ref().map(|will| Arc::clone(&will.topic))
    }

    /// Whether we watch this filter and the program does not want it.
    pub(super) fn is_ours_alone(&self, filter: &Filter) -> bool {
        !self.wanted && self.watched().is_some_and(|watched| watched == *filter)
    }

    /// The program wants this filter, or does not any more; true when it is watched all the same.
    pub(super) fn note_wish(&mut self, filter: &Filter, wanted: bool) -> bool {
        let watched = self.contradicted.as_ref().is_some_and(|will| will.topic == *filter);
        if watched {
            self.wanted = wanted;
        }
        watched
    }
}

impl Session {
    /// Says who we are, before anything else on a connection but releases; if the broker may hold so much of ours that it has
    /// no place, then as soon as it has one.
    pub(super) fn greet_others(&mut self) {
        if self.inflight.half_way() < self.window() {
            self.announce();
        } else {
            self.presence.is_due = true;
        }
    }

    fn announce(&mut self) {
        self.presence.is_due = false;
        let Some(message) = self.presence.announcement.clone() else { return };
        if self.announcing() > 0 {
            return;
        }
        let id = if message.qos == Qos::AtMostOnce { None } else { self.free_id() };
        let properties = PublishProperties { user: message.user_properties.clone(), expiry_seconds: None };
        let (topic, payload, qos) = (message.topic, message.payload, message.qos);
        let publish = Publish { topic, payload, qos, retain: message.retained, duplicate: false, id, properties };
        if let Some(rejection) = self.refusal(&publish) {
            return self.outputs.push_back(Output::AnnouncementRefused(rejection));
        }
        self.send(Packet::Publish(publish));
        if let Some(id) = id {
            self.control.insert(id, Control { sequence: self.sent, request: Request::Announce });
        }
    }

    /// Says it again where that is due and the window has a place for it.
    pub(super) fn announce_again(&mut self) {
        if self.presence.is_due && self.inflight.on_the_wire().max(self.inflight.half_way()) < self.window() {
            self.announce();
        }
    }

    /// Announcements without an answer: one at most.
    pub(super) fn announcing(&self) -> usize {
        self.control.values().filter(|control| matches!(control.request, Request::Announce)).count()
    }

    /// PUBACK; false when it is for no announcement.
    pub(super) fn announced(&mut self, id: PacketId, reason: Reason) -> bool {
        if !matches!(self.control.get(&id), Some(Control { request: Request::Announce, .. })) {
            return false;
        }
        self.control.remove(&id);
        self.outputs.push_back(Output::RequestAnswered);
        if reason.is_failure() {
            self.outputs.push_back(Output::AnnouncementRefused(Rejection::Broker(reason)));
        }
        true
    }

    /// Looks whether this is our own will; true when it is for nobody but us.
    pub(super) fn watch(&mut self, publish: &Publish) -> bool {
        let Some(will) = self.presence.contradicted.as_ref().filter(|will| will.topic == publish.topic) else {
            return false;
        };
        let mourned = will.payload == publish.payload;
        let ours_alone = !self.presence.wanted && publish.qos == Qos::AtMostOnce;
        let ours_alone = ours_alone && !self.subscriptions.has_other(&publish.topic);
        // One that is on its way will do.
        if mourned && self.announcing() == 0 {
            self.presence.is_due = true;
            self.announce_again();
        }
        ours_alone
    }
}

/// The will as it stands in CONNECT.
pub(super) fn will(message: &Message) -> Publish {
    Publish {
        topic: message.topic.clone(),
        payload: message.payload.clone(),
        qos: message.qos,
        retain: message.retained,
        duplicate: false,
        id: None,
        properties: PublishProperties {
            user: message.user_properties.clone(),
            expiry_seconds: message.expires_in.map(|time| u32::try_from(time.as_secs().max(1)).unwrap_or(u32::MAX)),
        },
    }
}
