//! The testbed's own means against real servers: the simulated device, the fault proxy and the oracles agree about what
//! happened when brokers hang, links break and answers are lost.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use modax_testbed::device::{Device, DeviceConfig, serial_of};
use modax_testbed::oracle::{DeviceOracle, FieldOracle, IssuedCommand, PerKeyHistory, SensorRow};
use modax_testbed::proxy::{Direction, Fault, Proxy};
use modax_testbed::{Ground, PostgresOptions, TestbedError, wait};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Codec, Connect, Packet, PubAck, Publish, Subscribe};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::codec::Framed;

type Outcome = Result<(), TestbedError>;

const DEADLINE: Duration = Duration::from_secs(60);

async fn connect(addr: SocketAddr, client_id: &str) -> Framed<TcpStream, Codec> {
    let stream = TcpStream::connect(addr).await.expect("the broker listens");
    let mut wire = Framed::new(stream, Codec { max_incoming_size: 1 << 20, max_outgoing_size: 1 << 20 });
    wire.send(Packet::Connect(Connect::new(client_id))).await.expect("a CONNECT goes out");
    let answer = tokio::time::timeout(DEADLINE, wire.next()).await;
    assert!(matches!(answer, Ok(Some(Ok(Packet::ConnAck(_))))), "{answer:?}");
    wire
}

/// Writes down the serial numbers of the readings that one broker delivers, in order.
struct Listener {
    serials: Arc<Mutex<Vec<u64>>>,
    task: JoinHandle<()>,
}

impl Listener {
    async fn start(addr: SocketAddr) -> Self {
        let mut wire = connect(addr, "listener").await;
        let subscribe = Subscribe { pkid: 1, ..Subscribe::new("modax/sensor/data", QoS::AtLeastOnce) };
        wire.send(Packet::Subscribe(subscribe)).await.expect("a SUBSCRIBE goes out");
        let answer = tokio::time::timeout(DEADLINE, wire.next()).await;
        assert!(matches!(answer, Ok(Some(Ok(Packet::SubAck(_))))), "{answer:?}");
        let serials = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&serials);
        let task = tokio::spawn(async move {
            while let Some(Ok(packet)) = wire.next().await {
                let Packet::Publish(publish) = packet else { continue };
                written.lock().expect("nobody panicked").push(serial_in(&publish.payload));
                if publish.pkid != 0 && wire.send(Packet::PubAck(PubAck::new(publish.pkid))).await.is_err() {
                    return;
                }
            }
        });
        Self { serials, task }
    }

    fn serials(&self) -> Vec<u64> {
        self.serials.lock().expect("nobody panicked").clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn currents(payload: &[u8]) -> Vec<f64> {
    let reading: serde_json::Value = serde_json::from_slice(payload).expect("a reading is JSON");
    serde_json::from_value(reading["motor_currents"].clone()).expect("a reading has currents")
}

fn serial_in(payload: &[u8]) -> u64 {
    serial_of(&currents(payload)).expect("a reading of the device has a serial number")
}

fn row(device_id: &str, serial: u64) -> SensorRow {
    let spelt = |digits: u64| 3.0 + digits as f64 / 1000.0;
    let motor_currents = vec![spelt(serial % 1000), spelt(serial / 1000)];
    SensorRow { device_id: device_id.to_owned(), motor_currents }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_loses_nothing_and_keeps_its_order_while_links_and_brokers_fail() -> Outcome {
    let ground = Ground::start().await?;
    let (first, second) = (ground.mosquitto().await?, ground.mosquitto().await?);
    let (left, right) = (Proxy::start(first.addr()).await.unwrap(), Proxy::start(second.addr()).await.unwrap());
    let listeners = [Listener::start(first.addr()).await, Listener::start(second.addr()).await];
    let config = DeviceConfig {
        data_interval: Duration::from_millis(10),
        // Longer than a busy machine takes: the device leaves a broker because of the fault.
        answer_deadline: Duration::from_secs(5),
        ..DeviceConfig::new("ESP32_FIELD_001", [left.url("mqtt"), right.url("mqtt")])
    };
    let device = Device::start(config).await.unwrap();
    let goes_on = async |broker: String| {
        let acked = device.status().acked;
        let went_on = device
            .wait_until(DEADLINE, |status| status.acked > acked + 20 && status.broker.as_ref() == Some(&broker))
            .await;
        assert!(went_on, "readings are acknowledged by {broker}: {:?}", device.status());
    };
    goes_on(left.url("mqtt")).await;

    // Readings arrive, acknowledgements do not.
    left.set(Direction::ToClient, Fault::Blackhole);
    goes_on(right.url("mqtt")).await;
    assert!(left.fired().blackhole > 0);
    left.clear();

    device.reboot();
    right.cut_all();
    goes_on(left.url("mqtt")).await;

    // The broker freezes with its sockets open.
    first.stop();
    goes_on(right.url("mqtt")).await;
    first.cont();

    let log = device.finish(DEADLINE).await;
    let verdict = wait::until(DEADLINE, "every owed reading with a listener", || async {
        let seen: BTreeSet<u64> = listeners.iter().flat_map(Listener::serials).collect();
        let rows: Vec<SensorRow> = seen.into_iter().map(|serial| row("ESP32_FIELD_001", serial)).collect();
        let verdict = DeviceOracle::judge(std::slice::from_ref(&log), &rows);
        verdict.lost.is_empty().then_some(verdict)
    })
    .await?;
    assert!(verdict.is_clean(), "{verdict:?}");
    assert!(verdict.reboots == 1 && verdict.queued == 0 && verdict.owed > 80, "{verdict:?}");

    let mut history = PerKeyHistory::new();
    for (broker, listener) in listeners.iter().enumerate() {
        (0..verdict.made).for_each(|serial| history.sent(broker, serial));
        listener.serials().into_iter().for_each(|serial| history.received(broker, serial));
    }
    let history = history.verdict();
    assert!(history.reordered.is_empty() && history.phantoms.is_empty(), "{history:?}");
    let [left, right] = listeners.each_ref().map(|listener| BTreeSet::from_iter(listener.serials()));
    assert!(left.intersection(&right).count() > 0, "what was not acknowledged was published again elsewhere");
    ground.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_on_a_nats_cluster_outlives_its_node_and_acts_once() -> Outcome {
    let ground = Ground::start().await?;
    let cluster = ground.nats_cluster().await?;
    // It has no session: what is published while it connects again is lost to it.
    let patient = DeviceConfig {
        answer_deadline: Duration::from_secs(10),
        ..DeviceConfig::new("ESP32_FIELD_002", cluster.urls())
    };
    let device = Device::start(patient).await.unwrap();
    assert!(device.wait_until(DEADLINE, |status| status.acked > 10).await, "{:?}", device.status());
    let broker = device.status().broker.expect("it is connected");
    let node = cluster.nodes().iter().position(|node| node.url() == broker).expect("to one of the nodes");
    let other = &cluster.nodes()[(node + 1) % 3];

    let mut operator = connect(other.addr(), "operator").await;
    for request in ["1", "2", "2", "3"] {
        let command = serde_json::json!({
            "timestamp": 1, "command_id": format!("id-{request}"), "command_type": "set_speed",
            "parameters": { "request": request },
        });
        let publish = Publish::new("modax/control/commands", QoS::AtLeastOnce, command.to_string());
        operator.send(Packet::Publish(Publish { pkid: 1, ..publish })).await.expect("a command goes out");
        let answer = tokio::time::timeout(DEADLINE, operator.next()).await;
        assert!(matches!(answer, Ok(Some(Ok(Packet::PubAck(_))))), "{answer:?}");
    }
    assert!(device.wait_until(DEADLINE, |status| status.acted == 3).await, "{:?}", device.status());

    cluster.nodes()[node].kill();
    let acked = device.status().acked;
    assert!(device.wait_until(DEADLINE, |status| status.acked > acked + 20).await, "{:?}", device.status());

    assert_ne!(device.status().broker, Some(broker));
    let log = device.finish(DEADLINE).await;
    let issued = ["1", "2", "3"].map(|request| IssuedCommand { request: request.to_owned(), answered: true });
    let verdict = FieldOracle::judge(&issued, &[log]);
    assert!(verdict.is_clean() && verdict.acted == 3 && verdict.repeats >= 1, "{verdict:?}");
    ground.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_behind_commit_leaves_the_row_and_takes_the_answer() -> Outcome {
    let ground = Ground::start().await?;
    let cluster = ground.postgres(PostgresOptions { standbys: 0, ..PostgresOptions::default() }).await?;
    let node = &cluster.nodes()[0];
    let proxy = Proxy::start(node.addr()).await.unwrap();
    let direct: tokio_postgres::Config = cluster.url().parse().expect("a libpq URL");
    let mut config = tokio_postgres::Config::new();
    config.host(proxy.addr().ip().to_string()).port(proxy.addr().port());
    config.user(direct.get_user().expect("a user")).dbname(direct.get_dbname().expect("a database"));
    config.password(direct.get_password().unwrap_or_default());
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.expect("a connection through the proxy");
    let driving = tokio::spawn(connection);
    client.batch_execute("CREATE TABLE t (n int)").await.expect("a table");
    proxy.set(Direction::ToServer, Fault::CutAfterMatch(b"COMMIT\0".to_vec()));

    client.batch_execute("BEGIN").await.expect("a transaction");
    client.batch_execute("INSERT INTO t VALUES (1)").await.expect("a row");
    let commit = tokio::time::timeout(DEADLINE, client.batch_execute("COMMIT")).await.expect("an end in time");

    assert!(commit.is_err(), "the answer was lost");
    assert_eq!(proxy.fired().cut, 1);
    wait::until(DEADLINE, "the committed row", || async {
        node.psql("SELECT count(*) FROM t").await.is_ok_and(|count| count == "1")
    })
    .await?;
    drop(client);
    let _ = driving.await;
    ground.stop().await;
    Ok(())
}
