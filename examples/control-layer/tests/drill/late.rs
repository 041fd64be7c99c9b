//! What a broker delivers too late, and what the audit says of it.

use modax_testbed::{
    Ground, Mosquitto, PostgresCluster, TestbedError,
    device::{Device, DeviceConfig, Entry},
    wait,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{LONG, Layer, Outcome, patient, servers, single, sql, until_relayed};

const EXPIRED: &str = "expired; an earlier attempt may have been delivered or may still be";
const BLOCKED: &str = "the plant is not safe; an earlier attempt may have been delivered or may still be";

/// The broker takes the command into its socket's buffer and is frozen; it delivers it when it goes on, long after its time. The
/// instance that sent it is frozen as well, and its successor must not say that nothing was sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_a_frozen_broker_delivers_late_is_refused_by_the_field_and_in_doubt_for_the_audit() -> Outcome {
    let ground = Ground::start().await?;
    let (database, broker, other) =
        tokio::try_join!(ground.postgres(single()), ground.mosquitto(), ground.mosquitto())?;
    let (one, two, url) = (broker.url(), other.url(), database.url());
    // Long enough for it to be seen with the broker before its time is over.
    let more = [("SAFETY_MAX_AGE", "600"), ("COMMAND_TTL", "15")];
    let a = [("MQTT_BROKERS", one.as_str()), ("DATABASE_URL", url.as_str()), more[0], more[1]];
    let b = [("MQTT_BROKERS", two.as_str()), ("DATABASE_URL", url.as_str()), more[0], more[1]];
    let a = Layer::start(&ground, "a", &a).await?;
    let newer = Device::start(patient("ESP32_1", broker.url())).await.expect("a device");
    let old = DeviceConfig { refuses_expired: false, ..patient("ESP32_OLD", broker.url()) };
    let old = Device::start(old).await.expect("a device");
    let both = json!(["ESP32_1", "ESP32_OLD"]);
    a.until("both are known", "/devices", |_, body| *body == both).await;
    a.until_safe().await;
    until_relayed(&[&a]).await?;
    let late = frozen_with_the_broker(&database, &broker, &a, &[&newer, &old]).await?;
    let b = Layer::start(&ground, "b", &b).await?;
    // Blocked if its time was not quite over when b took over, who has not heard the plant.
    let told = b.settled(&late).await;
    let ends = [("failed", EXPIRED), ("blocked", BLOCKED)].map(|(status, reason)| (json!(status), json!(reason)));
    assert!(ends.contains(&(told["status"].clone(), told["reason"].clone())), "{told}");
    assert_eq!(told["maybe_delivered"], true);
    let over = "SELECT bool_and(expires_at < clock_timestamp()) FROM control_commands";
    wait::until(LONG, "its time is over", || async { sql(&database, over).await == "t" }).await?;

    broker.cont();
    let is_there = old.wait_until(LONG, |_| receipts(&old, &late).contains(&(true, true))).await;
    assert!(is_there, "the broker did not deliver it: {:?}", old.status());
    assert!(newer.wait_until(LONG, |_| !receipts(&newer, &late).is_empty()).await, "{:?}", newer.status());
    let refused = receipts(&newer, &late).into_iter().all(|receipt| receipt == (true, false));
    assert!(refused, "what is late is for nobody who can tell the time");
    // What is frozen hears no request to end.
    a.process.kill();
    ground.stop().await;
    Ok(())
}

/// Freezes the broker, gives the layer a command, and freezes it, too, once the broker has that: the answer.
async fn frozen_with_the_broker(
    database: &PostgresCluster,
    broker: &Mosquitto,
    layer: &Layer,
    devices: &[&Device],
) -> Result<Value, TestbedError> {
    let start = json!({"command_type": "start"});
    // The client leaves a broker that says nothing after a second or so; a busy machine may need longer for a command.
    for _ in 0..10 {
        let heard = layer.taken(&start).await;
        // Then the next one is the only one that is on its way.
        layer.settled(&heard).await;
        for device in devices {
            let acted = device.wait_until(LONG, |_| receipts(device, &heard).contains(&(false, true))).await;
            assert!(acted, "{}", layer.process.log_tail(20));
        }
        let before = suspicions(layer);
        broker.stop();
        let late = layer.taken(&start).await;
        if is_on_its_way(layer).await? {
            // Not killed: the broker would reset its connection at the first message for it, with what it has not read yet.
            layer.process.stop();
            // Nor has it hung up itself: it suspects a broker for a while before.
            if suspicions(layer) == before {
                let noted = format!(
                    "SELECT status = 'accepted' AND reason LIKE 'handed to a broker%' FROM control_commands
                     WHERE command_id = '{}'",
                    late["command_id"].as_str().expect("an id")
                );
                assert_eq!(sql(database, &noted).await, "t", "an attempt is noted before it is made");
                return Ok(late);
            }
            layer.process.cont();
        }
        broker.cont();
        layer.settled(&late).await;
    }
    panic!("the client has left the broker each time");
}

/// Whether the command is in the hands of the frozen broker; else the client has left that, and stays away from it.
async fn is_on_its_way(layer: &Layer) -> Result<bool, TestbedError> {
    wait::until(LONG, "it is with the broker", || async {
        if layer.counter("modax_control_mqtt_inflight_messages").await == 1 {
            return Some(true);
        }
        (layer.counter("modax_control_mqtt_connected").await == 0).then_some(false)
    })
    .await
}

/// How often the layer's client was about to leave its broker.
fn suspicions(layer: &Layer) -> usize {
    let log = std::fs::read_to_string(layer.process.log_path()).expect("a log");
    log.matches(r#""event":"Suspected""#).count()
}

/// For each time that the device has heard the command with this answer: whether that was late, and whether it has acted.
fn receipts(device: &Device, answer: &Value) -> Vec<(bool, bool)> {
    let entries = device.log().entries.into_iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Received { command_id: Some(id), expired, acted, .. } if answer["command_id"] == id => {
                Some((expired, acted))
            }
            _ => None,
        })
        .collect()
}

/// An attempt that the audit cannot know of must not be made, but to stop the plant.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_attempt_cannot_be_noted_does_not_leave_and_a_stop_does() -> Outcome {
    let (ground, database, broker) = servers().await?;
    let (brokers, url) = (broker.url(), database.url());
    let pairs = [("MQTT_BROKERS", brokers.as_str()), ("DATABASE_URL", url.as_str()), ("COMMAND_TTL", "10")];
    let layer = Layer::start(&ground, "a", &pairs).await?;
    let device = Device::start(patient("ESP32_1", broker.url())).await.expect("a device");
    layer.until_safe().await;
    until_relayed(&[&layer]).await?;
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
                  CREATE TRIGGER refuse BEFORE UPDATE ON control_commands FOR EACH STATEMENT EXECUTE FUNCTION refuse()";
    sql(&database, refuse).await;

    let mut taken = Vec::new();
    for command_type in ["stop", "start"] {
        taken.push(layer.taken(&json!({"command_type": command_type})).await);
    }
    assert!(device.wait_until(LONG, |status| status.acted == 1).await, "{}", layer.process.log_tail(20));
    let over = "SELECT count(*) FROM modax_txn.outbox WHERE status = 'expired'";
    wait::until(LONG, "the other one expires", || async { sql(&database, over).await == "1" }).await?;
    sql(&database, "DROP TRIGGER refuse ON control_commands").await;

    let ended = [("acknowledged", false), ("expired", false)];
    for (answer, (status, maybe_delivered)) in taken.iter().zip(ended) {
        let told = layer.settled(answer).await;
        assert_eq!((&told["status"], &told["maybe_delivered"]), (&json!(status), &json!(maybe_delivered)), "{told}");
    }
    assert_eq!(device.status().acted, 1);
    ground.stop().await;
    Ok(())
}

/// Where brokers speak MQTT 5 they are told, too, when a command is of no use any more.
#[tokio::test(flavor = "multi_thread")]
async fn with_mqtt_5_a_command_tells_the_broker_when_it_expires() -> Outcome {
    let (ground, database, broker) = servers().await?;
    let _device = Device::start(patient("ESP32_1", broker.url())).await.expect("a device");
    let (plain, query, url) = (broker.url(), format!("{}?version=5", broker.url()), database.url());
    // How long a command lives and a report counts is not the matter here.
    let common = [("DATABASE_URL", url.as_str()), ("SAFETY_MAX_AGE", "600"), ("COMMAND_TTL", "15")];
    for (name, pairs) in [
        ("a", vec![("MQTT_BROKERS", plain.as_str()), ("MQTT_VERSION", "5")]),
        ("b", vec![("MQTT_BROKERS", query.as_str())]),
        ("c", vec![("MQTT_BROKERS", plain.as_str())]),
    ] {
        let pairs = [&pairs[..], &common].concat();
        let layer = Layer::start(&ground, name, &pairs).await?;
        layer.until_safe().await;
        until_relayed(&[&layer]).await?;
        let mut socket = subscribed(broker.addr()).await;
        let answer = layer.taken(&json!({"command_type": "start"})).await;
        let (properties, payload) = received(&mut socket).await;
        let command: Value = serde_json::from_slice(&payload).expect("JSON");
        // MQTT 5, 3.3.2.3.3: whole seconds, less what it has waited in the broker: one, or none if a second began there.
        let expected: &[&[u8]] = if name == "c" { &[&[]] } else { &[&[0x02, 0, 0, 0, 1], &[0x02, 0, 0, 0, 0]] };
        assert!(expected.contains(&properties.as_slice()), "{name}: the message expiry interval: {properties:?}");
        let sql = format!(
            "SELECT (extract(epoch FROM expires_at) * 1000)::bigint FROM control_commands WHERE command_id = '{}'",
            answer["command_id"].as_str().expect("an id")
        );
        let audited = database.nodes()[0].psql(&sql).await?;
        assert_eq!(command["expires_at"].to_string(), audited, "field and audit go by the same moment");
        // What is left open is the next one's to send.
        layer.settled(&answer).await;
        layer.process.terminate(LONG).await?;
    }
    ground.stop().await;
    Ok(())
}

/// A subscriber to commands that speaks MQTT 5, by hand.
async fn subscribed(broker: std::net::SocketAddr) -> TcpStream {
    let mut socket = TcpStream::connect(broker).await.expect("a connection");
    let connect = b"\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x03sub";
    socket.write_all(connect).await.expect("written");
    assert_eq!(packet(&mut socket).await.0, 0x20, "CONNACK");
    let topic = b"modax/control/commands";
    let head = [0x82, 6 + 22, 0, 1, 0, 0, 22];
    socket.write_all(&[&head[..], topic, &[0]].concat()).await.expect("written");
    assert_eq!(packet(&mut socket).await.0, 0x90, "SUBACK");
    socket
}

/// The properties and the payload of the next message, which has QoS 0.
async fn received(socket: &mut TcpStream) -> (Vec<u8>, Vec<u8>) {
    let (kind, body) = packet(socket).await;
    assert_eq!(kind, 0x30, "PUBLISH");
    let (topic, rest) = body.split_at(2 + 22);
    assert_eq!(&topic[2..], b"modax/control/commands");
    let (properties, payload) = rest[1..].split_at(usize::from(rest[0]));
    (properties.to_vec(), payload.to_vec())
}

async fn packet(socket: &mut TcpStream) -> (u8, Vec<u8>) {
    let reading = async {
        let kind = socket.read_u8().await.expect("a packet");
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = usize::from(socket.read_u8().await.expect("a length"));
            length |= (byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        socket.read_exact(&mut body).await.expect("a body");
        (kind, body)
    };
    tokio::time::timeout(LONG, reading).await.expect("a packet in time")
}
