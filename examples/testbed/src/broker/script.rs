//! What the broker does wrong, and how often it did.

use std::time::Duration;

use rumqttc::mqttbytes::v4::ConnectReturnCode;
use rumqttc::v5::mqttbytes::v5::ConnAckProperties;

/// How a CONNECT is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Connack {
    /// At once.
    #[default]
    Accept,
    /// Not at all; the connection stays open.
    Never,
    /// After this long.
    Late(Duration),
    /// With this code (1 to 5 of MQTT 3.1.1, 3.2.2.3, where anything else counts as 5; any of MQTT 5), then closed.
    Refuse(u8),
    /// By closing the connection.
    Drop,
    /// At once, then closed in order: what a client sees whose twin connects again and again.
    TakenOver,
}

/// How a QoS 1 PUBLISH is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Puback {
    /// With one PUBACK, at once.
    #[default]
    Normal,
    /// Not at all; the message is taken all the same.
    Missing,
    /// With two.
    Duplicated,
    /// In groups of this many, newest first.
    Reordered(usize),
    /// With one for a packet id that is not in use, then with the right one.
    WrongId,
    /// After this long; other packets are answered meanwhile only when their turn comes.
    Late(Duration),
    /// With this code of MQTT 5, and the message is not taken. In 3.1.1 the connection is closed.
    Refused(u8),
}

/// What CONNACK says of itself in MQTT 5; `None` is not said. The broker does not watch over them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Messages without an acknowledgement, at most.
    pub receive_maximum: Option<u16>,
    /// The highest QoS.
    pub max_qos: Option<u8>,
    /// Bytes of a packet, at most.
    pub max_packet_bytes: Option<u32>,
    /// Whether retained messages are taken.
    pub retain_available: Option<bool>,
    /// The keep-alive that counts, in seconds.
    pub keep_alive_seconds: Option<u16>,
}

impl Limits {
    pub(super) fn properties(self) -> ConnAckProperties {
        ConnAckProperties {
            session_expiry_interval: None,
            receive_max: self.receive_maximum,
            max_qos: self.max_qos,
            retain_available: self.retain_available.map(u8::from),
            max_packet_size: self.max_packet_bytes,
            assigned_client_identifier: None,
            topic_alias_max: None,
            reason_string: None,
            user_properties: Vec::new(),
            wildcard_subscription_available: None,
            subscription_identifiers_available: None,
            shared_subscription_available: None,
            server_keep_alive: self.keep_alive_seconds,
            response_information: None,
            server_reference: None,
            authentication_method: None,
            authentication_data: None,
        }
    }
}

/// How a SUBSCRIBE is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Suback {
    /// With what was asked for, at most QoS 1.
    #[default]
    Grant,
    /// With 0x80 for each filter.
    Refuse,
    /// With QoS 0 for each filter.
    Lower,
    /// Not at all, and the subscription is not made.
    Never,
}

/// How a broker behaves; [`Script::new`] is a good one.
#[derive(Clone, Debug)]
pub struct Script {
    pub(super) connack: Connack,
    pub(super) session_present: Option<bool>,
    pub(super) dies_after: Option<u64>,
    pub(super) closes_after: Option<u64>,
    pub(super) closes_on: Option<String>,
    pub(super) puback: Puback,
    pub(super) acked_first: u64,
    pub(super) answers_pings: bool,
    pub(super) suback: Suback,
    pub(super) limits: Limits,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            connack: Connack::Accept,
            session_present: None,
            dies_after: None,
            closes_after: None,
            closes_on: None,
            puback: Puback::Normal,
            acked_first: 0,
            answers_pings: true,
            suback: Suback::Grant,
            limits: Limits::default(),
        }
    }
}

impl Script {
    /// A broker that does nothing wrong.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How CONNECT is answered.
    #[must_use]
    pub fn connack(mut self, connack: Connack) -> Self {
        self.connack = connack;
        self
    }

    /// Claims this about the session, whatever is true. What is false is done as well: without a session present,
    /// the old one is thrown away; with one that never was, its subscriptions are missing (fault F22).
    #[must_use]
    pub fn session_present(mut self, present: bool) -> Self {
        self.session_present = Some(present);
        self
    }

    /// Acknowledges nothing, and dies (listener and all connections) on the `count`-th PUBLISH since the script was
    /// set, over all clients.
    #[must_use]
    pub fn dies_after_publishes(mut self, count: u64) -> Self {
        self.dies_after = Some(count);
        self
    }

    /// Acknowledges nothing, and closes each connection on its `count`-th PUBLISH.
    #[must_use]
    pub fn closes_after_publishes(mut self, count: u64) -> Self {
        self.closes_after = Some(count);
        self
    }

    /// Closes each connection on a PUBLISH to this topic, and takes all others.
    #[must_use]
    pub fn closes_on(mut self, topic: &str) -> Self {
        self.closes_on = Some(topic.to_owned());
        self
    }

    /// How a QoS 1 PUBLISH is answered.
    #[must_use]
    pub fn puback(mut self, puback: Puback) -> Self {
        self.puback = puback;
        self
    }

    /// Answers the first `count` publishes since the script was set as a good broker does; [`Script::puback`],
    /// `dies_after_publishes` and `closes_after_publishes` then withhold or spoil only what comes later.
    #[must_use]
    pub fn acks_first(mut self, count: u64) -> Self {
        self.acked_first = count;
        self
    }

    /// Never answers PINGREQ.
    #[must_use]
    pub fn without_pingresp(mut self) -> Self {
        self.answers_pings = false;
        self
    }

    /// How SUBSCRIBE is answered.
    #[must_use]
    pub fn suback(mut self, suback: Suback) -> Self {
        self.suback = suback;
        self
    }

    /// What CONNACK says of the broker's limits, to clients of MQTT 5.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }
}

/// How often the broker did what its script says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerCounts {
    /// CONNECTs that were never answered.
    pub connack_withheld: u64,
    /// CONNECTs answered late.
    pub connack_late: u64,
    /// CONNECTs refused by code.
    pub connack_refused: u64,
    /// CONNECTs answered by closing.
    pub dropped_before_connack: u64,
    /// Connections closed because another one came with the same client id, or as if so.
    pub takeovers: u64,
    /// Sessions that were there and denied, or not there and claimed.
    pub session_lies: u64,
    /// Times the broker died by its script.
    pub died: u64,
    /// Connections closed after their publishes.
    pub closed: u64,
    /// PUBACKs not sent.
    pub puback_missing: u64,
    /// PUBACKs sent twice.
    pub puback_duplicated: u64,
    /// PUBACKs sent in another order.
    pub puback_reordered: u64,
    /// PUBACKs sent for ids not in use.
    pub puback_wrong_id: u64,
    /// PUBACKs sent late.
    pub puback_late: u64,
    /// PUBACKs that said no.
    pub puback_refused: u64,
    /// DISCONNECTs sent.
    pub goodbyes: u64,
    /// PINGREQs not answered.
    pub pingresp_withheld: u64,
    /// Filters refused.
    pub suback_refused: u64,
    /// Filters granted with less than was asked.
    pub suback_lowered: u64,
    /// SUBSCRIBEs not answered.
    pub suback_withheld: u64,
    /// Messages shed because a session's queue was full.
    pub shed: u64,
}

pub(super) fn connack_code(code: u8) -> ConnectReturnCode {
    match code {
        1 => ConnectReturnCode::RefusedProtocolVersion,
        2 => ConnectReturnCode::BadClientId,
        3 => ConnectReturnCode::ServiceUnavailable,
        4 => ConnectReturnCode::BadUserNamePassword,
        _ => ConnectReturnCode::NotAuthorized,
    }
}
