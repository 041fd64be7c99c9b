//! Two real control layers, a real PostgreSQL, a real broker, broken on purpose. Each test has a ground of its own.

mod advice;
mod end;
mod frozen;
mod late;
mod layer;
mod nonsense;
mod ready;
mod retained;
mod stop;
mod tls;
mod twins;

use std::time::Duration;

use layer::Layer;
use modax_testbed::{
    Ground, Mosquitto, MosquittoOptions, PostgresCluster, PostgresOptions, TestbedError,
    device::{Device, DeviceConfig, SafetyState},
    oracle::{DeviceOracle, SensorRow},
    proxy::{Direction, Fault, Proxy},
    wait,
};
use reqwest::StatusCode;
use serde_json::{Value, json};

type Outcome = Result<(), TestbedError>;

/// Every wait of a drill; far above what is needed on a busy machine.
const LONG: Duration = Duration::from_secs(60);

fn single() -> PostgresOptions {
    PostgresOptions { standbys: 0, ..PostgresOptions::default() }
}

/// What most drills need: a ground of their own, one PostgreSQL, one broker.
async fn servers() -> Result<(Ground, PostgresCluster, Mosquitto), TestbedError> {
    let ground = Ground::start().await?;
    let (database, broker) = tokio::try_join!(ground.postgres(single()), ground.mosquitto())?;
    Ok((ground, database, broker))
}

async fn sql(cluster: &PostgresCluster, statement: &str) -> String {
    cluster.nodes()[0].psql(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"))
}

/// Waits until one of them may publish commands: the time of a command runs while it waits for that.
async fn until_relayed(layers: &[&Layer]) -> Outcome {
    wait::until(LONG, "a layer holds the lease", || async {
        let acquired = layers.iter().map(|layer| layer.counter("modax_control_relay_leases_acquired_total"));
        futures_util::future::join_all(acquired).await.into_iter().any(|times| times >= 1)
    })
    .await
}

/// A device that waits for its broker however long that takes: it has no session, and what is published while it connects
/// again is lost to it.
fn patient(device_id: &str, broker: String) -> DeviceConfig {
    DeviceConfig { answer_deadline: Duration::from_secs(60), ..DeviceConfig::new(device_id, [broker]) }
}

/// All rows, as the oracle reads them.
async fn rows(cluster: &PostgresCluster) -> Vec<SensorRow> {
    let text = sql(cluster, "SELECT json_build_array(device_id, motor_currents) FROM sensor_data").await;
    text.lines()
        .map(|line| {
            let (device_id, motor_currents) = serde_json::from_str(line).expect("a row");
            SensorRow { device_id, motor_currents }
        })
        .collect()
}

/// Reboots the device and waits until the broker has enough of what it has made since.
async fn reboot(device: &Device) {
    device.reboot();
    let made = device.status().made;
    assert!(device.wait_until(LONG, |status| status.acked >= made + 40).await, "{:?}", device.status());
}

/// The acceptance of the project: whoever hears it, however often, a reading is one row.
#[tokio::test(flavor = "multi_thread")]
async fn two_layers_a_reboot_and_a_broker_that_redelivers_lose_nothing_and_store_nothing_twice() -> Outcome {
    let ground = Ground::start().await?;
    let options = MosquittoOptions { persistence: true, ..MosquittoOptions::default() };
    let (database, broker) = tokio::try_join!(ground.postgres(single()), ground.mosquitto_with(options))?;
    let proxy = Proxy::start(broker.addr()).await.expect("a proxy");
    let (direct, proxied, url) = (broker.url(), proxy.url("mqtt"), database.url());
    let first = [("MQTT_BROKERS", direct.as_str()), ("DATABASE_URL", url.as_str())];
    let second = [("MQTT_BROKERS", proxied.as_str()), ("DATABASE_URL", url.as_str())];
    let (a, b) = tokio::try_join!(Layer::start(&ground, "a", &first), Layer::start(&ground, "b", &second))?;
    a.until_ready().await;
    b.until_ready().await;

    let device = Device::start(DeviceConfig::new("ESP32_1", [broker.url()])).await.expect("a device");
    assert!(device.wait_until(LONG, |status| status.acked >= 25).await, "{:?}", device.status());

    // Fault 1: acknowledgements of layer b vanish, then its connection breaks: the broker delivers again what b has already.
    let received = "modax_control_readings_received_total";
    proxy.set(Direction::ToServer, Fault::Blackhole);
    let before = b.counter(received).await;
    wait::until(LONG, "b has what it cannot acknowledge", || async {
        b.counter(received).await > before && proxy.fired().blackhole > 0
    })
    .await?;
    proxy.cut_all();
    proxy.clear();
    // Fault 2: layer a is killed; the device reboots while it is away, so that a hears the new boot from the broker's queue.
    a.process.kill();
    reboot(&device).await;
    let a = Layer::start(&ground, "a", &first).await?;
    a.until("a is ready again", "/ready", |status, _| status == StatusCode::OK).await;
    // Fault 3: another reboot, with both there.
    reboot(&device).await;
    let log = device.finish(LONG).await;

    let mut verdict = DeviceOracle::judge(std::slice::from_ref(&log), &rows(&database).await);
    let stored = wait::until(LONG, "every reading has its row", || async {
        DeviceOracle::judge(std::slice::from_ref(&log), &rows(&database).await).lost.is_empty()
    })
    .await;
    for layer in [&a, &b] {
        layer.until("nothing waits", "/live", |_, _| true).await;
        wait::until(LONG, "the buffer is empty", || async { layer.counter("modax_control_buffer_items").await == 0 })
            .await?;
    }
    if stored.is_ok() {
        verdict = DeviceOracle::judge(std::slice::from_ref(&log), &rows(&database).await);
    }
    let boots = sql(&database, "SELECT * FROM device_boots ORDER BY started_at").await;
    assert!(verdict.is_clean(), "{verdict:?}\n{boots}\n{}\n{}", a.process.log_tail(20), b.process.log_tail(20));
    assert_eq!(verdict.reboots, 2);
    assert!(b.counter(received).await > verdict.acked, "nothing was delivered twice to b");
    assert_eq!(sql(&database, "SELECT count(*) FROM device_boots").await, "3", "{boots}");
    let shifted = "SELECT count(*) FROM sensor_data WHERE abs(extract(epoch FROM stored_at - time)) > 60";
    assert_eq!(sql(&database, shifted).await, "0", "times are when the readings were taken");
    let strays = "SELECT (SELECT count(*) FROM sensor_data_default) + (SELECT count(*) FROM safety_events_default)";
    assert_eq!(sql(&database, strays).await, "0", "today has its partition");
    ground.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_taken_once_when_safe_refused_when_not_and_late_for_nobody() -> Outcome {
    let (ground, database, broker) = servers().await?;
    let (brokers, url) = (broker.url(), database.url());
    let pairs = [("MQTT_BROKERS", brokers.as_str()), ("DATABASE_URL", url.as_str()), ("COMMAND_TTL", "15")];
    let (a, b) = tokio::try_join!(Layer::start(&ground, "a", &pairs), Layer::start(&ground, "b", &pairs))?;
    let device = Device::start(patient("ESP32_1", broker.url())).await.expect("a device");
    for layer in [&a, &b] {
        layer.until_safe().await;
    }
    until_relayed(&[&a, &b]).await?;
    the_same_key_is_the_same_command(&database, &a, &b, &device).await?;
    what_is_unsafe_is_refused_and_audited(&database, &a, &b, &device).await?;
    the_read_routes_answer_as_the_panel_expects(&a).await;
    live_messages_come_over_websockets(&a).await;
    a_silent_device_makes_it_unsafe_until_it_is_taken_out(&broker, &a, &b).await?;
    a_database_that_is_away_is_said_and_not_waited_for(&database, &a, &device).await?;
    for layer in [&a, &b] {
        let status = layer.process.terminate(Duration::from_secs(20)).await?;
        assert_eq!(status.code(), Some(0), "{}", layer.process.log_tail(20));
    }
    ground.stop().await;
    Ok(())
}

async fn the_same_key_is_the_same_command(db: &PostgresCluster, a: &Layer, b: &Layer, device: &Device) -> Outcome {
    let body = json!({"command_type": "set_speed", "parameters": {"rpm": "100"}});
    let first = a.taken_under(&body, "k1").await;
    assert_eq!((&first["status"], &first["command"]), (&json!("success"), &json!("set_speed")));
    assert_eq!(b.taken_under(&body, "k1").await["command_id"], first["command_id"]);
    let other = json!({"command_type": "set_speed", "parameters": {"rpm": "200"}});
    let (status, conflict) = b.answered(&other, "k1").await;
    assert_eq!((status, &conflict["status_code"]), (StatusCode::CONFLICT, &json!(409)));

    assert!(device.wait_until(LONG, |status| status.acted == 1).await, "{}", a.process.log_tail(20));
    let id = first["command_id"].as_str().expect("an id");
    let path = format!("/api/v1/control/commands/{id}");
    a.until("it is acknowledged", &path, |_, body| body["status"] == "acknowledged").await;
    assert_eq!(sql(db, "SELECT count(*), min(status) FROM control_commands").await, "1|executed");
    let (status, body, _) = a.command(&json!({"parameters": {}}), None).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(body["message"].as_str().is_some_and(|text| text.contains("command_type")), "{body}");
    Ok(())
}

async fn what_is_unsafe_is_refused_and_audited(db: &PostgresCluster, a: &Layer, b: &Layer, device: &Device) -> Outcome {
    device.report_safety(SafetyState { door_closed: false, ..SafetyState::default() });
    for layer in [a, b] {
        layer.until("it is unsafe", "/status", |_, body| body["is_safe"] == false).await;
    }
    let (status, refused, _) = a.command(&json!({"command_type": "start"}), None).await;
    assert_eq!((status, &refused["status_code"]), (StatusCode::FORBIDDEN, &json!(403)), "{refused}");
    assert_eq!(sql(db, "SELECT command_type FROM control_commands WHERE status = 'blocked'").await, "start");
    let again = json!({"command_type": "set_speed", "parameters": {"rpm": "100"}});
    // It was taken when it was safe.
    b.taken_under(&again, "k1").await;
    a.taken(&json!({"command_type": "stop"})).await;
    assert!(device.wait_until(LONG, |status| status.acted == 2).await, "stopping is never refused");

    device.report_safety(SafetyState::default());
    for layer in [a, b] {
        layer.until("it is safe again", "/status", |_, body| body["is_safe"] == true).await;
    }
    let events = "SELECT string_agg(is_safe::text, ',' ORDER BY time) FROM safety_events";
    let once =
        wait::until(LONG, "each change has one row", || async { sql(db, events).await == "true,false,true" }).await;
    assert!(once.is_ok(), "{}", sql(db, "SELECT * FROM safety_events ORDER BY time").await);
    Ok(())
}

async fn the_read_routes_answer_as_the_panel_expects(a: &Layer) {
    for prefix in ["", "/api/v1"] {
        let (status, root) = a.get(&format!("{prefix}/")).await;
        assert_eq!((status, &root["api_prefix"]), (StatusCode::OK, &json!("/api/v1")), "{prefix}");
        assert_eq!(a.get(&format!("{prefix}/devices")).await.1, json!(["ESP32_1"]));
        let (_, data) = a.get(&format!("{prefix}/devices/ESP32_1/data")).await;
        assert_eq!(data["safety_status"]["door_closed"], true, "{data}");
        assert!(data["vibration"]["magnitude"].is_number() && data["temperatures"].is_array());
        let (_, history) = a.get(&format!("{prefix}/devices/ESP32_1/history?count=3")).await;
        assert_eq!((&history["count"], history["readings"].as_array().map(Vec::len)), (&json!(3), Some(3)));
        for (path, expected) in [
            ("/devices/none/data", 404),
            ("/devices/ESP32_1/ai-analysis", 404),
            ("/devices/ESP32_1/history?count=x", 422),
            ("/nowhere", 404),
            ("/control/command", 405),
            ("/ws", 426),
        ] {
            let (status, body) = a.get(&format!("{prefix}{path}")).await;
            assert_eq!((status.as_u16(), &body["status_code"]), (expected, &json!(expected)), "{prefix}{path}: {body}");
            assert!(body["error"].is_string() && body["timestamp"].is_number() && body.get("details").is_some());
        }
        let (status, health) = a.get(&format!("{prefix}/health")).await;
        assert_eq!((status, &health["status"]), (StatusCode::OK, &json!("healthy")), "{health}");
        assert!(health["checks"]["mqtt"] != Value::Null && health["checks"]["database"] != Value::Null, "{health}");
        assert_eq!(a.get(&format!("{prefix}/ai/status")).await.1["enabled"], false);
    }
}

async fn live_messages_come_over_websockets(a: &Layer) {
    assert!(a.hears("/ws", r#""type":"sensor_data""#).await);
    assert!(a.hears("/api/v1/ws/device/ESP32_1", r#""type":"safety_status""#).await);
}

async fn a_silent_device_makes_it_unsafe_until_it_is_taken_out(broker: &Mosquitto, a: &Layer, b: &Layer) -> Outcome {
    let silent = Device::start(DeviceConfig::new("ESP32_2", [broker.url()])).await.expect("a device");
    for layer in [a, b] {
        layer.until("it is known", "/devices", |_, body| *body == json!(["ESP32_1", "ESP32_2"])).await;
    }
    drop(silent);
    a.until("it is missed", "/status", |_, body| body["is_safe"] == false).await;
    assert_eq!(a.delete("/devices/ESP32_2").await, StatusCode::OK);
    assert_eq!(a.delete("/devices/ESP32_2").await, StatusCode::NOT_FOUND);
    for layer in [a, b] {
        layer.until("it is forgotten", "/devices", |_, body| *body == json!(["ESP32_1"])).await;
        layer.until("it is safe", "/status", |_, body| body["is_safe"] == true).await;
    }
    Ok(())
}

async fn a_database_that_is_away_is_said_and_not_waited_for(
    db: &PostgresCluster,
    a: &Layer,
    device: &Device,
) -> Outcome {
    let acted = device.status().acted;
    db.nodes()[0].stop();
    // That each answers at all while the server is stopped is the proof: it stays stopped until all have. How fast they
    // are is the layer's own limit, below the 3 s of the contract; a clock in here would judge the machine.
    for _ in 0..3 {
        let (status, body, retry) = a.command(&json!({"command_type": "start"}), Some("while-away")).await;
        assert_eq!((status, retry), (StatusCode::SERVICE_UNAVAILABLE, true), "{body}");
    }
    assert_eq!(a.delete("/devices/none").await, StatusCode::SERVICE_UNAVAILABLE);
    // Safety does not need the database, and readiness is not the database's to take away.
    let (status, body) = a.get("/status").await;
    assert_eq!((status, &body["is_safe"]), (StatusCode::OK, &json!(true)), "{body}");
    a.until("health says so", "/health", |status, _| status == StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(a.get("/ready").await.0, StatusCode::OK);
    what_is_unsafe_meanwhile_is_refused_without_a_word_about_earlier_requests(a, device).await;

    db.nodes()[0].cont();
    a.until("it is healthy again", "/health", |status, _| status == StatusCode::OK).await;
    a.taken_under(&json!({"command_type": "start"}), "while-away").await;
    wait::until(LONG, "the audit is settled", || async {
        sql(db, "SELECT count(*) FROM control_commands WHERE status = 'accepted'").await == "0"
    })
    .await?;
    assert!(device.status().acted <= acted + 1, "{:?}: one key acted more than once", device.status());
    Ok(())
}

async fn what_is_unsafe_meanwhile_is_refused_without_a_word_about_earlier_requests(a: &Layer, device: &Device) {
    device.report_safety(SafetyState { door_closed: false, ..SafetyState::default() });
    a.until("it is unsafe", "/status", |_, body| body["is_safe"] == false).await;
    let body = json!({"command_type": "set_speed", "parameters": {"rpm": "100"}});
    for (key, may_act) in [(Some("k1"), true), (None, false)] {
        let (status, refused, _) = a.command(&body, key).await;
        assert_eq!(
            (status, &refused["details"]["earlier_may_act"]),
            (StatusCode::FORBIDDEN, &json!(may_act)),
            "{refused}"
        );
    }
    device.report_safety(SafetyState::default());
    a.until("it is safe again", "/status", |_, body| body["is_safe"] == true).await;
}

/// A command must not sleep in the MQTT client and leave when the broker is back, into a plant that is no longer safe.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_taken_while_the_broker_is_away_does_not_leave_once_the_door_is_open() -> Outcome {
    let (ground, database, broker) = servers().await?;
    let proxy = Proxy::start(broker.addr()).await.expect("a proxy");
    let (brokers, url) = (proxy.url("mqtt"), database.url());
    let pairs = [
        ("MQTT_BROKERS", brokers.as_str()),
        ("DATABASE_URL", url.as_str()),
        // Longer than the test: what ends the command is the door.
        ("SAFETY_MAX_AGE", "600"),
        ("COMMAND_TTL", "600"),
    ];
    let a = Layer::start(&ground, "a", &pairs).await?;
    let device = Device::start(patient("ESP32_1", broker.url())).await.expect("a device");
    a.until_safe().await;
    until_relayed(&[&a]).await?;
    a.taken(&json!({"command_type": "start"})).await;
    assert!(device.wait_until(LONG, |status| status.acted == 1).await, "{}", a.process.log_tail(20));

    let nowhere = std::net::SocketAddr::from(([127, 0, 0, 1], ground.port()));
    proxy.redirect(nowhere);
    proxy.cut_all();
    wait::until(LONG, "the broker is away", || async { a.counter("modax_control_mqtt_connected").await == 0 }).await?;
    // By what was heard last the plant is safe.
    let taken = a.taken(&json!({"command_type": "start"})).await;
    device.report_safety(SafetyState { door_closed: false, ..SafetyState::default() });
    proxy.redirect(broker.addr());

    let settled = a.settled(&taken).await;
    assert_eq!((&settled["audit"], &settled["reason"]), (&json!("blocked"), &json!("the plant is not safe")));
    assert_eq!(device.status().acted, 1, "{settled}");
    ground.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_servers_it_starts_alive_and_not_ready_and_asks_for_its_key() -> Outcome {
    let ground = Ground::start().await?;
    let (nobody, nothing) = (format!("mqtt://127.0.0.1:{}", ground.port()), ground.port());
    let url = format!("postgresql://modax@127.0.0.1:{nothing}/modax");
    let pairs = [
        ("MQTT_BROKERS", nobody.as_str()),
        ("DATABASE_URL", url.as_str()),
        ("API_KEY_ENABLED", "true"),
        ("API_KEY", "geheim"),
    ];
    let layer = Layer::start(&ground, "lonely", &pairs).await?;
    layer.until("it is alive", "/live", |status, _| status == StatusCode::OK).await;
    for path in ["/ready", "/status", "/health", "/api/v1/ready", "/api/v1/status"] {
        layer.until(path, path, |status, _| status == StatusCode::SERVICE_UNAVAILABLE).await;
    }
    assert!(layer.text("/metrics").await.contains("modax_control_mqtt_connected 0"));
    for path in ["/devices", "/", "/api/v1/ai/status", "/ws", "/control/commands/x"] {
        assert_eq!(layer.get(path).await.0, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(layer.get_with_key(path, "falsch").await, StatusCode::UNAUTHORIZED, "{path}");
        assert_ne!(layer.get_with_key(path, "geheim").await, StatusCode::UNAUTHORIZED, "{path}");
    }
    let (status, _, _) = layer.command(&json!({"command_type": "start"}), None).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let status = layer.process.terminate(Duration::from_secs(25)).await?;
    assert_eq!(status.code(), Some(0), "{}", layer.process.log_tail(20));
    assert!(!layer.process.log_tail(1_000).contains("geheim"));
    ground.stop().await;
    Ok(())
}
