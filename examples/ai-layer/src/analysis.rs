//! The analysis: fixed rules for what is always wrong, a deviation for what is unusual, wear for what adds up.

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    baseline::{Baselines, Unusual},
    request::{Axes, Window},
    wear::Factors,
};

/// Deviations from the usual above which a window is an anomaly.
const Z_LIMIT: f64 = 3.0;

/// The answer about one window; field names as the panel knows them.
#[derive(Clone, Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "the wire contract's name")]
pub(crate) struct Analysis {
    /// Unix milliseconds of the answer.
    pub(crate) timestamp: u64,
    pub(crate) device_id: String,
    pub(crate) anomaly_detected: bool,
    pub(crate) anomaly_score: f64,
    pub(crate) anomaly_description: String,
    pub(crate) predicted_wear_level: f64,
    pub(crate) estimated_remaining_hours: u64,
    pub(crate) recommendations: Vec<String>,
    pub(crate) confidence: f64,
    pub(crate) analysis_details: Value,
}

/// One rule that a window breaks.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Finding {
    rule: &'static str,
    value: f64,
    limit: f64,
    score: f64,
    #[serde(skip)]
    text: String,
    #[serde(skip)]
    advice: &'static str,
}

/// Analyses a window at `unix_ms` and lets the baselines learn from it.
pub(crate) fn analyse(window: &Window, baselines: &mut Baselines, unix_ms: u64, instance_id: &str) -> Analysis {
    let findings = rules(window);
    let unusual = baselines.judge(window);
    let (wear, remaining) = baselines.wear(window);
    let deviation = unusual.worst.clone().filter(|(_, z)| *z > Z_LIMIT);
    let score = raise(findings.iter().map(|finding| finding.score).fold(0.0, f64::max), deviation.as_ref());
    let mut texts: Vec<String> = findings.iter().map(|finding| finding.text.clone()).collect();
    let mut recommendations: Vec<String> = findings.iter().map(|finding| finding.advice.to_owned()).collect();
    if let Some((channel, z)) = &deviation {
        texts.push(format!("{channel} deviates from its usual value by {z:.1} standard deviations"));
        recommendations.push("Compare with the machine's task: is the change intended?".to_owned());
    }
    if wear > 0.8 {
        recommendations.push("Plan the replacement of the tool: most of its life is used up".to_owned());
    }
    recommendations.dedup();
    Analysis {
        timestamp: unix_ms,
        device_id: window.device_id.clone(),
        anomaly_detected: !texts.is_empty(),
        anomaly_score: score,
        anomaly_description: if texts.is_empty() { "no anomaly".to_owned() } else { texts.join("; ") },
        predicted_wear_level: wear,
        estimated_remaining_hours: whole(remaining),
        recommendations,
        confidence: confidence(window, &unusual),
        analysis_details: details(window, &findings, &unusual, instance_id),
    }
}

/// A deviation closes part of the distance to 1: 30 % of it at the limit, 5 % more for each further deviation, 90 % at
/// most. So it always raises the score and never passes 1.
fn raise(score: f64, deviation: Option<&(String, f64)>) -> f64 {
    match deviation {
        Some((_, z)) => score + (1.0 - score) * (0.3 + 0.05 * (z - Z_LIMIT)).min(0.9),
        None => score,
    }
}

/// Full with a hundred readings (a 10 s window at 10 Hz) and ten windows of memory; nothing without readings.
fn confidence(window: &Window, unusual: &Unusual) -> f64 {
    let readings = (window.sample_count as f64 / 100.0).min(1.0);
    readings * (0.7 + 0.3 * (unusual.windows as f64 / 10.0).min(1.0))
}

fn whole(hours: f64) -> u64 {
    // In range: at most the life at rate 1, at least 0.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 10,000")]
    let hours = hours.clamp(0.0, crate::wear::LIFE_HOURS) as u64;
    hours
}

fn details(window: &Window, findings: &[Finding], unusual: &Unusual, instance_id: &str) -> Value {
    let factors = Factors::of(window);
    let deviation = unusual.worst.as_ref().map(|(channel, z)| json!({"channel": channel, "z_score": z}));
    json!({
        "findings": findings,
        "deviation": deviation,
        "baseline_windows": unusual.windows,
        "wear_factors": {
            "load": factors.load, "spikes": factors.spikes,
            "vibration": factors.vibration, "temperature": factors.temperature
        },
        "sample_count": window.sample_count,
        "window_seconds": window.seconds(),
        "instance_id": instance_id
    })
}

/// The fixed rules; each limit is exceeded, not reached.
fn rules(window: &Window) -> Vec<Finding> {
    let highest = |values: &[f64]| values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lowest = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
    let spike = highest(&window.current_max);
    let spread = highest(&window.current_mean) - lowest(&window.current_mean);
    let mean = window.vibration_mean.magnitude;
    let peak = window.vibration_max.magnitude;
    let [most, least] = extremes(window.vibration_mean);
    let degrees = highest(&window.temperature_max);
    let (hot, warm) = if degrees > 70.0 { (degrees, f64::NAN) } else { (f64::NAN, degrees) };
    // Rule, value, limit, score, what it is, what to do. No comparison with NaN holds: hot is not warm as well.
    let rows = [
        ("current_spike", spike, 12.0, 0.9, "motor current in A", "Check the motor for a blocked or dull tool"),
        ("current_imbalance", spread, 2.0, 0.6, "difference of the motors' currents in A", "Check load and alignment"),
        ("vibration_mean", mean, 5.0, 0.6, "mean vibration in m/s²", "Check bearings, balance and mounting"),
        ("vibration_peak", peak, 10.0, 0.9, "vibration peak in m/s²", "Check for loose parts before going on"),
        (
            "vibration_axis",
            most,
            2.0 * least,
            0.5,
            "vibration of one axis against twice the least, in m/s²",
            "Check the mounting along that axis",
        ),
        ("temperature_high", hot, 70.0, 0.8, "temperature in °C", "Let the machine cool down; check the cooling"),
        ("temperature_raised", warm, 60.0, 0.5, "temperature in °C", "Watch the temperature; check the cooling"),
    ];
    let broken = rows.into_iter().filter(|(_, value, limit, ..)| value > limit);
    let finding = |(rule, value, limit, score, what, advice)| {
        let text = format!("{what}: {value:.2} is above {limit:.2}");
        Finding { rule, value, limit, score, text, advice }
    };
    broken.map(finding).collect()
}

/// The largest and the smallest of the three axes, by amount.
fn extremes(axes: Axes) -> [f64; 2] {
    let amounts = [axes.x.abs(), axes.y.abs(), axes.z.abs()];
    [amounts.into_iter().fold(0.0, f64::max), amounts.into_iter().fold(f64::INFINITY, f64::min)]
}

/// Whether the rules still say what they must about one window that is fine and one that is not.
pub(crate) fn self_test() -> Result<(), &'static str> {
    let axes = Axes { x: 1.0, y: 1.0, z: 1.0, magnitude: 1.8 };
    let fine = Window {
        device_id: "self-test".to_owned(),
        start: 0.0,
        end: 10.0,
        current_mean: vec![4.0],
        current_std: vec![0.1],
        current_max: vec![4.5],
        vibration_mean: axes,
        vibration_std: axes,
        vibration_max: axes,
        temperature_mean: vec![40.0],
        temperature_max: vec![41.0],
        sample_count: 100,
    };
    let bad = Window { current_max: vec![13.0], ..fine.clone() };
    match (rules(&fine).as_slice(), rules(&bad).as_slice()) {
        ([], [finding]) if finding.rule == "current_spike" => Ok(()),
        _ => Err("the rules no longer hold"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Analysis, analyse};
    use crate::{
        baseline::Baselines,
        request::tests::{quiet, window},
    };
    use serde_json::{Value, json};

    fn answer(value: &Value) -> Analysis {
        analyse(&window(value), &mut Baselines::default(), 1_700_000_010_000, "a")
    }

    #[test]
    fn each_rule_has_its_score_and_the_highest_counts() {
        let rows = [
            ("current_max", json!([12.0, 4.6]), 0.0),
            ("current_max", json!([12.1, 4.6]), 0.9),
            ("current_mean", json!([4.0, 6.0]), 0.0),
            ("current_mean", json!([4.0, 6.1]), 0.6),
            ("vibration_mean", json!({"x": 1, "y": 1, "z": 1, "magnitude": 5.0}), 0.0),
            ("vibration_mean", json!({"x": 1, "y": 1, "z": 1, "magnitude": 5.1}), 0.6),
            ("vibration_max", json!({"x": 1, "y": 1, "z": 1, "magnitude": 10.0}), 0.0),
            ("vibration_max", json!({"x": 1, "y": 1, "z": 1, "magnitude": 10.1}), 0.9),
            ("vibration_mean", json!({"x": 2.0, "y": 1, "z": 1, "magnitude": 2.4}), 0.0),
            ("vibration_mean", json!({"x": -2.1, "y": 1, "z": 1, "magnitude": 2.4}), 0.5),
            ("temperature_max", json!([60.0]), 0.0),
            ("temperature_max", json!([60.1]), 0.5),
            ("temperature_max", json!([70.0]), 0.5),
            ("temperature_max", json!([70.1]), 0.8),
        ];
        for (field, value, score) in rows {
            let mut asked = quiet();
            asked[field] = value.clone();
            let answer = answer(&asked);
            assert!((answer.anomaly_score - score).abs() < 1e-12, "{field} {value}: {answer:?}");
            assert_eq!(answer.anomaly_detected, score > 0.0, "{field} {value}");
            assert_eq!(answer.recommendations.is_empty(), score == 0.0, "{field} {value}");
        }
        let mut both = quiet();
        both["temperature_max"] = json!([61.0]);
        both["current_max"] = json!([13.0, 1.0]);
        let answer = answer(&both);
        assert!((answer.anomaly_score - 0.9).abs() < 1e-12);
        assert!(answer.anomaly_description.contains("13.00") && answer.anomaly_description.contains("61.00"));
    }

    #[test]
    fn a_deviation_raises_any_score_and_never_beyond_one() {
        let mut baselines = Baselines::default();
        for _ in 0..20 {
            analyse(&window(&quiet()), &mut baselines, 0, "a");
        }
        let mut jump = quiet();
        jump["current_mean"] = json!([5.5, 5.6]);
        let alone = analyse(&window(&jump), &mut baselines, 0, "a");
        assert!(alone.anomaly_detected && alone.anomaly_score > 0.29, "{alone:?}");
        jump["current_mean"] = json!([50.0, 50.0]);
        jump["temperature_max"] = json!([61.0]);
        let raised = analyse(&window(&jump), &mut baselines, 0, "a");
        assert!(raised.anomaly_score > 0.5 && raised.anomaly_score <= 1.0, "{raised:?}");
        assert!(raised.confidence > 0.99, "a full window and a full memory");
    }

    #[test]
    fn every_number_of_the_answer_is_within_its_range_for_the_largest_input() {
        let huge = 1e9;
        let axes = json!({"x": huge, "y": 0.0, "z": -huge, "magnitude": huge});
        let mut asked = quiet();
        for field in ["current_mean", "current_std", "current_max"] {
            asked[field] = json!([huge, huge]);
        }
        for field in ["vibration_mean", "vibration_max"] {
            asked[field] = axes.clone();
        }
        for field in ["temperature_mean", "temperature_max"] {
            asked[field] = json!([huge]);
        }
        asked["sample_count"] = json!(u64::MAX);
        let mut baselines = Baselines::default();
        for _ in 0..10 {
            let answer = analyse(&window(&asked), &mut baselines, u64::MAX, "a");
            for value in [answer.anomaly_score, answer.predicted_wear_level, answer.confidence] {
                assert!((0.0..=1.0).contains(&value), "{answer:?}");
            }
            assert_eq!(answer.estimated_remaining_hours, 0);
        }
        let mut empty = quiet();
        for field in ["current_mean", "current_std", "current_max", "temperature_mean", "temperature_max"] {
            empty[field] = json!([]);
        }
        empty["sample_count"] = json!(0);
        let answer = answer(&empty);
        assert!(!answer.anomaly_detected && answer.confidence == 0.0, "{answer:?}");
        assert!(serde_json::to_string(&answer).is_ok_and(|text| !text.contains("null,\"baseline_windows\":null")));
    }
}
