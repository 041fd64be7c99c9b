//! One batch into the database: one transaction, under the row locks of its devices.
//!
//! The locks make two layers take turns for a device, so both decide about its boots on the same knowledge
//! ([`boots`](crate::boots)). Everything in the batch may be written again at no harm: a repeated reading meets its own row.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use modax_db_router::{Router, Tx, WriteError, tokio_postgres};
use tokio_postgres::types::Type;

use crate::{
    boots::{Boot, Boots, PATIENCE, Placement, Sighting},
    buffer::{Item, What},
    contract::{SafetyStatus, SensorData},
};

/// How long one attempt may take before the writer looks around again.
const DEADLINE: Duration = Duration::from_secs(10);
/// Boots of a device that are looked at: more than a device can begin in the minutes a reading may be late.
const BOOTS_LOOKED_AT: i64 = 16;
/// For how long after a boot a copy might have begun a boot of its own: what `possibly_twice` looks for.
const DOUBT: i64 = 10 * 60 * 1_000;

/// What became of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Items (by position) whose boot is not decided; everything else is in the database.
    pub undecided: Vec<usize>,
    /// Rows of readings written.
    pub rows: u64,
    /// Readings that were there already.
    pub copies: u64,
    /// Readings of a young boot that the boot before holds with the same timestamp and payload.
    pub possibly_twice: u64,
    /// Boots that began with this batch.
    pub boots: u64,
}

/// Writes `items`. With `decide` nothing stays undecided.
///
/// # Errors
/// As [`Router::write`]; the batch can be written again in any case.
///
/// # Cancel safety
/// Dropping it leaves all or nothing of the batch.
pub async fn store(
    router: &Router,
    instance_id: &Arc<str>,
    items: &Arc<Vec<Item>>,
    decide: bool,
) -> Result<Stored, WriteError> {
    let written = router
        .writer()
        .deadline(DEADLINE)
        .run(|tx| {
            let (items, instance_id) = (Arc::clone(items), Arc::clone(instance_id));
            async move { write(&tx, &instance_id, &items, decide).await }
        })
        .await?;
    Ok(written.value)
}

async fn write(tx: &Tx, instance_id: &str, items: &[Item], decide: bool) -> Result<Stored, tokio_postgres::Error> {
    let devices: BTreeSet<&str> = items.iter().map(|item| item.device_id.as_str()).collect();
    let devices: Vec<&str> = devices.into_iter().collect();
    let removed = lock_devices(tx, &devices).await?;
    let (mut boots, database_now) = load_boots(tx, &devices).await?;
    let now = Instant::now();

    let kept = find_kept(tx, items, &boots).await?;

    let before = boots.clone();
    let mut stored = Stored::default();
    let (mut readings, mut changes, mut back) = (Rows::default(), Vec::new(), BTreeSet::new());
    for (position, item) in items.iter().enumerate() {
        if kept.contains(&position) {
            stored.copies += 1;
            continue;
        }
        // As if it had come as punctually as the most punctual report of its run.
        let age = millis(now.saturating_duration_since(item.heard_at)).saturating_add(item.lateness.known());
        let arrived = database_now.saturating_sub(age);
        let patient =
            decide || item.undecided_since.is_some_and(|since| now.saturating_duration_since(since) >= PATIENCE);
        let known = boots.entry(item.device_id.as_str()).or_default();
        let (at, boot) = match known.place(Sighting { timestamp: item.timestamp, arrived, patient }) {
            Placement::Undecided => {
                stored.undecided.push(position);
                continue;
            }
            Placement::UnixTime(at) => (at, None),
            Placement::InBoot { at, started, timestamp } => (at, Some((started, timestamp))),
        };
        if removed.get(item.device_id.as_str()).is_some_and(|removed| arrived > *removed) {
            back.insert(item.device_id.as_str());
        }
        match &item.what {
            What::Reading { data, digest } => readings.push(data, *digest, at, boot, known),
            What::Safety(status) => changes.push((item.device_id.as_str(), at, *status)),
        }
    }
    stored.boots = save_boots(tx, &before, &boots).await?;
    stored.rows = readings.insert(tx, instance_id).await?;
    stored.copies += readings.len().saturating_sub(stored.rows);
    stored.possibly_twice = readings.count_possibly_twice(tx).await?;
    for (device_id, at, status) in changes {
        insert_change(tx, instance_id, device_id, at, status).await?;
    }
    if !back.is_empty() {
        let back: Vec<&str> = back.into_iter().collect();
        tx.execute_typed(
            "UPDATE devices SET removed_at = NULL WHERE device_id = ANY ($1)",
            &[(&back, Type::TEXT_ARRAY)],
        )
        .await?;
    }
    Ok(stored)
}

/// Locks the devices' rows in the order of their names, so that two layers cannot block each other; makes those that are missing.
/// Answers when the ones that were taken out were (database's clock, milliseconds).
async fn lock_devices<'a>(tx: &Tx, devices: &[&'a str]) -> Result<BTreeMap<&'a str, i64>, tokio_postgres::Error> {
    const LOCK: &str = "SELECT device_id, (extract(epoch FROM removed_at) * 1000)::bigint
                        FROM devices WHERE device_id = ANY ($1) ORDER BY device_id FOR NO KEY UPDATE";
    let mut rows = tx.query_typed(LOCK, &[(&devices, Type::TEXT_ARRAY)]).await?;
    if rows.len() < devices.len() {
        tx.execute_typed(
            "INSERT INTO devices (device_id) SELECT id FROM unnest($1) AS id ORDER BY id ON CONFLICT DO NOTHING",
            &[(&devices, Type::TEXT_ARRAY)],
        )
        .await?;
        rows = tx.query_typed(LOCK, &[(&devices, Type::TEXT_ARRAY)]).await?;
    }
    let mut removed = BTreeMap::new();
    for row in &rows {
        let (device_id, at): (&str, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
        if let (Some(at), Some(device_id)) = (at, devices.iter().find(|known| **known == device_id)) {
            removed.insert(*device_id, at);
        }
    }
    Ok(removed)
}

/// What is known of the devices' boots, and the time. After the locks: what another layer decided is to be seen.
async fn load_boots<'a>(
    tx: &Tx,
    devices: &[&'a str],
) -> Result<(BTreeMap<&'a str, Boots>, i64), tokio_postgres::Error> {
    let rows = tx
        .query_typed(
            "SELECT d.n, b.started, b.earliest, b.last_ts, (extract(epoch FROM clock_timestamp()) * 1000)::bigint
             FROM unnest($1) WITH ORDINALITY AS d (device_id, n)
             LEFT JOIN LATERAL (
                 SELECT (extract(epoch FROM started_at) * 1000)::bigint AS started,
                        (extract(epoch FROM earliest_start) * 1000)::bigint AS earliest, last_ts
                 FROM device_boots WHERE device_id = d.device_id ORDER BY started_at DESC LIMIT $2) AS b ON true",
            &[(&devices, Type::TEXT_ARRAY), (&BOOTS_LOOKED_AT, Type::INT8)],
        )
        .await?;
    let mut known: BTreeMap<&str, Vec<Boot>> = BTreeMap::new();
    let mut now = 0;
    for row in &rows {
        now = row.try_get::<_, i64>(4)?.max(now);
        let ordinal = usize::try_from(row.try_get::<_, i64>(0)?).unwrap_or(0);
        let (Some(device_id), Some(started)) =
            (devices.get(ordinal.wrapping_sub(1)), row.try_get::<_, Option<i64>>(1)?)
        else {
            continue;
        };
        let boot = Boot { started, earliest: row.try_get(2)?, newest: row.try_get(3)? };
        known.entry(device_id).or_default().push(boot);
    }
    Ok((known.into_iter().map(|(device_id, boots)| (device_id, Boots::new(boots))).collect(), now))
}

/// Which of the readings that the broker may have kept are in the database already, under whichever boot.
///
/// Only of those: payloads may repeat themselves after a reboot, and then only the time tells two readings apart.
async fn find_kept(
    tx: &Tx,
    items: &[Item],
    boots: &BTreeMap<&str, Boots>,
) -> Result<BTreeSet<usize>, tokio_postgres::Error> {
    let (mut positions, mut devices, mut times, mut digests) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (position, item) in items.iter().enumerate() {
        let What::Reading { digest, .. } = &item.what else { continue };
        let (true, Some(known)) = (item.maybe_kept, boots.get(item.device_id.as_str())) else { continue };
        let timestamp = i64::try_from(item.timestamp).unwrap_or(i64::MAX);
        for boot in known.known() {
            positions.push(i64::try_from(position).unwrap_or(i64::MAX));
            devices.push(item.device_id.as_str());
            times.push(time(boot.started.saturating_add(timestamp)));
            digests.push(digest.as_slice());
        }
    }
    if positions.is_empty() {
        return Ok(BTreeSet::new());
    }
    let rows = tx
        .query_typed(
            "SELECT DISTINCT k.position FROM unnest($1, $2, $3, $4) AS k (position, device_id, time, digest)
             JOIN sensor_data AS s USING (device_id, time, digest)",
            &[
                (&positions, Type::INT8_ARRAY),
                (&devices, Type::TEXT_ARRAY),
                (&times, Type::TIMESTAMPTZ_ARRAY),
                (&digests, Type::BYTEA_ARRAY),
            ],
        )
        .await?;
    rows.iter().map(|row| Ok(usize::try_from(row.try_get::<_, i64>(0)?).unwrap_or(usize::MAX))).collect()
}

/// Writes the boots that have changed; answers how many are new.
async fn save_boots(
    tx: &Tx,
    before: &BTreeMap<&str, Boots>,
    after: &BTreeMap<&str, Boots>,
) -> Result<u64, tokio_postgres::Error> {
    let (mut devices, mut started, mut earliest, mut newest) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut new = 0;
    for (device_id, boots) in after {
        let old = before.get(device_id).map(Boots::known).unwrap_or_default();
        for boot in boots.known().iter().filter(|boot| !old.contains(boot)) {
            new += u64::from(!old.iter().any(|known| known.started == boot.started));
            devices.push(*device_id);
            started.push(time(boot.started));
            earliest.push(time(boot.earliest));
            newest.push(boot.newest);
        }
    }
    if !devices.is_empty() {
        tx.execute_typed(
            "INSERT INTO device_boots (device_id, started_at, earliest_start, last_ts, last_seen_at)
             SELECT *, clock_timestamp() FROM unnest($1, $2, $3, $4)
             ON CONFLICT (device_id, started_at) DO UPDATE
             SET earliest_start = excluded.earliest_start, last_ts = excluded.last_ts, last_seen_at = excluded.last_seen_at",
            &[
                (&devices, Type::TEXT_ARRAY),
                (&started, Type::TIMESTAMPTZ_ARRAY),
                (&earliest, Type::TIMESTAMPTZ_ARRAY),
                (&newest, Type::INT8_ARRAY),
            ],
        )
        .await?;
    }
    Ok(new)
}

/// Rows of `sensor_data`, by column.
#[derive(Default)]
struct Rows {
    devices: Vec<String>,
    times: Vec<SystemTime>,
    digests: Vec<Vec<u8>>,
    timestamps: Vec<i64>,
    boots: Vec<Option<SystemTime>>,
    currents: Vec<String>,
    vibration: [Vec<f64>; 4],
    temperatures: Vec<String>,
    /// (row, time it would have in the boot before).
    doubtful: Vec<(usize, SystemTime)>,
}

impl Rows {
    fn push(&mut self, data: &SensorData, digest: [u8; 16], at: i64, boot: Option<(i64, i64)>, known: &Boots) {
        if let Some((started, timestamp)) = boot
            && timestamp <= DOUBT
            && let Some(before) = known.known().iter().rev().find(|other| other.started < started)
            && timestamp <= before.newest
        {
            self.doubtful.push((self.devices.len(), time(before.started.saturating_add(timestamp))));
        }
        self.devices.push(data.device_id.clone());
        self.times.push(time(at));
        self.digests.push(digest.to_vec());
        self.timestamps.push(i64::try_from(data.timestamp).unwrap_or(i64::MAX));
        self.boots.push(boot.map(|(started, _)| time(started)));
        self.currents.push(array(&data.motor_currents));
        let vibration = [data.vibration.x, data.vibration.y, data.vibration.z, data.vibration.magnitude];
        for (column, value) in self.vibration.iter_mut().zip(vibration) {
            column.push(value);
        }
        self.temperatures.push(array(&data.temperatures));
    }

    fn len(&self) -> u64 {
        self.devices.len() as u64
    }

    async fn insert(&self, tx: &Tx, instance_id: &str) -> Result<u64, tokio_postgres::Error> {
        if self.devices.is_empty() {
            return Ok(0);
        }
        let [x, y, z, magnitude] = &self.vibration;
        tx.execute_typed(
            "INSERT INTO sensor_data (device_id, time, digest, device_timestamp, boot_started_at, motor_currents,
                                      vibration_x, vibration_y, vibration_z, vibration_magnitude, temperatures, stored_by)
             SELECT device_id, time, digest, ts, boot, currents::float8[], x, y, z, magnitude, temperatures::float8[], $12
             FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
                  AS r (device_id, time, digest, ts, boot, currents, x, y, z, magnitude, temperatures)
             ON CONFLICT DO NOTHING",
            &[
                (&self.devices, Type::TEXT_ARRAY),
                (&self.times, Type::TIMESTAMPTZ_ARRAY),
                (&self.digests, Type::BYTEA_ARRAY),
                (&self.timestamps, Type::INT8_ARRAY),
                (&self.boots, Type::TIMESTAMPTZ_ARRAY),
                (&self.currents, Type::TEXT_ARRAY),
                (x, Type::FLOAT8_ARRAY),
                (y, Type::FLOAT8_ARRAY),
                (z, Type::FLOAT8_ARRAY),
                (magnitude, Type::FLOAT8_ARRAY),
                (&self.temperatures, Type::TEXT_ARRAY),
                (&instance_id, Type::TEXT),
            ],
        )
        .await
    }

    async fn count_possibly_twice(&self, tx: &Tx) -> Result<u64, tokio_postgres::Error> {
        if self.doubtful.is_empty() {
            return Ok(0);
        }
        let devices: Vec<&String> = self.doubtful.iter().filter_map(|(row, _)| self.devices.get(*row)).collect();
        let digests: Vec<&Vec<u8>> = self.doubtful.iter().filter_map(|(row, _)| self.digests.get(*row)).collect();
        let times: Vec<SystemTime> = self.doubtful.iter().map(|(_, at)| *at).collect();
        let row = tx
            .query_typed_one(
                "SELECT count(*) FROM unnest($1, $2, $3) AS d (device_id, time, digest)
                 JOIN sensor_data USING (device_id, time, digest)",
                &[(&devices, Type::TEXT_ARRAY), (&times, Type::TIMESTAMPTZ_ARRAY), (&digests, Type::BYTEA_ARRAY)],
            )
            .await?;
        Ok(u64::try_from(row.try_get::<_, i64>(0)?).unwrap_or(0))
    }
}

/// A row for a change of state, unless another layer has written it: the latest event up to its time says the same.
async fn insert_change(
    tx: &Tx,
    instance_id: &str,
    device_id: &str,
    at: i64,
    status: SafetyStatus,
) -> Result<(), tokio_postgres::Error> {
    tx.execute_typed(
        // The other layer may have heard the state later and written it sooner: then the change was at this time, not at that.
        "WITH added AS (
             INSERT INTO safety_events (device_id, time, emergency_stop, door_closed, overload_detected, temperature_ok, is_safe, reported_by)
             SELECT $1, $2, $3, $4, $5, $6, $7, $8
             WHERE NOT EXISTS (
                 SELECT FROM (SELECT * FROM safety_events WHERE device_id = $1 AND time <= $2 ORDER BY time DESC LIMIT 1) AS last
                 WHERE (last.emergency_stop, last.door_closed, last.overload_detected, last.temperature_ok) = ($3, $4, $5, $6))
             ON CONFLICT DO NOTHING RETURNING 1)
         DELETE FROM safety_events AS later
         WHERE later.device_id = $1 AND EXISTS (SELECT FROM added)
           AND later.time = (SELECT min(time) FROM safety_events WHERE device_id = $1 AND time > $2)
           AND (later.emergency_stop, later.door_closed, later.overload_detected, later.temperature_ok) = ($3, $4, $5, $6)",
        &[
            (&device_id, Type::TEXT),
            (&time(at), Type::TIMESTAMPTZ),
            (&status.emergency_stop, Type::BOOL),
            (&status.door_closed, Type::BOOL),
            (&status.overload_detected, Type::BOOL),
            (&status.temperature_ok, Type::BOOL),
            (&status.is_safe(), Type::BOOL),
            (&instance_id, Type::TEXT),
        ],
    )
    .await?;
    Ok(())
}

/// Milliseconds since 1970 as PostgreSQL takes times.
fn time(millis: i64) -> SystemTime {
    let distance = Duration::from_millis(millis.unsigned_abs());
    let moment = if millis < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    moment.unwrap_or(UNIX_EPOCH)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A literal of `float8[]`: arrays of different lengths cannot stand in one parameter.
fn array(values: &[f64]) -> String {
    let mut literal = String::from("{");
    for (n, value) in values.iter().enumerate() {
        let comma = if n == 0 { "" } else { "," };
        let _ = write!(literal, "{comma}{value}");
    }
    literal.push('}');
    literal
}
