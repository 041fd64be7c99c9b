//! Our packets to and from rumqttc's public codec for MQTT 3.1.1; nothing else of rumqttc is used.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::{
    Error, QoS,
    v4::{self, ConnectReturnCode, SubscribeReasonCode},
};

use super::{COPY_BELOW, MAX_REMAINING, WireError};
use crate::packet::{Connect, ConnectCode, Limits, Packet, PacketId, Publish, PublishProperties, Qos};

/// With its fixed header.
const MAX_PACKET_BYTES: usize = MAX_REMAINING + 5;

/// Appends `packet` to `out`.
pub(super) fn encode(packet: &Packet, out: &mut BytesMut) -> Result<(), WireError> {
    let coded = match packet {
        Packet::Connect(connect) => v4::Packet::Connect(connect_packet(connect)),
        Packet::Publish(publish) => v4::Packet::Publish(publish_packet(publish)),
        Packet::PubAck { id, .. } => v4::Packet::PubAck(v4::PubAck { pkid: id.number() }),
        Packet::PubRec { id, .. } => v4::Packet::PubRec(v4::PubRec { pkid: id.number() }),
        Packet::PubRel { id, .. } => v4::Packet::PubRel(v4::PubRel { pkid: id.number() }),
        Packet::PubComp { id, .. } => v4::Packet::PubComp(v4::PubComp { pkid: id.number() }),
        Packet::Subscribe { id, filters } => {
            let filters =
                filters.iter().map(|(filter, qos)| v4::SubscribeFilter { path: filter.to_string(), qos: level(*qos) });
            let mut subscribe = v4::Subscribe::new_many(filters);
            subscribe.pkid = id.number();
            v4::Packet::Subscribe(subscribe)
        }
        Packet::Unsubscribe { id, filters } => {
            let topics = filters.iter().map(ToString::to_string).collect();
            v4::Packet::Unsubscribe(v4::Unsubscribe { pkid: id.number(), topics })
        }
        Packet::PingReq => v4::Packet::PingReq,
        Packet::Disconnect(_) => v4::Packet::Disconnect,
        Packet::ConnAck { .. } | Packet::SubAck { .. } | Packet::UnsubAck(_) | Packet::PingResp | Packet::Auth => {
            return Err(WireError::new("a packet that only brokers send"));
        }
    };
    coded.write(out, MAX_PACKET_BYTES).map(|_| ()).map_err(|error| WireError::new(error.to_string()))
}

/// Takes one packet from `input`, if there is a whole one.
pub(super) fn decode(input: &mut BytesMut) -> Result<Option<Packet>, WireError> {
    let coded = match v4::Packet::read(input, MAX_PACKET_BYTES) {
        Ok(coded) => coded,
        // Nothing is reserved for it: what is announced need not come.
        Err(Error::InsufficientBytes(_)) => return Ok(None),
        Err(error) => return Err(WireError::new(error.to_string())),
    };
    let packet = match coded {
        v4::Packet::ConnAck(ack) => Packet::ConnAck {
            session_present: ack.session_present,
            code: connect_code(ack.code),
            limits: Limits::default(),
        },
        v4::Packet::Publish(publish) => Packet::Publish(received(publish)?),
        v4::Packet::PubAck(ack) => Packet::PubAck { id: id(ack.pkid)?, code: 0 },
        v4::Packet::PubRec(ack) => Packet::PubRec { id: id(ack.pkid)?, code: 0 },
        v4::Packet::PubRel(ack) => Packet::PubRel { id: id(ack.pkid)?, code: 0 },
        v4::Packet::PubComp(ack) => Packet::PubComp { id: id(ack.pkid)?, code: 0 },
        v4::Packet::SubAck(ack) => {
            let codes = ack.return_codes.iter().map(|code| match code {
                SubscribeReasonCode::Success(qos) => *qos as u8,
                SubscribeReasonCode::Failure => 0x80,
            });
            Packet::SubAck { id: id(ack.pkid)?, codes: codes.collect() }
        }
        v4::Packet::UnsubAck(ack) => Packet::UnsubAck(id(ack.pkid)?),
        v4::Packet::PingResp => Packet::PingResp,
        // The session calls these a violation; what they say does not matter.
        v4::Packet::Connect(_)
        | v4::Packet::Subscribe(_)
        | v4::Packet::Unsubscribe(_)
        | v4::Packet::PingReq
        | v4::Packet::Disconnect => Packet::PingReq,
    };
    Ok(Some(packet))
}

fn connect_packet(connect: &Connect) -> v4::Connect {
    let mut coded = v4::Connect::new(connect.client_id.to_string());
    coded.keep_alive = connect.keep_alive_seconds;
    coded.clean_session = connect.clean_session;
    if let Some(credentials) = &connect.credentials {
        coded.set_login(credentials.user(), credentials.password());
    }
    coded.last_will = connect.will.as_ref().map(|will| v4::LastWill {
        topic: will.topic.to_string(),
        message: will.payload.clone(),
        qos: level(will.qos),
        retain: will.retain,
    });
    coded
}

fn publish_packet(publish: &Publish) -> v4::Publish {
    v4::Publish {
        dup: publish.duplicate,
        qos: level(publish.qos),
        retain: publish.retain,
        topic: publish.topic.to_string(),
        pkid: publish.id.map_or(0, PacketId::number),
        payload: publish.payload.clone(),
    }
}

fn received(publish: v4::Publish) -> Result<Publish, WireError> {
    let qos = match publish.qos {
        QoS::AtMostOnce => Qos::AtMostOnce,
        QoS::AtLeastOnce => Qos::AtLeastOnce,
        QoS::ExactlyOnce => Qos::ExactlyOnce,
    };
    let payload = match publish.payload {
        small if small.len() < COPY_BELOW => Bytes::copy_from_slice(&small),
        large => large,
    };
    let id = if qos == Qos::AtMostOnce { None } else { Some(id(publish.pkid)?) };
    let topic = Arc::from(publish.topic);
    Ok(Publish {
        topic,
        payload,
        qos,
        retain: publish.retain,
        duplicate: publish.dup,
        id,
        properties: PublishProperties::default(),
    })
}

fn id(number: u16) -> Result<PacketId, WireError> {
    PacketId::new(number).ok_or_else(|| WireError::new("packet identifier zero"))
}

const fn level(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
        Qos::ExactlyOnce => QoS::ExactlyOnce,
    }
}

const fn connect_code(code: ConnectReturnCode) -> ConnectCode {
    match code {
        ConnectReturnCode::Success => ConnectCode::Accepted,
        ConnectReturnCode::RefusedProtocolVersion => ConnectCode::ProtocolVersion,
        ConnectReturnCode::BadClientId => ConnectCode::ClientId,
        ConnectReturnCode::ServiceUnavailable => ConnectCode::Unavailable,
        ConnectReturnCode::BadUserNamePassword => ConnectCode::Credentials,
        ConnectReturnCode::NotAuthorized => ConnectCode::NotAuthorised,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{decode, encode};
    use super::*;
    use crate::packet::Version;

    #[test]
    fn a_packet_that_announces_much_costs_what_has_come_of_it() {
        for version in [Version::V311, Version::V5] {
            let mut input = BytesMut::from(&b"\x30\xff\xff\xff\x7f\0\x01a"[..]);
            assert_eq!(decode(version, &mut input), Ok(None));
            assert!(input.capacity() < 4096, "{} bytes for {}, {version}", input.capacity(), input.len());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_make_it_panic_and_each_packet_takes_some(kind in 0_u8..16, flags in 0_u8..16, length in 0_u8..40,
            rest in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut input = BytesMut::from(&[kind << 4 | flags, length][..]);
            input.extend_from_slice(&rest);
            loop {
                let before = input.len();
                match decode(Version::V311, &mut input) {
                    Ok(Some(_)) => prop_assert!(input.len() < before),
                    Ok(None) | Err(_) => break,
                }
            }
        }

        #[test]
        fn a_publish_comes_back_as_it_was_sent(topic in "[a-z/]{1,20}", payload in proptest::collection::vec(any::<u8>(), 0..9000),
            level in 0_u8..3, number in 1_u16.., retain: bool, duplicate: bool) {
            let qos = Qos::from_level(level).unwrap();
            let id = PacketId::new(number).filter(|_| qos != Qos::AtMostOnce);
            let publish = Publish { topic: Arc::from(topic), payload: Bytes::from(payload), qos, retain, duplicate, id, properties: PublishProperties::default() };
            let mut bytes = BytesMut::new();
            encode(Version::V311, &Packet::Publish(publish.clone()), &mut bytes).unwrap();
            prop_assert_eq!(decode(Version::V311, &mut bytes).unwrap(), Some(Packet::Publish(publish)));
            prop_assert!(bytes.is_empty());
        }
    }
}
