//! An operator who gives each command to both layers, through everything that can go away. What the audit says is compared with what
//! the devices heard.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use modax_testbed::{
    Ground, Mosquitto, PostgresCluster, TestbedError,
    device::{Device, DeviceConfig, DeviceLog, Entry},
    oracle::{DeviceOracle, FieldOracle, IssuedCommand},
    wait,
};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{LONG, Layer, Outcome, patient, rows, servers, sql};

/// Far longer than a few commands take on a busy machine, whose reports come late.
const AGE: (&str, &str) = ("SAFETY_MAX_AGE", "15");

/// Numbers commands, gives each to both layers under one key, and remembers the answers.
#[derive(Default)]
struct Operator {
    issued: Vec<IssuedCommand>,
    /// Which identities a key was answered with.
    ids: BTreeMap<String, BTreeSet<String>>,
    /// Answers by status.
    answers: BTreeMap<u16, u64>,
    /// The slowest answer. Told, not judged: a clock in a test judges the machine.
    slowest: Duration,
}

impl Operator {
    /// Gives the next command until a layer takes it or it was refused `tries` times.
    async fn give(&mut self, layers: &[&Layer], tries: u32) {
        self.give_to(1, layers, tries).await;
    }

    /// Gives the next command until `enough` layers take it at once, at most `tries` times: how many took it in the end.
    async fn give_to(&mut self, enough: usize, layers: &[&Layer], tries: u32) -> usize {
        let request = self.issued.len().to_string();
        let body = json!({"command_type": "set_speed", "parameters": {"request": request}});
        let key = format!("key-{request}");
        let mut took = 0;
        for _ in 0..tries {
            let asked = Instant::now();
            let answers = self.ask(layers, &body, &key).await;
            self.slowest = self.slowest.max(asked.elapsed());
            took = answers.iter().filter(|(status, ..)| *status == StatusCode::OK).count();
            for (status, answer, retry) in answers {
                *self.answers.entry(status.as_u16()).or_default() += 1;
                match status {
                    StatusCode::OK => {
                        let id = answer["command_id"].as_str().expect("an id").to_owned();
                        self.ids.entry(key.clone()).or_default().insert(id);
                    }
                    StatusCode::SERVICE_UNAVAILABLE => assert!(retry, "no Retry-After: {answer}"),
                    StatusCode::FORBIDDEN => assert_eq!(answer["error"], "system_not_safe"),
                    _ => panic!("{status}: {answer}"),
                }
            }
            if took >= enough {
                break;
            }
        }
        self.issued.push(IssuedCommand { request, answered: self.ids.contains_key(&key) });
        took
    }

    /// To both at once; a layer that is killed meanwhile does not answer.
    async fn ask(&self, layers: &[&Layer], body: &Value, key: &str) -> Vec<(StatusCode, Value, bool)> {
        let asked = layers.iter().map(|layer| layer.try_command(body, Some(key)));
        futures_util::future::join_all(asked).await.into_iter().flatten().collect()
    }

    fn count(&self, status: u16) -> u64 {
        self.answers.get(&status).copied().unwrap_or(0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_layers_killed_and_frozen_with_broker_and_database_leave_an_audit_that_the_field_confirms() -> Outcome {
    let (ground, database, broker) = servers().await?;
    let brokers = broker.url();
    let [of_a, of_b] = ["a", "b"].map(|name| format!("{}?application_name={name}", database.url()));
    let [pairs_a, pairs] =
        [&of_a, &of_b].map(|url| [("MQTT_BROKERS", brokers.as_str()), ("DATABASE_URL", url.as_str()), AGE]);
    let (a, b) = tokio::try_join!(Layer::start(&ground, "a", &pairs_a), Layer::start(&ground, "b", &pairs))?;
    // What nobody has subscribed to yet is nobody's to store.
    for layer in [&a, &b] {
        layer.until_ready().await;
    }
    let devices = [("ESP32_1", true), ("ESP32_OLD", false)]
        .map(|(id, refuses_expired)| Device::start(DeviceConfig { refuses_expired, ..patient(id, broker.url()) }));
    let devices = futures_util::future::try_join_all(devices).await.expect("two devices");
    both_safe(&a, &b).await;
    let mut operator = Operator::default();

    for _ in 0..5 {
        let took = operator.give_to(2, &[&a, &b], 20).await;
        assert_eq!(took, 2, "{:?}", operator.answers);
    }

    // Each fault alone: what is on its way when a layer dies may wait for the lease.
    settled(&database).await?;
    let b = killed_in_the_middle(&ground, &pairs, &mut operator, &a, b).await?;
    both_safe(&a, &b).await;
    settled(&database).await?;
    frozen_layer(&database, &mut operator, &a, &b).await?;
    both_safe(&a, &b).await;
    settled(&database).await?;
    frozen_broker(&broker, &mut operator, &a, &b).await;
    both_safe(&a, &b).await;
    settled(&database).await?;
    frozen_database(&database, &mut operator, &a, &b).await?;
    both_safe(&a, &b).await;
    for _ in 0..3 {
        operator.give(&[&a, &b], 20).await;
    }
    settled(&database).await?;

    let logs = futures_util::future::join_all(devices.into_iter().map(|device| device.finish(LONG))).await;
    every_reading_once(&database, &logs, &[&a, &b]).await?;
    every_command_once(&database, &operator, &logs).await;
    the_audit_and_the_field_agree(&database, &logs).await;
    println!("answers {:?}, the slowest after {:?}", operator.answers, operator.slowest);
    ground.stop().await;
    Ok(())
}

async fn settled(database: &PostgresCluster) -> Outcome {
    wait::until(LONG, "every audit is closed", || async { open(database).await == 0 }).await
}

async fn both_safe(a: &Layer, b: &Layer) {
    for layer in [a, b] {
        layer.until_safe().await;
    }
}

/// Layer b is killed while commands are on their way, and started again.
async fn killed_in_the_middle(
    ground: &Ground,
    pairs: &[(&str, &str)],
    operator: &mut Operator,
    a: &Layer,
    b: Layer,
) -> Result<Layer, TestbedError> {
    let before = operator.count(200);
    // Of a command that is given to both, one layer's 200 is a replay.
    let taken = || async {
        b.counter("modax_control_commands_accepted_total").await
            + b.counter("modax_control_commands_replayed_total").await
    };
    let earlier = taken().await;
    let kill = async {
        wait::until(LONG, "b has taken one", || async { taken().await > earlier }).await?;
        b.process.kill();
        b.process.exited(LONG).await
    };
    let give = async {
        for _ in 0..8 {
            operator.give(&[a, &b], 20).await;
        }
    };
    let (killed, ()) = tokio::join!(kill, give);
    killed?;
    assert!(operator.count(200) > before, "a goes on: {:?}", operator.answers);
    Layer::start(ground, "b", pairs).await
}

/// The layer that publishes by now is frozen with a command in its hands until the other has published it and more, and
/// goes on then.
async fn frozen_layer(database: &PostgresCluster, operator: &mut Operator, a: &Layer, b: &Layer) -> Outcome {
    slow_to_note(database).await;
    let frozen = frozen_noting_an_attempt(database, operator, &[("a", a), ("b", b)]).await?;
    let other = if std::ptr::eq(frozen, a) { b } else { a };
    let executed = || async { other.counter("modax_control_commands_executed_total").await };
    let before = executed().await;
    for _ in 0..3 {
        operator.give(&[other], 20).await;
    }
    wait::until(LONG, "the other publishes", || async { executed().await > before }).await?;
    frozen.process.cont();
    Ok(())
}

/// The next attempt that is noted takes a while, once for each start of the sequence: time to freeze who notes it.
async fn slow_to_note(database: &PostgresCluster) {
    let slow = "CREATE SEQUENCE attempts;
                CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
                    IF NEW.reason IS NOT NULL AND nextval('attempts') = 1 THEN PERFORM pg_sleep(1); END IF; RETURN NEW; END $$;
                CREATE TRIGGER slow BEFORE UPDATE ON control_commands FOR EACH ROW EXECUTE FUNCTION slow()";
    sql(database, slow).await;
}

/// Gives commands to the first of `layers` until whichever layer notes an attempt is frozen at it: the command is open, and its
/// transaction, which only that layer can end, too. The trigger sleeps for as long as the layer itself waits, so a busy
/// machine may miss the moment: then the layer goes on, and the next command is as slow to note.
async fn frozen_noting_an_attempt<'l>(
    database: &PostgresCluster,
    operator: &mut Operator,
    layers: &[(&str, &'l Layer)],
) -> Result<&'l Layer, TestbedError> {
    for _ in 0..10 {
        operator.give(&[layers[0].1], 20).await;
        if let Some((name, layer)) = noting_an_attempt(database, layers).await? {
            layer.process.stop();
            if holds_its_locks(database, name).await? {
                return Ok(layer);
            }
            layer.process.cont();
            layer.until_safe().await;
        }
        settled(database).await?;
        sql(database, "ALTER SEQUENCE attempts RESTART").await;
    }
    panic!("no layer was frozen while it noted an attempt");
}

/// Who notes an attempt, by the name of its sessions; none if that was over before it was seen.
async fn noting_an_attempt<'n, 'l>(
    database: &PostgresCluster,
    layers: &[(&'n str, &'l Layer)],
) -> Result<Option<(&'n str, &'l Layer)>, TestbedError> {
    let asleep = "SELECT application_name FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    wait::until(LONG, "the attempt is being noted", || async {
        let name = sql(database, asleep).await;
        match layers.iter().find(|(known, _)| *known == name) {
            Some(layer) => Some(Some(*layer)),
            None => (open(database).await == 0).then_some(None),
        }
    })
    .await
}

/// Whether the layer, which is frozen, holds the locks of its one open command: else it had ended its transaction before.
async fn holds_its_locks(database: &PostgresCluster, name: &str) -> Result<bool, TestbedError> {
    let state = format!(
        "SELECT CASE WHEN bool_or(state = 'idle in transaction') THEN 'held' WHEN bool_or(state = 'active') THEN 'noting'
         ELSE 'over' END FROM pg_stat_activity WHERE application_name = '{name}' AND query LIKE '%control_commands%'"
    );
    let state = wait::until(LONG, "the note is written or given up", || async {
        let state = sql(database, &state).await;
        (state != "noting").then_some(state)
    })
    .await?;
    Ok(state == "held" && open(database).await == 1)
}

async fn open(database: &PostgresCluster) -> u64 {
    let open = "SELECT count(*) FROM control_commands WHERE status = 'accepted'";
    sql(database, open).await.parse().expect("a number")
}

/// A process may be frozen anywhere; the worst place is a transaction with locks that others need.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_frozen_in_the_middle_of_a_transaction_holds_nobody_up_for_good() -> Outcome {
    let (ground, database, broker) = servers().await?;
    let (brokers, url) = (broker.url(), database.url());
    let named = format!("{url}?application_name=a");
    let pairs = [("MQTT_BROKERS", brokers.as_str()), ("DATABASE_URL", url.as_str()), ("COMMAND_TTL", "30")];
    let pairs_a = [pairs[0], ("DATABASE_URL", named.as_str()), pairs[2]];
    let a = Layer::start(&ground, "a", &pairs_a).await?;
    a.until_ready().await;
    let device = Device::start(patient("ESP32_1", broker.url())).await.expect("a device");
    both_safe(&a, &a).await;
    let mut operator = Operator::default();
    operator.give(&[&a], 20).await;
    assert!(device.wait_until(LONG, |status| status.acted == 1).await, "a publishes");
    let b = Layer::start(&ground, "b", &pairs).await?;
    both_safe(&a, &b).await;
    slow_to_note(&database).await;
    frozen_noting_an_attempt(&database, &mut operator, &[("a", &a)]).await?;

    operator.give(&[&b], 20).await;
    let given = u64::try_from(operator.issued.len()).expect("a count");
    assert!(device.wait_until(LONG, |status| status.acted == given).await, "{}", b.process.log_tail(20));
    settled(&database).await?;
    let executed = "SELECT count(*) FROM control_commands WHERE status = 'executed'";
    assert_eq!(sql(&database, executed).await, given.to_string());
    a.process.cont();
    both_safe(&a, &b).await;
    operator.give(&[&a, &b], 20).await;
    assert!(device.wait_until(LONG, |status| status.acted == given + 1).await, "{}", a.process.log_tail(20));
    let logs = [device.finish(LONG).await];
    every_reading_once(&database, &logs, &[&a, &b]).await?;
    let verdict = FieldOracle::judge(&operator.issued, &logs);
    assert!(verdict.is_clean() && verdict.acted == given + 1, "{verdict:?}");
    ground.stop().await;
    Ok(())
}

/// The broker is frozen long enough for commands to expire, and for the plant to be unknown.
async fn frozen_broker(broker: &Mosquitto, operator: &mut Operator, a: &Layer, b: &Layer) {
    broker.stop();
    let taken = operator.count(200);
    for _ in 0..6 {
        operator.give(&[a, b], 1).await;
    }
    assert!(operator.count(200) > taken, "the reports heard last are young enough: {:?}", operator.answers);
    for layer in [a, b] {
        layer.until("reports that do not come grow old", "/status", |_, body| body["is_safe"] == false).await;
    }
    let refused = operator.count(403);
    operator.give(&[a, b], 1).await;
    assert_eq!(operator.count(403), refused + 2, "{:?}", operator.answers);
    broker.cont();
}

/// The database is frozen while six commands are given, about fifteen seconds, and dead for two more: each is answered, with 503.
async fn frozen_database(database: &PostgresCluster, operator: &mut Operator, a: &Layer, b: &Layer) -> Outcome {
    let before = (operator.count(503), operator.count(200));
    let node = &database.nodes()[0];
    node.stop();
    for _ in 0..6 {
        operator.give(&[a, b], 1).await;
    }
    node.cont();
    assert_eq!((operator.count(503), operator.count(200)), (before.0 + 12, before.1), "{:?}", operator.answers);
    operator.give(&[a, b], 20).await;
    let before = (operator.count(503), operator.count(200));
    node.kill();
    for _ in 0..2 {
        operator.give(&[a, b], 1).await;
    }
    assert_eq!((operator.count(503), operator.count(200)), (before.0 + 4, before.1), "{:?}", operator.answers);
    node.restart().await
}

async fn every_reading_once(database: &PostgresCluster, logs: &[DeviceLog], layers: &[&Layer]) -> Outcome {
    let judge = || async { DeviceOracle::judge(logs, &rows(database).await) };
    let stored = wait::until(LONG, "every reading has its row", || async { judge().await.lost.is_empty() });
    let (stored, verdict) = (stored.await, judge().await);
    let tails: Vec<String> = layers.iter().map(|layer| layer.process.log_tail(10)).collect();
    assert!(stored.is_ok() && verdict.is_clean(), "{verdict:?}\n{}", tails.join("\n"));
    Ok(())
}

async fn every_command_once(database: &PostgresCluster, operator: &Operator, logs: &[DeviceLog]) {
    for (key, ids) in &operator.ids {
        assert_eq!(ids.len(), 1, "{key} became {ids:?}");
    }
    let twice = "SELECT count(*) FROM (SELECT FROM control_commands WHERE idempotency_key IS NOT NULL
                 GROUP BY idempotency_key HAVING count(*) > 1) AS twice";
    assert_eq!(sql(database, twice).await, "0");
    let verdict = FieldOracle::judge(&operator.issued, logs);
    assert!(verdict.acted >= 5 && verdict.acted_twice.is_empty() && verdict.phantoms.is_empty(), "{verdict:?}");
    // What is late is acted on by old firmware alone.
    assert!(verdict.acted_expired.iter().all(|(device, _)| device == "ESP32_OLD"), "{verdict:?}");
    let newer = FieldOracle::judge(&operator.issued, &logs[..1]);
    assert!(newer.is_clean(), "{newer:?}");
}

/// A device that heard a command never meets an audit that says that nobody can have heard it.
async fn the_audit_and_the_field_agree(database: &PostgresCluster, logs: &[DeviceLog]) {
    let heard: BTreeSet<&str> = logs.iter().flat_map(|log| &log.entries).filter_map(command_id).collect();
    let text =
        sql(database, "SELECT json_build_array(command_id, status, coalesce(reason, '')) FROM control_commands").await;
    let mut audit: BTreeMap<String, (String, String)> = BTreeMap::new();
    for line in text.lines() {
        let (id, status, reason) = serde_json::from_str(line).expect("a row");
        audit.insert(id, (status, reason));
    }
    for id in &heard {
        let (status, reason) = audit.get(*id).unwrap_or_else(|| panic!("{id} was heard and is in no audit"));
        let is_said = status == "executed" || reason.contains("may have been delivered");
        assert!(is_said, "{id} was heard: {status}, {reason}");
    }
    let executed = audit.values().filter(|(status, _)| status == "executed").count();
    assert!(executed >= 5, "{audit:?}");
    for ((status, reason), count) in audit.values().fold(BTreeMap::<_, u32>::new(), |mut all, end| {
        *all.entry(end).or_default() += 1;
        all
    }) {
        println!("{count} commands {status} {reason}");
    }
    println!("{} commands were heard", heard.len());
}

fn command_id(entry: &Entry) -> Option<&str> {
    match entry {
        Entry::Received { command_id, .. } => command_id.as_deref(),
        _ => None,
    }
}
