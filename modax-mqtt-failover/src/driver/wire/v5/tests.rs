use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use rumqttc::v5::mqttbytes::{QoS, v5 as theirs};

use super::super::{decode, encode};
use super::*;
use crate::{
    packet::{ConnectCode, Credentials, Limits, Version},
    properties::UserProperties,
};

fn bytes_of(packet: &Packet) -> BytesMut {
    let mut bytes = BytesMut::new();
    encode(Version::V5, packet, &mut bytes).unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Result<Option<Packet>, WireError> {
    decode(Version::V5, &mut BytesMut::from(bytes))
}

fn id(number: u16) -> PacketId {
    PacketId::new(number).unwrap()
}

fn publish() -> impl Strategy<Value = Publish> {
    let content = ("[a-z/é]{1,40}", prop::collection::vec(any::<u8>(), 0..9000), 0_u8..3, 1_u16..);
    let pairs = prop::collection::vec((".{0,40}", ".{0,80}"), 0..6);
    (content, pairs, any::<Option<u32>>(), any::<[bool; 2]>()).prop_map(
        |((topic, payload, level, number), pairs, expiry_seconds, [retain, duplicate])| {
            let qos = Qos::from_level(level).unwrap();
            let id = PacketId::new(number).filter(|_| qos != Qos::AtMostOnce);
            let properties = PublishProperties { user: pairs.into_iter().collect(), expiry_seconds };
            let (topic, payload) = (Arc::from(topic), Bytes::from(payload));
            Publish { topic, payload, qos, retain, duplicate, id, properties }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic_and_each_packet_takes_some(kind in 0_u8..16, flags in 0_u8..16, length in 0_u8..40,
        rest in prop::collection::vec(prop_oneof![any::<u8>(), 0_u8..44], 0..64)) {
        let mut input = BytesMut::from(&[kind << 4 | flags, length][..]);
        input.extend_from_slice(&rest);
        loop {
            let before = input.len();
            match decode(Version::V5, &mut input) {
                Ok(Some(_)) => prop_assert!(input.len() < before),
                Ok(None) | Err(_) => break,
            }
        }
    }

    #[test]
    fn a_whole_packet_is_never_waited_for(kind in 2_u8..16, flags in 0_u8..4, body in prop::collection::vec(any::<u8>(), 0..60)) {
        let mut input = BytesMut::from(&[kind << 4 | flags, u8::try_from(body.len()).unwrap()][..]);
        input.extend_from_slice(&body);
        prop_assert_ne!(decode(Version::V5, &mut input), Ok(None));
    }

    #[test]
    fn a_publish_comes_back_as_it_was_sent_and_has_the_size_it_said(publish in publish(), cut in any::<prop::sample::Index>()) {
        let bytes = bytes_of(&Packet::Publish(publish.clone()));
        prop_assert_eq!(bytes.len(), publish.encoded_bytes());
        prop_assert_eq!(read(&bytes[..cut.index(bytes.len())]), Ok(None));
        prop_assert_eq!(read(&bytes), Ok(Some(Packet::Publish(publish))));
    }

    #[test]
    fn another_codec_reads_our_publish_the_same(publish in publish()) {
        let mut bytes = bytes_of(&Packet::Publish(publish.clone()));
        let theirs::Packet::Publish(read) = theirs::Packet::read(&mut bytes, None).unwrap() else { panic!() };
        let properties = read.properties.unwrap_or_default();
        let pairs: UserProperties = properties.user_properties.into_iter().collect();
        prop_assert_eq!(&*read.topic, publish.topic.as_bytes());
        prop_assert_eq!((read.payload, read.pkid), (publish.payload, publish.id.map_or(0, PacketId::number)));
        prop_assert_eq!((pairs, properties.message_expiry_interval), (publish.properties.user, publish.properties.expiry_seconds));
        prop_assert_eq!((read.qos as u8, read.retain, read.dup), (publish.qos.level(), publish.retain, publish.duplicate));
    }

    #[test]
    fn we_read_the_limits_another_codec_wrote(receive in 1_u16.., size in 1_u32.., keep in any::<Option<u16>>(), level in 0_u8..2,
        retain: bool, session_present: bool, reason in any::<Option<String>>()) {
        let properties = theirs::ConnAckProperties {
            session_expiry_interval: Some(7), receive_max: Some(receive), max_qos: Some(level), retain_available: Some(retain.into()),
            max_packet_size: Some(size), assigned_client_identifier: Some("x".into()), topic_alias_max: Some(3),
            reason_string: reason, user_properties: vec![("a".into(), "b".into())], wildcard_subscription_available: Some((!retain).into()),
            subscription_identifiers_available: Some(1), shared_subscription_available: Some(retain.into()), server_keep_alive: keep,
            response_information: Some("r".into()), server_reference: Some("s".into()), authentication_method: Some("m".into()),
            authentication_data: Some(Bytes::from_static(b"d")),
        };
        let code = theirs::ConnectReturnCode::Success;
        let mut bytes = BytesMut::new();
        theirs::Packet::ConnAck(theirs::ConnAck { session_present, code, properties: Some(properties) }).write(&mut bytes, None).unwrap();
        let limits = Limits {
            receive_maximum: receive, max_qos: Qos::from_level(level).unwrap(), retain_available: retain,
            wildcards_available: !retain, shared_available: retain,
            max_packet_bytes: Some(size), keep_alive_seconds: keep,
        };
        prop_assert_eq!(read(&bytes), Ok(Some(Packet::ConnAck { session_present, code: ConnectCode::Accepted, limits })));
    }
}

#[test]
fn another_codec_reads_our_connect_the_same() {
    let mut will = Publish {
        topic: Arc::from("gone"),
        payload: Bytes::from_static(b"will"),
        qos: Qos::ExactlyOnce,
        retain: true,
        duplicate: false,
        id: None,
        properties: PublishProperties { expiry_seconds: Some(9), ..PublishProperties::default() },
    };
    will.properties.user.push("why", "gone");
    let connect = Connect {
        client_id: Arc::from("me"),
        clean_session: true,
        session_expiry_seconds: 3600,
        receive_maximum: 20,
        max_packet_bytes: Some(70_000),
        keep_alive_seconds: 60,
        credentials: Some(Credentials::new("user", "password")),
        will: Some(will),
        will_delay_seconds: 10,
    };
    let mut bytes = bytes_of(&Packet::Connect(connect));
    let theirs::Packet::Connect(read, will, login) = theirs::Packet::read(&mut bytes, None).unwrap() else { panic!() };
    let (properties, will) = (read.properties.unwrap(), will.unwrap());
    assert_eq!((&*read.client_id, read.clean_start, read.keep_alive), ("me", true, 60));
    assert_eq!((properties.session_expiry_interval, properties.receive_maximum), (Some(3600), Some(20)));
    assert_eq!((properties.max_packet_size, properties.topic_alias_max), (Some(70_000), None));
    assert_eq!(login, Some(theirs::Login::new("user", "password")));
    assert_eq!(
        (&*will.topic, &*will.message, will.qos, will.retain),
        (&b"gone"[..], &b"will"[..], QoS::ExactlyOnce, true)
    );
    let properties = will.properties.unwrap();
    assert_eq!((properties.delay_interval, properties.message_expiry_interval), (Some(10), Some(9)));
    assert_eq!(properties.user_properties, [("why".to_owned(), "gone".to_owned())]);
    assert!(bytes.is_empty());
}

#[test]
fn another_codec_reads_our_other_packets_the_same() {
    let (filter, other): (Arc<str>, Arc<str>) = (Arc::from("a/+"), Arc::from("$share/g/b/#"));
    let filters = vec![(Arc::clone(&filter), Qos::AtLeastOnce), (Arc::clone(&other), Qos::ExactlyOnce)];
    let theirs_of = |packet: &Packet| theirs::Packet::read(&mut bytes_of(packet), None).unwrap();

    let packet = Packet::Subscribe { id: id(7), filters };
    let theirs::Packet::Subscribe(read) = theirs_of(&packet) else { panic!() };
    let paths: Vec<_> = read.filters.iter().map(|filter| (filter.path.as_str(), filter.qos)).collect();
    assert_eq!((read.pkid, paths), (7, vec![("a/+", QoS::AtLeastOnce), ("$share/g/b/#", QoS::ExactlyOnce)]));
    let theirs::Packet::Unsubscribe(read) = theirs_of(&Packet::Unsubscribe { id: id(8), filters: vec![filter, other] })
    else {
        panic!()
    };
    assert_eq!((read.pkid, read.filters), (8, vec!["a/+".to_owned(), "$share/g/b/#".to_owned()]));
    let ack = theirs_of(&Packet::PubAck { id: id(9), code: 0 });
    assert!(matches!(ack, theirs::Packet::PubAck(ack) if ack.pkid == 9 && ack.reason == theirs::PubAckReason::Success));
    let release = theirs_of(&Packet::PubRel { id: id(9), code: 0x92 });
    let not_found = theirs::PubRelReason::PacketIdentifierNotFound;
    assert!(matches!(release, theirs::Packet::PubRel(release) if release.pkid == 9 && release.reason == not_found));
    assert_eq!(theirs_of(&Packet::PingReq), theirs::Packet::PingReq(theirs::PingReq));
    assert_eq!(*bytes_of(&Packet::Disconnect(Reason::SUCCESS)), [0xE0, 0]);
    assert_eq!(*bytes_of(&Packet::Disconnect(Reason::PROTOCOL_ERROR)), [0xE0, 1, 0x82]);
}

#[test]
fn what_the_other_codec_gets_wrong_is_read_right() {
    // A reason without properties, as mosquitto sends it.
    assert_eq!(read(&[0xE0, 1, 0x8B]), Ok(Some(Packet::Disconnect(Reason::new(0x8B)))));
    assert_eq!(read(&[0xE0, 0]), Ok(Some(Packet::Disconnect(Reason::SUCCESS))));
    // A broker that knows only 3.1.1.
    let refused =
        Packet::ConnAck { session_present: false, code: ConnectCode::ProtocolVersion, limits: Limits::default() };
    assert_eq!(read(&[0x20, 2, 0, 1]), Ok(Some(refused)));
    assert_eq!(read(&[0x20, 2, 0, 0]), Err(WireError::new("a CONNACK of MQTT 3.1.1")));
    // Three subscription identifiers before the payload.
    let bytes = [0x30, 12, 0, 1, b't', 6, 0x0B, 1, 0x0B, 2, 0x0B, 3, b'h', b'i'];
    let Ok(Some(Packet::Publish(publish))) = read(&bytes) else { panic!() };
    assert_eq!(publish.payload, "hi");
}

#[test]
fn what_the_standard_forbids_is_an_error() {
    let forbidden: &[&[u8]] = &[
        &[0x36, 3, 0, 1, b't'],                // QoS 3
        &[0x30, 3, 0, 0, 0],                   // no topic
        &[0x32, 6, 0, 1, b't', 0, 0, 0],       // packet identifier 0
        &[0x30, 7, 0, 1, b't', 3, 0x23, 0, 1], // a topic alias
        &[0x30, 5, 0, 1, b't', 9, 0],          // properties longer than the packet
        &[0x30, 6, 0, 1, b't', 2, 0x7F, 0],    // an unknown property
        &[0x30, 4, 0, 1, 0xFF, 0],             // not UTF-8
        &[0x20, 6, 0, 0, 3, 0x21, 0, 0],       // receive maximum 0
        &[0x20, 5, 0, 0, 2, 0x24, 3],          // maximum QoS 3
        &[0x20, 3, 2, 0, 0],                   // reserved flags
        &[0x60, 2, 0, 1],                      // PUBREL without its flag
        &[0xD0, 1, 0],                         // a PINGRESP with something in it
        &[0x40, 0xFF, 0xFF, 0xFF, 0xFF],       // a length of five bytes
        &[0x10, 0],                            // CONNECT
    ];
    for bytes in forbidden {
        assert!(read(bytes).is_err(), "{bytes:02x?}");
    }
}

#[test]
fn a_packet_that_cannot_be_written_leaves_nothing_behind() {
    let mut out = BytesMut::from(&b"before"[..]);
    let mut properties = PublishProperties::default();
    properties.user.push("name", "x".repeat(70_000));
    let (topic, payload) = (Arc::from("t"), Bytes::new());
    let (qos, retain, duplicate) = (Qos::AtMostOnce, false, false);
    let publish = Publish { topic, payload, qos, retain, duplicate, id: None, properties };
    assert!(encode(Version::V5, &Packet::Publish(publish), &mut out).is_err());
    assert_eq!(out, "before");
}
