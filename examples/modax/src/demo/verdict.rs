//! The oracles' verdict, and which scenario each fault of it belongs to.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use modax_testbed::device::DeviceLog;
use modax_testbed::oracle::{DeviceOracle, DeviceVerdict, FieldOracle, FieldVerdict, IssuedCommand, SensorRow};
use tokio::time::{sleep, timeout};

use super::cluster::Failure;
use super::operator::Log;
use crate::report::{Report, Scenario};

/// A reading without a row this long after everything ran again is lost.
const GRACE: Duration = Duration::from_secs(30);
/// One look at the database.
const LOOK: Duration = Duration::from_secs(20);

/// Where the run stood when a scenario began.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mark {
    /// Readings each device had made.
    pub(crate) made: BTreeMap<String, u64>,
    /// Commands the operator had issued.
    pub(crate) issued: usize,
}

/// Both verdicts.
pub(crate) struct Verdict {
    pub(crate) readings: DeviceVerdict,
    pub(crate) commands: FieldVerdict,
    /// What became of the accepted commands that no device acted on, by the audit.
    pub(crate) not_acted: BTreeMap<String, u64>,
}

/// Looks until every owed reading has its row, or the grace is over.
pub(crate) async fn judge(url: &str, logs: &[DeviceLog], operator: &Log) -> Result<Verdict, Failure> {
    let end = Instant::now() + GRACE;
    let readings = loop {
        let rows = match timeout(LOOK, rows(url)).await {
            Ok(Ok(rows)) => rows,
            Ok(Err(error)) if Instant::now() >= end => return Err(error),
            Err(_) if Instant::now() >= end => return Err("the database did not give its rows in time".into()),
            _ => {
                sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let verdict = DeviceOracle::judge(logs, &rows);
        if verdict.lost.is_empty() || Instant::now() >= end {
            break verdict;
        }
        sleep(Duration::from_millis(500)).await;
    };
    let issued: Vec<IssuedCommand> = operator
        .issued
        .iter()
        .map(|issued| IssuedCommand { request: issued.request.clone(), answered: issued.accepted.is_some() })
        .collect();
    let commands = FieldOracle::judge(&issued, logs);
    let not_acted = ended(url, &commands.answered_unseen).await?;
    Ok(Verdict { readings, commands, not_acted })
}

/// How these commands ended, by the layers' audit.
async fn ended(url: &str, requests: &[String]) -> Result<BTreeMap<String, u64>, Failure> {
    let given: Vec<String> = requests.iter().map(|request| format!("'{}'", request.replace('\'', "''"))).collect();
    let statement = format!(
        "SELECT CASE WHEN status = 'executed' THEN 'published, and not heard by a device in time'
                     WHEN reason IS NOT NULL THEN reason ELSE status END, count(*)
         FROM control_commands WHERE parameters->>'request' = ANY (ARRAY[{}]::text[]) GROUP BY 1",
        given.join(",")
    );
    let rows = timeout(LOOK, query(url, &statement)).await.map_err(|_| "the database did not answer in time")??;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get::<_, i64>(1)?.unsigned_abs()))).collect()
}

/// Every reading's row.
async fn rows(url: &str) -> Result<Vec<SensorRow>, Failure> {
    query(url, "SELECT device_id, to_json(motor_currents)::text FROM sensor_data")
        .await?
        .iter()
        .map(|row| {
            let currents: String = row.try_get(1)?;
            Ok(SensorRow { device_id: row.try_get(0)?, motor_currents: serde_json::from_str(&currents)? })
        })
        .collect()
}

/// Everything the database knows of the readings that are stored more than once, and of the devices' boots: where
/// whoever looks for the cause begins.
pub(crate) async fn doubled(url: &str) -> Result<String, Failure> {
    let readings = "SELECT concat_ws(' ', 'reading', s.device_id, s.motor_currents::text, 'timestamp', \
                    s.device_timestamp, 'at', s.time, 'boot', s.boot_started_at, 'stored', s.stored_at, 'by', s.stored_by) \
                    FROM sensor_data s JOIN (SELECT device_id, motor_currents FROM sensor_data GROUP BY 1, 2 \
                    HAVING count(*) > 1) d USING (device_id, motor_currents) ORDER BY s.device_id, s.motor_currents[2], \
                    s.motor_currents[1], s.stored_at";
    let boots = "SELECT concat_ws(' ', 'boot', b::text) FROM device_boots b ORDER BY b.device_id, b.started_at";
    let mut text = String::new();
    for statement in [readings, boots] {
        for row in timeout(LOOK, query(url, statement)).await.map_err(|_| "the database did not answer in time")?? {
            text.push_str(row.try_get(0)?);
            text.push('\n');
        }
    }
    Ok(text)
}

/// Asks the primary, past the router: an oracle does not ask the code under test.
async fn query(url: &str, statement: &str) -> Result<Vec<tokio_postgres::Row>, Failure> {
    let mut config: tokio_postgres::Config = url.parse()?;
    config.target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadWrite);
    config.connect_timeout(Duration::from_secs(2));
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    let connection = tokio::spawn(connection);
    let rows = client.query(statement, &[]).await;
    connection.abort();
    Ok(rows?)
}

impl Verdict {
    /// Writes the verdict into the report: totals, and each fault into its scenario.
    pub(crate) fn enter(&self, report: &mut Report, marks: &[Mark]) {
        let (readings, commands) = (&self.readings, &self.commands);
        let lost = readings.lost.iter().map(|lost| (lost.device_id.as_str(), lost.serial));
        let doubled = readings.duplicated.iter().map(|(device, serial, _)| (device.as_str(), *serial));
        for scenario in lost.filter_map(|(device, serial)| of_reading(marks, device, serial)) {
            on(report, scenario, |row| row.counts.lost += 1);
        }
        for scenario in doubled.filter_map(|(device, serial)| of_reading(marks, device, serial)) {
            on(report, scenario, |row| row.counts.duplicated += 1);
        }
        for scenario in commands.acted_twice.iter().filter_map(|(_, request)| of_command(marks, request)) {
            on(report, scenario, |row| row.counts.duplicated += 1);
        }
        for scenario in commands.reordered.iter().filter_map(|(_, request)| of_command(marks, request)) {
            on(report, scenario, |row| row.counts.reordered += 1);
        }
        for row in &mut report.scenarios {
            for (count, what) in [(row.counts.lost, "lost"), (row.counts.duplicated, "doubled")] {
                if count > 0 {
                    row.broken.push(format!("{count} {what}"));
                }
            }
        }
        let totals = &mut report.totals;
        totals.counts.lost = readings.lost.len() as u64;
        totals.counts.duplicated = (readings.duplicated.len() + commands.acted_twice.len()) as u64;
        totals.counts.reordered = commands.reordered.len() as u64;
        totals.readings_owed = readings.owed;
        totals.readings_stored = readings.rows;
        totals.device_reboots = readings.reboots;
        totals.commands_accepted = commands.answered;
        totals.commands_acted = commands.acted;
        totals.not_acted.clone_from(&self.not_acted);
        self.doubts(&mut report.broken);
    }

    /// What makes the verdict itself worthless, or is no loss and no double and still wrong.
    fn doubts(&self, broken: &mut Vec<String>) {
        let (readings, commands) = (&self.readings, &self.commands);
        let doubts = [
            (readings.owed == 0, "no reading was taken, so nothing was shown".to_owned()),
            (commands.acted == 0, "no command reached a device, so nothing was shown".to_owned()),
            (!readings.lost.is_empty(), format!("{} readings lost in all", readings.lost.len())),
            (
                !readings.duplicated.is_empty(),
                format!("{} readings stored more than once ({})", readings.duplicated.len(), spread(readings)),
            ),
            (!commands.acted_twice.is_empty(), format!("{} commands acted on twice", commands.acted_twice.len())),
            (
                !commands.acted_expired.is_empty(),
                format!("{} commands acted on after they had expired", commands.acted_expired.len()),
            ),
            (!readings.phantoms.is_empty(), format!("{} rows that no device explains", readings.phantoms.len())),
            (!commands.phantoms.is_empty(), format!("{} commands nobody gave", commands.phantoms.len())),
            (readings.shed > 0, format!("{} readings shed by a device whose queue was full", readings.shed)),
            (
                !readings.incomplete.is_empty() || !commands.incomplete.is_empty(),
                "a device's log is incomplete".to_owned(),
            ),
        ];
        broken.extend(doubts.into_iter().filter(|(is_so, _)| *is_so).map(|(_, what)| what));
    }
}

/// Which readings of which devices: `ESP32_FIELD_003 120 to 222`.
fn spread(readings: &DeviceVerdict) -> String {
    let mut devices: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (device, serial, _) in &readings.duplicated {
        let range = devices.entry(device).or_insert((*serial, *serial));
        *range = (range.0.min(*serial), range.1.max(*serial));
    }
    let ranges: Vec<String> =
        devices.iter().map(|(device, (first, last))| format!("{device} {first} to {last}")).collect();
    ranges.join(", ")
}

fn on(report: &mut Report, scenario: usize, count: impl FnOnce(&mut Scenario)) {
    if let Some(row) = report.scenarios.get_mut(scenario) {
        count(row);
    }
}

/// The last scenario that had begun when the reading was made.
fn of_reading(marks: &[Mark], device: &str, serial: u64) -> Option<usize> {
    marks.iter().rposition(|mark| mark.made.get(device).is_some_and(|made| serial >= *made))
}

/// The last scenario that had begun when the command was given. A fault is named by its request, or by a command id
/// where it has none, and then it belongs to no scenario.
fn of_command(marks: &[Mark], request: &str) -> Option<usize> {
    let number: usize = request.parse().ok()?;
    marks.iter().rposition(|mark| number >= mark.issued)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_belongs_to_the_scenario_that_had_begun() {
        let mark = |made, issued| Mark { made: BTreeMap::from([("d".to_owned(), made)]), issued };
        let marks = [mark(10, 5), mark(20, 9)];
        assert_eq!(of_reading(&marks, "d", 9), None);
        assert_eq!(of_reading(&marks, "d", 10), Some(0));
        assert_eq!(of_reading(&marks, "d", 25), Some(1));
        assert_eq!(of_reading(&marks, "stranger", 25), None);
        assert_eq!(of_command(&marks, "5"), Some(0));
        assert_eq!(of_command(&marks, "9"), Some(1));
        assert_eq!(of_command(&marks, "no number"), None);
    }
}
