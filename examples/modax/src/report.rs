//! What the demo found: the table for the terminal, `report.json`, and the page for a plant engineer.

mod html;
mod plot;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

pub(crate) use self::html::html;

/// One thing that was broken, and what came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scenario {
    /// Short name, as in the JSON.
    pub(crate) name: String,
    /// What was broken, in a plant engineer's words.
    pub(crate) title: String,
    /// What was done, what was watched and what was seen: whole sentences.
    pub(crate) story: Vec<String>,
    /// Who noticed first.
    pub(crate) detected_by: String,
    /// Which function the prober exercised.
    pub(crate) probed: String,
    /// Seconds since the demo's clock began: the fault's system call.
    pub(crate) started_at: f64,
    /// Seconds since the demo's clock began: the cluster was whole again.
    pub(crate) ended_at: f64,
    pub(crate) detected_ms: Option<u64>,
    pub(crate) recovered_ms: Option<u64>,
    pub(crate) bound_ms: Option<u64>,
    pub(crate) counts: Counts,
    /// What did not hold; empty when the scenario passed.
    pub(crate) broken: Vec<String>,
}

/// What the oracle and the operator counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    pub(crate) failed_requests: u64,
    pub(crate) refused_unsafe: u64,
}

/// Totals of the whole run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) counts: Counts,
    pub(crate) readings_owed: u64,
    pub(crate) readings_stored: u64,
    pub(crate) commands_accepted: u64,
    pub(crate) commands_acted: u64,
    /// Accepted commands that no device acted on, by what became of them.
    pub(crate) not_acted: BTreeMap<String, u64>,
    pub(crate) device_reboots: u64,
    pub(crate) requests: u64,
    pub(crate) seconds: f64,
}

/// State of a component at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Works.
    Working,
    /// Works and has the lead: the database's primary.
    Leading,
    /// Runs, and cannot do all of its work.
    Impaired,
    /// Broken by us, or not answering.
    Down,
}

/// One component's states over time; each holds until the next.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    pub(crate) name: String,
    pub(crate) states: Vec<(f64, State)>,
}

/// A rate over time.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Everything the page shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    pub(crate) scenarios: Vec<Scenario>,
    pub(crate) totals: Totals,
    pub(crate) lanes: Vec<Lane>,
    pub(crate) series: Vec<Series>,
    /// Settings that decide the times, one sentence each.
    pub(crate) settings: Vec<String>,
    /// What did not hold for the run as a whole.
    pub(crate) broken: Vec<String>,
}

impl Report {
    /// Whether every bound held and nothing was lost or doubled.
    pub(crate) fn passed(&self) -> bool {
        let counts = self.totals.counts;
        self.broken.is_empty()
            && self.scenarios.iter().all(|scenario| scenario.broken.is_empty())
            && counts.lost == 0
            && counts.duplicated == 0
    }

    /// `report.json`.
    pub(crate) fn json(&self) -> Value {
        let scenarios: Vec<Value> = self
            .scenarios
            .iter()
            .map(|scenario| {
                json!({
                    "name": scenario.name,
                    "detected_ms": scenario.detected_ms,
                    "recovered_ms": scenario.recovered_ms,
                    "bound_ms": scenario.bound_ms,
                    "lost": scenario.counts.lost,
                    "duplicated": scenario.counts.duplicated,
                    "reordered": scenario.counts.reordered,
                    "failed_requests": scenario.counts.failed_requests,
                    "refused_unsafe": scenario.counts.refused_unsafe,
                })
            })
            .collect();
        let totals = &self.totals;
        json!({
            "scenarios": scenarios,
            "totals": {
                "passed": self.passed(),
                "lost": totals.counts.lost,
                "duplicated": totals.counts.duplicated,
                "reordered": totals.counts.reordered,
                "failed_requests": totals.counts.failed_requests,
                "refused_unsafe": totals.counts.refused_unsafe,
                "readings_owed": totals.readings_owed,
                "readings_stored": totals.readings_stored,
                "commands_accepted": totals.commands_accepted,
                "commands_acted": totals.commands_acted,
                "commands_not_acted": totals.not_acted,
                "device_reboots": totals.device_reboots,
                "requests": totals.requests,
                "seconds": totals.seconds.round(),
            },
        })
    }

    /// What became of accepted commands that no device acted on: ` (the others: 3 "expired …", …)`; empty if there are none.
    pub(crate) fn not_acted(&self) -> String {
        let ends: Vec<String> = self.totals.not_acted.iter().map(|(end, count)| format!("{count} \"{end}\"")).collect();
        if ends.is_empty() { String::new() } else { format!(" (the others: {})", ends.join(", ")) }
    }

    /// The table for the terminal.
    pub(crate) fn table(&self) -> String {
        let header = [
            "what was broken",
            "noticed",
            "recovered",
            "bound",
            "lost",
            "doubled",
            "reordered",
            "failed",
            "refused",
            "",
        ];
        let mut rows = vec![header.map(str::to_owned)];
        for scenario in &self.scenarios {
            let counts = scenario.counts;
            rows.push([
                scenario.title.clone(),
                seconds(scenario.detected_ms),
                seconds(scenario.recovered_ms),
                seconds(scenario.bound_ms),
                counts.lost.to_string(),
                counts.duplicated.to_string(),
                counts.reordered.to_string(),
                counts.failed_requests.to_string(),
                counts.refused_unsafe.to_string(),
                if scenario.broken.is_empty() { "held" } else { "BROKEN" }.to_owned(),
            ]);
        }
        let widths: Vec<usize> = (0..header.len())
            .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in &rows {
            for (column, cell) in row.iter().enumerate() {
                let pad = widths[column] - cell.chars().count();
                let (before, after) = if column == 0 { (0, pad) } else { (pad, 0) };
                text.push_str(&" ".repeat(before));
                text.push_str(cell);
                text.push_str(&" ".repeat(after));
                text.push_str("  ");
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        for broken in self.all_broken() {
            let _ = writeln!(text, "BROKEN  {broken}");
        }
        text
    }

    /// Everything that did not hold, with the scenario it belongs to.
    pub(crate) fn all_broken(&self) -> Vec<String> {
        let of_scenarios = self
            .scenarios
            .iter()
            .flat_map(|scenario| scenario.broken.iter().map(move |what| format!("{}: {what}", scenario.title)));
        of_scenarios.chain(self.broken.iter().cloned()).collect()
    }
}

/// Milliseconds as seconds for people: `0.42 s`, or a dash.
pub(crate) fn seconds(ms: Option<u64>) -> String {
    ms.map_or_else(|| "–".to_owned(), |ms| format!("{:.2} s", ms as f64 / 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run that looks like a real one: six scenarios in four minutes.
    pub(super) fn fixture() -> Report {
        let rows = [
            ("control_layer_killed", "One control layer killed", Some(210), Some(320), Some(10_000)),
            ("broker_cut_off", "One message broker cut off", Some(480), Some(1400), Some(5_000)),
            ("stream_leader_cut_off", "The broker that leads the message store cut off", Some(460), Some(7100), None),
            ("overload", "10,000 requests at once", None, Some(30), Some(1_000)),
            ("primary_stopped", "The database's primary stopped", Some(350), Some(21_300), Some(30_000)),
            ("ai_paused", "Both AI layers paused", Some(2100), Some(8900), None),
        ];
        let scenarios = rows.iter().enumerate().map(|(index, (name, title, detected, recovered, bound))| Scenario {
            name: (*name).to_owned(),
            title: (*title).to_owned(),
            story: vec![format!("{title}. The devices kept on measuring, and the operator kept on commanding.")],
            detected_by: "the load balancer".to_owned(),
            probed: "GET /status through the load balancer, ten times a second".to_owned(),
            started_at: 15.0 + 38.0 * index as f64,
            ended_at: 45.0 + 38.0 * index as f64,
            detected_ms: *detected,
            recovered_ms: *recovered,
            bound_ms: *bound,
            counts: Counts { refused_unsafe: 3, ..Counts::default() },
            broken: Vec::new(),
        });
        let wave = |base: f64, dip: f64| -> Vec<(f64, f64)> {
            (0..480)
                .map(|step| {
                    let t = f64::from(step) / 2.0;
                    let value = if (53.0..55.0).contains(&t) || (167.0..188.0).contains(&t) { dip } else { base };
                    (t, value + (t * 1.7).sin() * base * 0.04)
                })
                .collect()
        };
        let names = ["control 1", "control 2", "broker 1", "broker 2", "broker 3", "database 1", "database 2", "AI 1"];
        let lanes = names.iter().enumerate().map(|(index, name)| Lane {
            name: (*name).to_owned(),
            states: vec![
                (0.0, if index == 5 { State::Leading } else { State::Working }),
                (15.0 + 30.0 * index as f64, State::Down),
                (25.0 + 30.0 * index as f64, State::Impaired),
                (30.0 + 30.0 * index as f64, if index == 6 { State::Leading } else { State::Working }),
            ],
        });
        Report {
            scenarios: scenarios.collect(),
            totals: Totals {
                readings_owed: 28_402,
                readings_stored: 28_402,
                commands_accepted: 1190,
                commands_acted: 1186,
                not_acted: BTreeMap::from([("expired before it could be published".into(), 4)]),
                device_reboots: 24,
                requests: 14_000,
                seconds: 240.0,
                counts: Counts { refused_unsafe: 18, ..Counts::default() },
            },
            lanes: lanes.collect(),
            series: vec![
                Series { name: "Readings confirmed".into(), unit: "a second".into(), points: wave(120.0, 20.0) },
                Series { name: "Commands done".into(), unit: "a second".into(), points: wave(5.0, 0.0) },
            ],
            settings: vec!["The database hands over after its leader has been silent for 20 seconds (ttl).".into()],
            broken: Vec::new(),
        }
    }

    #[test]
    fn the_json_has_exactly_the_fields_that_were_promised() {
        let json = fixture().json();

        let mut fields: Vec<&String> = json["scenarios"][0].as_object().unwrap().keys().collect();
        fields.sort();

        let mut expected = [
            "name",
            "detected_ms",
            "recovered_ms",
            "bound_ms",
            "lost",
            "duplicated",
            "reordered",
            "failed_requests",
            "refused_unsafe",
        ];
        expected.sort_unstable();
        assert_eq!(fields, expected);
        let mut top: Vec<&String> = json.as_object().unwrap().keys().collect();
        top.sort();
        assert_eq!(top, ["scenarios", "totals"]);
        assert_eq!(json["scenarios"][2]["bound_ms"], Value::Null);
    }

    #[test]
    fn the_table_has_a_row_for_each_scenario_and_names_what_broke() {
        let mut report = fixture();
        assert!(report.passed());
        report.scenarios[4].broken.push("not recovered within 30 s".to_owned());

        let table = report.table();

        assert!(!report.passed());
        assert_eq!(table.lines().filter(|line| line.ends_with("held")).count(), 5);
        assert!(table.contains("BROKEN  The database's primary stopped: not recovered within 30 s"));
    }

    #[test]
    fn one_lost_reading_fails_the_run() {
        let mut report = fixture();
        report.totals.counts.lost = 1;
        assert!(!report.passed());
    }
}
