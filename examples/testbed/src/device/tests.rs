use std::collections::BTreeSet;
use std::time::Duration;

use super::{Device, DeviceConfig, DeviceLog, Entry, SafetyState, readings, serial_of};
use crate::broker::{Puback, Script, ScriptedBroker};

const DEADLINE: Duration = Duration::from_secs(30);

fn quick(brokers: impl IntoIterator<Item = String>) -> DeviceConfig {
    DeviceConfig {
        data_interval: Duration::from_millis(2),
        safety_interval: Duration::from_millis(5),
        // It leaves a broker when the broker is gone, and not because the machine is busy.
        answer_deadline: DEADLINE,
        ..DeviceConfig::new("ESP32_TEST_001", brokers)
    }
}

fn serial_in(payload: &[u8]) -> Option<u64> {
    let reading: serde_json::Value = serde_json::from_slice(payload).unwrap();
    let currents: Vec<f64> = serde_json::from_value(reading.get("motor_currents")?.clone()).unwrap();
    serial_of(&currents)
}

fn acked_by(broker: &ScriptedBroker) -> BTreeSet<u64> {
    let publishes = broker.publishes();
    publishes.iter().filter(|publish| publish.acked).filter_map(|publish| serial_in(&publish.payload)).collect()
}

fn made(log: &DeviceLog) -> Vec<(u64, u32, u64)> {
    let made = log.entries.iter().filter_map(|entry| match entry {
        Entry::Made { serial, boot, timestamp } => Some((*serial, *boot, *timestamp)),
        _ => None,
    });
    made.collect()
}

#[test]
fn a_serial_number_survives_single_precision_and_foreign_currents_have_none() {
    for serial in [0, 1, 999, 1000, 123_456, 999_999] {
        let currents = readings::currents_of(serial);
        assert_eq!(serial_of(&currents), Some(serial));
        #[expect(clippy::cast_possible_truncation, reason = "the point of the test")]
        let narrowed = currents.map(|current| f64::from(current as f32));
        assert_eq!(serial_of(&narrowed), Some(serial));
    }
    for foreign in [&[] as &[f64], &[3.5], &[2.9, 3.1], &[4.0, 3.1], &[3.1234, 3.5], &[f64::NAN, 3.0]] {
        assert_eq!(serial_of(foreign), None, "{foreign:?}");
    }
}

#[tokio::test]
async fn readings_and_safety_reports_are_acknowledged_and_logged() {
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let device = Device::start(quick([broker.url()])).await.unwrap();
    assert!(device.wait_until(DEADLINE, |status| status.acked >= 20 && status.safety_acked >= 5).await);
    device.report_safety(SafetyState { door_closed: false, ..SafetyState::default() });
    let open = |broker: &ScriptedBroker| {
        let publishes = broker.publishes();
        publishes.iter().any(|publish| publish.payload.windows(19).any(|part| part == b"\"door_closed\":false"))
    };
    assert!(broker.wait_until(DEADLINE, open).await);

    let log = device.finish(DEADLINE).await;

    let serials: BTreeSet<u64> = made(&log).iter().map(|(serial, ..)| *serial).collect();
    assert_eq!(acked_by(&broker), serials);
    assert!(broker.publishes().iter().all(|publish| publish.qos == 1));
}

#[tokio::test]
async fn nothing_owed_is_lost_when_a_broker_dies_and_the_next_has_no_session() {
    let first = ScriptedBroker::start(Script::new().acks_first(30).dies_after_publishes(50)).await.unwrap();
    let second = ScriptedBroker::start(Script::new().session_present(false)).await.unwrap();
    let device = Device::start(quick([first.url(), second.url()])).await.unwrap();
    assert!(device.wait_until(DEADLINE, |status| status.broker == Some(second.url()) && status.acked > 100).await);

    let log = device.finish(DEADLINE).await;

    assert_eq!(first.fired().died, 1);
    let taken: BTreeSet<u64> = acked_by(&first).union(&acked_by(&second)).copied().collect();
    let serials: BTreeSet<u64> = made(&log).iter().map(|(serial, ..)| *serial).collect();
    assert_eq!(taken, serials);
    assert!(log.entries.iter().any(|entry| matches!(entry, Entry::Left { .. })));
}

#[tokio::test]
async fn a_broker_that_acknowledges_nothing_is_left_for_the_next() {
    let silent = ScriptedBroker::start(Script::new().puback(Puback::Missing).without_pingresp()).await.unwrap();
    let sound = ScriptedBroker::start(Script::new()).await.unwrap();
    let config = DeviceConfig { answer_deadline: Duration::from_secs(1), ..quick([silent.url(), sound.url()]) };
    let device = Device::start(config).await.unwrap();

    assert!(device.wait_until(DEADLINE, |status| status.acked > 20 && status.broker == Some(sound.url())).await);

    assert!(silent.fired().puback_missing > 0);
}

#[tokio::test]
async fn a_reboot_starts_timestamps_again_and_keeps_the_queue() {
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let device = Device::start(quick([broker.url()])).await.unwrap();
    assert!(device.wait_until(DEADLINE, |status| status.acked > 50).await);
    broker.set(Script::new().puback(Puback::Missing));
    assert!(device.wait_until(DEADLINE, |status| status.queued > 10).await);
    let before = device.status();

    device.reboot();
    broker.set(Script::new());

    assert!(device.wait_until(DEADLINE, |status| status.made > before.made + 30).await);
    let log = device.finish(DEADLINE).await;
    let made = made(&log);
    let last_of_first_boot = made.iter().rfind(|(_, boot, _)| *boot == 1).unwrap().2;
    let first_of_second_boot = made.iter().find(|(_, boot, _)| *boot == 2).unwrap().2;
    assert!(first_of_second_boot < last_of_first_boot, "{first_of_second_boot} {last_of_first_boot}");
    let keys: BTreeSet<(u32, u64)> = made.iter().map(|(_, boot, timestamp)| (*boot, *timestamp)).collect();
    assert_eq!(keys.len(), made.len(), "a boot and a timestamp name one reading");
    assert_eq!(acked_by(&broker).len(), made.len());
}

#[tokio::test]
async fn a_full_queue_sheds_the_oldest_and_says_so() {
    let broker = ScriptedBroker::start(Script::new().puback(Puback::Missing)).await.unwrap();
    let config = DeviceConfig { queue_limit: 10, window: 3, ..quick([broker.url()]) };
    let device = Device::start(config).await.unwrap();

    assert!(device.wait_until(DEADLINE, |status| status.shed >= 5).await);

    let status = device.status();
    assert!(status.queued <= 10, "{status:?}");
    assert_eq!(status.made, status.acked + status.shed + u64::try_from(status.queued).unwrap());
}

#[tokio::test]
async fn a_command_is_acted_on_once_for_its_id_and_the_log_file_tells_the_same() {
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let file = std::env::temp_dir().join(format!("modax-device-{}-{}.log", std::process::id(), broker.addr().port()));
    let device = Device::start(DeviceConfig { log_file: Some(file.clone()), ..quick([broker.url()]) }).await.unwrap();
    assert!(broker.wait_until(DEADLINE, |broker| !broker.subscribes().is_empty()).await);
    let command = |id: &str, request: &str| {
        let parameters = serde_json::json!({ "request": request });
        serde_json::json!({"timestamp": 1, "command_id": id, "command_type": "set_speed", "parameters": parameters})
    };

    for (id, request) in [("a", "1"), ("a", "1"), ("b", "2")] {
        broker.publish("modax/control/commands", command(id, request).to_string(), 1);
    }
    broker.publish("modax/control/commands", "not a command", 1);

    assert!(broker.wait_until(DEADLINE, |broker| broker.acks() == 4).await);
    let log = device.finish(DEADLINE).await;
    let received = log.entries.iter().filter_map(|entry| match entry {
        Entry::Received { request, acted, .. } => Some((request.clone().unwrap(), *acted)),
        _ => None,
    });
    let expected = [("1", true), ("1", false), ("2", true)].map(|(request, acted)| (request.to_owned(), acted));
    assert_eq!(received.collect::<Vec<_>>(), expected);
    assert_eq!(DeviceLog::read("ESP32_TEST_001", &file).unwrap(), log);
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn an_expired_command_is_refused_and_counted_but_by_old_firmware() {
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let newer = Device::start(quick([broker.url()])).await.unwrap();
    let config = DeviceConfig { device_id: "ESP32_OLD_001".into(), refuses_expired: false, ..quick([broker.url()]) };
    let old = Device::start(config).await.unwrap();
    assert!(broker.wait_until(DEADLINE, |broker| broker.subscribes().len() == 2).await);

    for (id, expires_at) in [("past", Some(1)), ("future", Some(u64::MAX)), ("none", None)] {
        let command =
            serde_json::json!({"timestamp": 1, "command_id": id, "command_type": "start", "expires_at": expires_at});
        broker.publish("modax/control/commands", command.to_string(), 1);
    }

    assert!(
        newer.wait_until(DEADLINE, |status| (status.acted, status.expired) == (2, 1)).await,
        "{:?}",
        newer.status()
    );
    assert!(old.wait_until(DEADLINE, |status| (status.acted, status.expired) == (3, 0)).await, "{:?}", old.status());
    let told = |log: DeviceLog| {
        let received = log.entries.into_iter().filter_map(|entry| match entry {
            Entry::Received { command_id, expired, acted, .. } => Some((command_id.unwrap(), expired, acted)),
            _ => None,
        });
        received.collect::<Vec<_>>()
    };
    let entry = |id: &str, expired, acted| (id.to_owned(), expired, acted);
    let others = [entry("future", false, true), entry("none", false, true)];
    assert_eq!(told(newer.log()), [&[entry("past", true, false)], &others[..]].concat());
    assert_eq!(told(old.log()), [&[entry("past", true, true)], &others[..]].concat());
}
