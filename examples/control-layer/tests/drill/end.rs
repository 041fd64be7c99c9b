//! The end of an instance whose database does not take what it holds.

use modax_testbed::{
    Ground, Mosquitto, PostgresCluster, Signal,
    device::{Device, DeviceConfig, DeviceLog},
    oracle::DeviceOracle,
    wait,
};

use crate::{LONG, Layer, Outcome, rows, servers};

/// A connection that nobody takes away.
async fn plain(database: &PostgresCluster) -> tokio_postgres::Client {
    let (client, connection) =
        tokio_postgres::connect(&database.url(), tokio_postgres::NoTls).await.expect("a connection");
    tokio::spawn(connection);
    client
}

/// A layer that holds readings which it has acknowledged, a database that does not take them, and what the device sent.
async fn with_readings_that_are_held_back(
    ground: &Ground,
    database: &PostgresCluster,
    broker: &Mosquitto,
    locking: &tokio_postgres::Client,
) -> Result<(Layer, DeviceLog), modax_testbed::TestbedError> {
    let (brokers, url) = (broker.url(), database.url());
    let pairs = [("MQTT_BROKERS", brokers.as_str()), ("DATABASE_URL", url.as_str())];
    let layer = Layer::start(ground, "a", &pairs).await?;
    layer.until_ready().await;
    let lock = "SET idle_in_transaction_session_timeout = 0; BEGIN; LOCK TABLE sensor_data";
    locking.batch_execute(lock).await.expect("locked");

    let device = Device::start(DeviceConfig::new("ESP32_1", [broker.url()])).await.expect("a device");
    assert!(device.wait_until(LONG, |status| status.acked >= 10).await, "{:?}", device.status());
    let log = device.finish(LONG).await;
    let sent = DeviceOracle::judge(std::slice::from_ref(&log), &[]).acked;
    wait::until(LONG, "the layer has them", || async {
        layer.counter("modax_control_readings_received_total").await >= sent
    })
    .await?;
    assert!(layer.counter("modax_control_buffer_items").await >= sent, "the fault fired");
    Ok((layer, log))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_written_once_the_database_takes_it_although_the_instance_was_told_to_stop() -> Outcome
{
    let (ground, database, broker) = servers().await?;
    let locking = plain(&database).await;
    let (layer, log) = with_readings_that_are_held_back(&ground, &database, &broker, &locking).await?;
    layer.process.signal(Signal::TERM);
    // An attempt at the database ends after ten seconds, later than the steps of a stop that have nothing to write.
    wait::until(LONG, "an attempt has ended", || async {
        let log = layer.process.log_tail(50);
        log.split_once("draining").is_some_and(|(_, since)| since.contains("readings wait for"))
    })
    .await?;
    assert!(layer.process.is_running(), "it has given up: {}", layer.process.log_tail(20));

    locking.batch_execute("ROLLBACK").await.expect("given back");

    let status = layer.process.exited(LONG).await?;
    assert_eq!(status.code(), Some(0), "{}", layer.process.log_tail(20));
    let verdict = DeviceOracle::judge(std::slice::from_ref(&log), &rows(&database).await);
    assert!(verdict.is_clean(), "{verdict:?}\n{}", layer.process.log_tail(20));
    ground.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_written_is_said_and_is_no_success() -> Outcome {
    let (ground, database, broker) = servers().await?;
    let locking = plain(&database).await;
    let (layer, _log) = with_readings_that_are_held_back(&ground, &database, &broker, &locking).await?;

    let status = layer.process.terminate(LONG).await?;

    let log = layer.process.log_tail(50);
    assert_eq!(status.code(), Some(1), "{log}");
    let said: Vec<&str> = log.lines().filter(|line| line.contains("not written")).collect();
    let [line] = said.as_slice() else { panic!("one line: {log}") };
    let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
    assert_eq!(line["level"], "ERROR", "{line}");
    assert!(line["readings_and_safety_changes"].as_u64().is_some_and(|lost| lost >= 10), "{line}");
    ground.stop().await;
    Ok(())
}
