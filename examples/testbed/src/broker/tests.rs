use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    Codec, ConnAck, Connect, ConnectReturnCode, LastWill, Packet, PubAck, Publish, Subscribe, SubscribeReasonCode,
    Unsubscribe,
};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::codec::Framed;

use super::hub::matches;
use super::{Connack, Puback, Script, ScriptedBroker, Suback};

const DEADLINE: Duration = Duration::from_secs(30);

struct Client(Framed<TcpStream, Codec>);

impl Client {
    async fn dial(broker: &ScriptedBroker) -> Self {
        let stream = TcpStream::connect(broker.addr()).await.unwrap();
        Self(Framed::new(stream, Codec { max_incoming_size: 1 << 20, max_outgoing_size: 1 << 20 }))
    }

    async fn connect(broker: &ScriptedBroker, client_id: &str, clean: bool) -> (Self, ConnAck) {
        let mut client = Self::dial(broker).await;
        client.send(Packet::Connect(Connect { clean_session: clean, ..Connect::new(client_id) })).await;
        let Some(Packet::ConnAck(connack)) = client.next().await else { panic!("a CONNACK") };
        (client, connack)
    }

    async fn send(&mut self, packet: Packet) {
        self.0.send(packet).await.unwrap();
    }

    /// `None` when the broker closed the connection.
    async fn next(&mut self) -> Option<Packet> {
        timeout(DEADLINE, self.0.next()).await.expect("a packet in time").and_then(Result::ok)
    }

    async fn publish(&mut self, topic: &str, payload: &str, packet_id: u16) {
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, payload);
        publish.pkid = packet_id;
        self.send(Packet::Publish(publish)).await;
    }

    async fn acked(&mut self) -> u16 {
        match self.next().await {
            Some(Packet::PubAck(ack)) => ack.pkid,
            other => panic!("a PUBACK, not {other:?}"),
        }
    }

    async fn subscribe(&mut self, filter: &str) -> SubscribeReasonCode {
        let mut subscribe = Subscribe::new(filter, QoS::AtLeastOnce);
        subscribe.pkid = 7;
        self.send(Packet::Subscribe(subscribe)).await;
        match self.next().await {
            Some(Packet::SubAck(ack)) => ack.return_codes[0],
            other => panic!("a SUBACK, not {other:?}"),
        }
    }

    async fn received(&mut self) -> Publish {
        match self.next().await {
            Some(Packet::Publish(publish)) => publish,
            other => panic!("a PUBLISH, not {other:?}"),
        }
    }
}

#[test]
fn filters_match_as_the_standard_says() {
    for (topic, filter, expected) in [
        ("a/b", "a/b", true),
        ("a/b", "a/+", true),
        ("a/b", "+/b", true),
        ("a", "a/#", true),
        ("a/b/c", "a/#", true),
        ("a/b/c", "#", true),
        ("a/b/c", "a/+", false),
        ("a", "a/+", false),
        ("/a", "+/a", true),
        ("$SYS/x", "#", false),
        ("$SYS/x", "$SYS/#", true),
        ("ab", "a", false),
    ] {
        assert_eq!(matches(topic, filter), expected, "{topic} {filter}");
    }
}

#[tokio::test]
async fn it_stands_in_for_a_broker_with_several_clients() {
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let (mut reader, _) = Client::connect(&broker, "reader", true).await;
    let (mut writer, _) = Client::connect(&broker, "writer", true).await;
    assert_eq!(reader.subscribe("modax/+/data").await, SubscribeReasonCode::Success(QoS::AtLeastOnce));

    for id in 1..=3 {
        writer.publish("modax/sensor/data", &format!("m{id}"), id).await;
        assert_eq!(writer.acked().await, id);
    }

    for id in 1..=3 {
        let publish = reader.received().await;
        assert_eq!((publish.payload.as_ref(), publish.qos), (format!("m{id}").as_bytes(), QoS::AtLeastOnce));
        reader.send(Packet::PubAck(PubAck::new(publish.pkid))).await;
    }
    reader.send(Packet::PingReq).await;
    assert_eq!(reader.next().await, Some(Packet::PingResp));
    assert_eq!((broker.acks(), broker.pings(), broker.connections()), (3, 1, 2));
    assert!(broker.publishes().iter().all(|publish| publish.acked && publish.client_id == "writer"));

    let mut unsubscribe = Unsubscribe::new("modax/+/data");
    unsubscribe.pkid = 8;
    reader.send(Packet::Unsubscribe(unsubscribe)).await;
    assert!(matches!(reader.next().await, Some(Packet::UnsubAck(_))));
    assert_eq!(broker.unsubscribes(), ["modax/+/data"]);
    broker.publish("modax/sensor/data", "unheard", 1);
    reader.send(Packet::PingReq).await;
    assert_eq!(reader.next().await, Some(Packet::PingResp));
}

#[tokio::test]
async fn a_persistent_session_gets_what_it_missed_and_what_it_did_not_acknowledge() {
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let (mut client, connack) = Client::connect(&broker, "device", false).await;
    assert!(!connack.session_present);
    client.subscribe("commands").await;
    broker.publish("commands", "one", 1);
    assert!(!client.received().await.dup);
    drop(client);
    assert!(broker.wait_until(DEADLINE, |broker| broker.connections() == 0).await);
    broker.publish("commands", "two", 1);

    let (mut client, connack) = Client::connect(&broker, "device", false).await;

    assert!(connack.session_present);
    let (first, second) = (client.received().await, client.received().await);
    assert_eq!((first.payload.as_ref(), first.dup), (b"one".as_ref(), true));
    assert_eq!(second.payload.as_ref(), b"two");
}

#[tokio::test]
async fn retained_messages_and_wills_are_delivered() {
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let mut dying = Client::dial(&broker).await;
    let will = LastWill::new("status", "gone", QoS::AtLeastOnce, true);
    dying.send(Packet::Connect(Connect { last_will: Some(will), ..Connect::new("dying") })).await;
    dying.next().await;
    drop(dying);
    assert!(broker.wait_until(DEADLINE, |broker| broker.connections() == 0).await);

    let (mut reader, _) = Client::connect(&broker, "reader", true).await;
    reader.subscribe("status").await;

    let publish = reader.received().await;
    assert_eq!((publish.payload.as_ref(), publish.retain), (b"gone".as_ref(), true));
    assert!(broker.connects()[0].has_will);
}

#[tokio::test]
async fn the_first_broker_takes_five_and_dies_the_second_knows_no_session() {
    let first = ScriptedBroker::start(Script::new().dies_after_publishes(5)).await.unwrap();
    let second = ScriptedBroker::start(Script::new().session_present(false)).await.unwrap();
    let (mut client, _) = Client::connect(&first, "c", false).await;
    for id in 1..=5 {
        client.publish("t", "x", id).await;
    }
    assert_eq!(client.next().await, None);
    assert_eq!(first.publishes().len(), 5);
    assert!(first.publishes().iter().all(|publish| !publish.acked));
    assert_eq!((first.fired().died, first.is_running()), (1, false));
    assert!(TcpStream::connect(first.addr()).await.is_err());

    let (mut client, connack) = Client::connect(&second, "c", false).await;
    assert!(!connack.session_present);
    client.publish("t", "x", 1).await;
    assert_eq!(client.acked().await, 1);
    first.set(Script::new());
    first.restart().unwrap();
    assert!(Client::connect(&first, "c", false).await.1.session_present);
}

#[tokio::test]
async fn pubacks_are_withheld_doubled_reordered_and_misnumbered() {
    let broker = ScriptedBroker::start(Script::new().puback(Puback::Reordered(3))).await.unwrap();
    let (mut client, _) = Client::connect(&broker, "c", true).await;
    for id in 1..=3 {
        client.publish("t", "x", id).await;
    }
    assert_eq!([client.acked().await, client.acked().await, client.acked().await], [3, 2, 1]);

    broker.set(Script::new().puback(Puback::Duplicated));
    client.publish("t", "x", 4).await;
    assert_eq!([client.acked().await, client.acked().await], [4, 4]);

    broker.set(Script::new().puback(Puback::WrongId));
    client.publish("t", "x", 5).await;
    assert_eq!([client.acked().await, client.acked().await], [0x8005, 5]);

    broker.set(Script::new().puback(Puback::Missing).acks_first(1).without_pingresp());
    client.publish("t", "x", 6).await;
    client.publish("t", "x", 7).await;
    client.send(Packet::PingReq).await;
    assert_eq!(client.acked().await, 6);
    assert!(broker.wait_until(DEADLINE, |broker| broker.fired().pingresp_withheld == 1).await);

    let fired = broker.fired();
    assert_eq!((fired.puback_reordered, fired.puback_duplicated, fired.puback_wrong_id), (3, 1, 1));
    assert_eq!(fired.puback_missing, 1);
    assert_eq!(broker.publishes().iter().filter(|publish| publish.acked).count(), 6);
}

#[tokio::test]
async fn connects_are_ignored_refused_dropped_and_taken_over() {
    let broker = ScriptedBroker::start(Script::new().connack(Connack::Never)).await.unwrap();
    let mut silent = Client::dial(&broker).await;
    silent.send(Packet::Connect(Connect::new("c"))).await;
    assert!(broker.wait_until(DEADLINE, |broker| broker.fired().connack_withheld == 1).await);

    broker.set(Script::new().connack(Connack::Refuse(4)));
    let (mut refused, connack) = Client::connect(&broker, "c", true).await;
    assert_eq!(connack.code, ConnectReturnCode::BadUserNamePassword);
    assert_eq!(refused.next().await, None);

    broker.set(Script::new().connack(Connack::Drop));
    let mut dropped = Client::dial(&broker).await;
    dropped.send(Packet::Connect(Connect::new("c"))).await;
    assert_eq!(dropped.next().await, None);

    broker.set(Script::new().connack(Connack::TakenOver));
    let (mut taken, _) = Client::connect(&broker, "c", true).await;
    assert_eq!(taken.next().await, None);

    broker.set(Script::new());
    let (mut older, _) = Client::connect(&broker, "c", true).await;
    let (mut twin, _) = Client::connect(&broker, "c", true).await;
    assert_eq!(older.next().await, None);
    twin.send(Packet::PingReq).await;
    assert_eq!(twin.next().await, Some(Packet::PingResp));
    let fired = broker.fired();
    assert_eq!((fired.connack_refused, fired.dropped_before_connack, fired.takeovers), (1, 1, 2));
}

#[tokio::test]
async fn a_late_connack_does_not_take_over_from_the_try_that_came_after() {
    let broker = ScriptedBroker::start(Script::new().connack(Connack::Late(Duration::from_millis(80)))).await.unwrap();
    let mut given_up = Client::dial(&broker).await;
    given_up.send(Packet::Connect(Connect::new("c"))).await;
    assert!(broker.wait_until(DEADLINE, |broker| broker.fired().connack_late == 1).await);
    drop(given_up);

    let (mut client, _) = Client::connect(&broker, "c", true).await;

    assert!(broker.wait_until(DEADLINE, |broker| broker.connections() == 1).await);
    client.send(Packet::PingReq).await;
    assert_eq!(client.next().await, Some(Packet::PingResp));
    assert_eq!((broker.fired().takeovers, broker.fired().connack_late), (0, 2));
}

#[tokio::test]
async fn subscriptions_are_refused_and_lowered_and_a_claimed_session_has_none() {
    let broker = ScriptedBroker::start(Script::new().suback(Suback::Refuse)).await.unwrap();
    let (mut client, _) = Client::connect(&broker, "c", false).await;
    assert_eq!(client.subscribe("t").await, SubscribeReasonCode::Failure);
    broker.set(Script::new().suback(Suback::Lower).session_present(true));
    assert_eq!(client.subscribe("t").await, SubscribeReasonCode::Success(QoS::AtMostOnce));

    let (mut other, connack) = Client::connect(&broker, "new", false).await;
    assert!(connack.session_present);
    broker.publish("t", "x", 1);
    assert_eq!(client.received().await.qos, QoS::AtMostOnce);
    other.send(Packet::PingReq).await;
    assert_eq!(other.next().await, Some(Packet::PingResp));
    let fired = broker.fired();
    assert_eq!((fired.suback_refused, fired.suback_lowered, fired.session_lies), (1, 1, 1));
    assert_eq!(broker.subscribes().len(), 2);
}

#[tokio::test]
async fn a_connection_closes_after_its_publishes_and_the_broker_lives() {
    let broker = ScriptedBroker::start(Script::new().closes_after_publishes(2)).await.unwrap();
    for _ in 0..2 {
        let (mut client, _) = Client::connect(&broker, "c", false).await;
        client.publish("t", "x", 1).await;
        client.publish("t", "x", 2).await;
        assert_eq!(client.next().await, None);
    }
    assert_eq!((broker.fired().closed, broker.publishes().len(), broker.is_running()), (2, 4, true));
}

#[tokio::test]
async fn a_client_of_3_1_1_is_closed_on_where_only_mqtt_5_has_a_word() {
    let broker = ScriptedBroker::start(Script::new().puback(Puback::Refused(0x97))).await.unwrap();
    let (mut client, _) = Client::connect(&broker, "a", true).await;
    client.publish("t", "no", 1).await;
    assert_eq!(client.next().await, None);
    let (mut client, _) = Client::connect(&broker, "a", true).await;
    broker.disconnect_with("a", 0x8B);
    assert_eq!(client.next().await, None);
    assert_eq!((broker.fired().puback_refused, broker.fired().goodbyes), (1, 1));
}
