//! Both versions on one wire: inside there are packets of 3.1.1, and answers for which only MQTT 5 has words.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use rumqttc::mqttbytes::Protocol;
use rumqttc::mqttbytes::v4::{
    self, ConnAck, Connect, ConnectReturnCode, LastWill, Login, Packet, PubAck, PubComp, PubRec, PubRel, Publish,
    Subscribe, SubscribeFilter, SubscribeReasonCode, UnsubAck, Unsubscribe,
};
use rumqttc::v5::mqttbytes::{self as mqtt5, v5};
use tokio_util::codec::{Decoder, Encoder};

use super::hub::quality;
use super::script::{Limits, connack_code};

/// The largest packet in either direction.
const LARGEST: usize = 16 << 20;

/// What the broker says.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// The same in both versions.
    Packet(Packet),
    /// CONNACK.
    Welcome { session_present: bool, limits: Limits },
    /// CONNACK that refuses.
    Unwelcome(u8),
    /// UNSUBACK for so many filters.
    Unsubscribed { packet_id: u16, filters: usize },
    /// PUBACK that says no. In 3.1.1 the connection is all there is to close.
    Refused { packet_id: u16, code: u8 },
    /// DISCONNECT; in 3.1.1 brokers say nothing.
    Goodbye(u8),
}

impl From<Packet> for Answer {
    fn from(packet: Packet) -> Self {
        Self::Packet(packet)
    }
}

/// Learns the version from CONNECT.
#[derive(Debug, Default)]
pub(super) struct Wire {
    is_v5: Option<bool>,
}

impl Decoder for Wire {
    type Item = Packet;
    type Error = io::Error;

    fn decode(&mut self, bytes: &mut BytesMut) -> io::Result<Option<Packet>> {
        if self.is_v5.is_none() {
            // Behind at most five bytes of a fixed header and two of a length stands the protocol's name.
            let name = bytes.windows(4).take(8).position(|window| window == b"MQTT");
            match name.and_then(|at| bytes.get(at + 4)) {
                None if bytes.len() < 12 => return Ok(None),
                level => self.is_v5 = Some(level == Some(&5)),
            }
        }
        if self.is_v5 != Some(true) {
            return plain().decode(bytes).map_err(invalid);
        }
        // Without a reason, which the codec takes for a mistake.
        if bytes.starts_with(&[0xE0, 0]) {
            bytes.advance(2);
            return Ok(Some(Packet::Disconnect));
        }
        let mut codec = v5::Codec { max_incoming_size: u32::try_from(LARGEST).ok(), max_outgoing_size: None };
        codec.decode(bytes).map_err(invalid)?.map(older).transpose()
    }
}

impl Encoder<Answer> for Wire {
    type Error = io::Error;

    fn encode(&mut self, answer: Answer, bytes: &mut BytesMut) -> io::Result<()> {
        if self.is_v5 == Some(true) {
            return newer(answer, bytes);
        }
        let packet = match answer {
            Answer::Packet(packet) => packet,
            Answer::Welcome { session_present, .. } => {
                Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, session_present))
            }
            Answer::Unwelcome(code) => Packet::ConnAck(ConnAck::new(connack_code(code), false)),
            Answer::Unsubscribed { packet_id, .. } => Packet::UnsubAck(UnsubAck::new(packet_id)),
            Answer::Refused { .. } | Answer::Goodbye(_) => return Err(io::Error::other("3.1.1 has no word for it")),
        };
        plain().encode(packet, bytes).map_err(invalid)
    }
}

fn plain() -> v4::Codec {
    v4::Codec { max_incoming_size: LARGEST, max_outgoing_size: LARGEST }
}

fn invalid(error: impl std::fmt::Debug) -> io::Error {
    io::Error::other(format!("{error:?}"))
}

fn text(bytes: &Bytes) -> io::Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(invalid)
}

/// A packet of MQTT 5 without its properties.
fn older(packet: v5::Packet) -> io::Result<Packet> {
    Ok(match packet {
        v5::Packet::Connect(connect, will, login) => {
            let will = will.map(|will| {
                let (topic, qos) = (text(&will.topic)?, quality(will.qos as u8));
                io::Result::Ok(LastWill { topic, message: will.message, qos, retain: will.retain })
            });
            Packet::Connect(Connect {
                protocol: Protocol::V5,
                keep_alive: connect.keep_alive,
                client_id: connect.client_id,
                clean_session: connect.clean_start,
                last_will: will.transpose()?,
                login: login.map(|login| Login { username: login.username, password: login.password }),
            })
        }
        v5::Packet::Publish(publish) => Packet::Publish(Publish {
            dup: publish.dup,
            qos: quality(publish.qos as u8),
            retain: publish.retain,
            topic: text(&publish.topic)?,
            pkid: publish.pkid,
            payload: publish.payload,
        }),
        v5::Packet::PubAck(ack) => Packet::PubAck(PubAck::new(ack.pkid)),
        v5::Packet::PubRec(received) => Packet::PubRec(PubRec::new(received.pkid)),
        v5::Packet::PubRel(release) => Packet::PubRel(PubRel::new(release.pkid)),
        v5::Packet::PubComp(complete) => Packet::PubComp(PubComp::new(complete.pkid)),
        v5::Packet::Subscribe(subscribe) => Packet::Subscribe(Subscribe {
            pkid: subscribe.pkid,
            filters: subscribe
                .filters
                .into_iter()
                .map(|filter| SubscribeFilter { path: filter.path, qos: quality(filter.qos as u8) })
                .collect(),
        }),
        v5::Packet::Unsubscribe(unsubscribe) => {
            Packet::Unsubscribe(Unsubscribe { pkid: unsubscribe.pkid, topics: unsubscribe.filters })
        }
        v5::Packet::PingReq(_) => Packet::PingReq,
        v5::Packet::Disconnect(_) => Packet::Disconnect,
        other => return Err(invalid(other)),
    })
}

/// The same answer in MQTT 5.
fn newer(answer: Answer, bytes: &mut BytesMut) -> io::Result<()> {
    if let Some(short) = short(&answer) {
        bytes.extend_from_slice(&short);
        return Ok(());
    }
    let packet = match answer {
        Answer::Welcome { session_present, limits } => v5::Packet::ConnAck(v5::ConnAck {
            session_present,
            code: v5::ConnectReturnCode::Success,
            properties: Some(limits.properties()),
        }),
        Answer::Unsubscribed { packet_id, filters } => v5::Packet::UnsubAck(v5::UnsubAck {
            pkid: packet_id,
            reasons: vec![v5::UnsubAckReason::Success; filters],
            properties: None,
        }),
        Answer::Packet(Packet::Publish(publish)) => v5::Packet::Publish(v5::Publish {
            dup: publish.dup,
            qos: quality5(publish.qos as u8),
            retain: publish.retain,
            topic: publish.topic.into(),
            pkid: publish.pkid,
            payload: publish.payload,
            properties: None,
        }),
        Answer::Packet(Packet::SubAck(ack)) => v5::Packet::SubAck(v5::SubAck {
            pkid: ack.pkid,
            return_codes: ack
                .return_codes
                .into_iter()
                .map(|code| match code {
                    SubscribeReasonCode::Success(qos) => v5::SubscribeReasonCode::Success(quality5(qos as u8)),
                    SubscribeReasonCode::Failure => v5::SubscribeReasonCode::Unspecified,
                })
                .collect(),
            properties: None,
        }),
        other => return Err(invalid(other)),
    };
    packet.write(bytes, None).map(drop).map_err(invalid)
}

/// Answers of a few bytes.
fn short(answer: &Answer) -> Option<Vec<u8>> {
    let ack = |first: u8, packet_id: u16, code: &[u8]| {
        let [high, low] = packet_id.to_be_bytes();
        [&[first, if code.is_empty() { 2 } else { 3 }, high, low], code].concat()
    };
    Some(match answer {
        Answer::Unwelcome(code) => vec![0x20, 3, 0, *code, 0],
        Answer::Goodbye(code) => vec![0xE0, 1, *code],
        Answer::Refused { packet_id, code } => ack(0x40, *packet_id, &[*code]),
        Answer::Packet(Packet::PubAck(acknowledged)) => ack(0x40, acknowledged.pkid, &[]),
        Answer::Packet(Packet::PubRec(received)) => ack(0x50, received.pkid, &[]),
        Answer::Packet(Packet::PubComp(complete)) => ack(0x70, complete.pkid, &[]),
        Answer::Packet(Packet::PingResp) => vec![0xD0, 0],
        _ => return None,
    })
}

fn quality5(qos: u8) -> mqtt5::QoS {
    mqtt5::qos(qos).unwrap_or(mqtt5::QoS::AtMostOnce)
}
