//! What travels on MQTT and HTTP: payloads of the firmware, of the AI layer and of the operator panel.
//!
//! Unknown fields are ignored, a missing one is an error that names it. What is stored or compared later is checked
//! here once: identities that fit SQL, arrays of a sane length, times that a calendar has.

use std::collections::BTreeMap;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, DeserializeOwned, MapAccess, Visitor},
};
use serde_json::Value;
use uuid::Uuid;

/// The topics of the contract.
pub mod topic {
    /// Readings, from the field.
    pub const SENSOR_DATA: &str = "modax/sensor/data";
    /// Safety reports, from the field.
    pub const SENSOR_SAFETY: &str = "modax/sensor/safety";
    /// Analyses, to the panel and to the other control layers.
    pub const AI_ANALYSIS: &str = "modax/ai/analysis";
    /// What a control layer listens to.
    pub const SUBSCRIBED: [&str; 3] = [SENSOR_DATA, SENSOR_SAFETY, AI_ANALYSIS];
    /// Commands, to the field.
    pub const CONTROL_COMMANDS: &str = "modax/control/commands";
}

/// Above it a timestamp is Unix time in milliseconds, below it milliseconds since the device's boot.
pub const UNIX_TIME_ABOVE: u64 = 100_000_000_000;

/// A counter of 32 bits has wrapped before: a time since boot is below it.
const BOOT_TIME_BELOW: u64 = 1 << 32;

/// Largest payload taken: a reading has a few hundred bytes, an analysis a few thousand. Well below what brokers take in one
/// packet: a larger one would have them close the connection, on which the commands travel as well.
pub const MAX_PAYLOAD_BYTES: usize = 64 * 1024;
/// Most motors or temperatures of one device.
const MAX_CHANNELS: usize = 256;
/// The last millisecond of the year 9999, the end of what RFC 3339 can write.
const MAX_TIMESTAMP: u64 = 253_402_300_799_999;

/// Why a payload was not understood. The text names the field.
#[derive(Debug, PartialEq, Eq)]
pub struct BadPayload(pub String);

impl std::fmt::Display for BadPayload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadPayload {}

/// What a payload must hold beyond its JSON shape.
pub trait Checked {
    /// Looks for what JSON types cannot say.
    ///
    /// # Errors
    /// The first field that cannot be used.
    fn check(&self) -> Result<(), BadPayload>;
}

/// Reads a payload.
///
/// # Errors
/// [`BadPayload`] names the field that is missing or cannot be used.
pub fn parse<T: DeserializeOwned + Checked>(payload: &[u8]) -> Result<T, BadPayload> {
    if payload.len() > MAX_PAYLOAD_BYTES {
        return Err(BadPayload(format!("{} bytes, at most {MAX_PAYLOAD_BYTES}", payload.len())));
    }
    // Else a list of the values in the order of the fields would pass, too.
    if payload.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
        return Err(BadPayload("not a JSON object".to_owned()));
    }
    let bad = |error: &dyn std::fmt::Display| BadPayload(error.to_string());
    let mut json = serde_json::Deserializer::from_slice(payload);
    let value: T = serde_path_to_error::deserialize(&mut json).map_err(|error| match error.path().iter().len() {
        0 => bad(error.inner()),
        _ => bad(&error),
    })?;
    json.end().map_err(|error| bad(&error))?;
    value.check()?;
    Ok(value)
}

/// Acceleration by axis, in m/s², and its magnitude.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Vibration {
    /// Along x.
    pub x: f64,
    /// Along y.
    pub y: f64,
    /// Along z.
    pub z: f64,
    /// Of the vector, as the device computed it.
    pub magnitude: f64,
}

/// One reading of a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SensorData {
    /// Milliseconds since the device's boot, or Unix time: see [`UNIX_TIME_ABOVE`].
    pub timestamp: u64,
    /// Who.
    pub device_id: String,
    /// Amperes, one for each motor.
    pub motor_currents: Vec<f64>,
    /// Acceleration.
    pub vibration: Vibration,
    /// °C, one for each sensor.
    pub temperatures: Vec<f64>,
}

/// One safety report of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SafetyReport {
    /// As in [`SensorData`].
    pub timestamp: u64,
    /// Who.
    pub device_id: String,
    /// The four facts.
    #[serde(flatten)]
    pub status: SafetyStatus,
}

/// The four facts that decide whether a device is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SafetyStatus {
    /// The button is pressed.
    pub emergency_stop: bool,
    /// The door is closed.
    pub door_closed: bool,
    /// A motor draws too much.
    pub overload_detected: bool,
    /// No part is too hot.
    pub temperature_ok: bool,
}

impl SafetyStatus {
    /// Whether the device may move.
    pub const fn is_safe(self) -> bool {
        !self.emergency_stop && self.door_closed && !self.overload_detected && self.temperature_ok
    }
}

/// A command as the field receives it. Old firmware knows only the time, the type and the parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Unix time, milliseconds.
    pub timestamp: u64,
    /// Unix time in milliseconds by the database's clock, equal to the audit's: a receiver with a clock must not act from then on.
    /// No broker can be relied on for that: one that was frozen or cut off delivers what it has whenever it comes back.
    pub expires_at: u64,
    /// What to do.
    pub command_type: String,
    /// With what.
    pub parameters: BTreeMap<String, String>,
    /// The same in every copy: a receiver that remembers it acts once.
    pub command_id: Uuid,
    /// The control layer that accepted it.
    pub instance_id: String,
}

/// The body of `POST /control/command`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandRequest {
    /// What to do.
    pub command_type: String,
    /// With what; may be left out.
    #[serde(default, deserialize_with = "each_once")]
    pub parameters: Option<BTreeMap<String, String>>,
}

/// JSON lets a name stand twice, and readers differ in which of the values counts: a command must not depend on that.
fn each_once<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    struct EachOnce(BTreeMap<String, String>);
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = EachOnce;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object of strings")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<EachOnce, A::Error> {
            let mut all = BTreeMap::new();
            while let Some((name, value)) = map.next_entry::<String, String>()? {
                if all.contains_key(&name) {
                    return Err(de::Error::custom(format_args!("{name:?} stands there twice")));
                }
                all.insert(name, value);
            }
            Ok(EachOnce(all))
        }
    }
    impl<'de> Deserialize<'de> for EachOnce {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_map(Names)
        }
    }
    Ok(Option::<EachOnce>::deserialize(deserializer)?.map(|EachOnce(all)| all))
}

/// What the AI layer is asked: one window of one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnalysisRequest {
    /// Who.
    pub device_id: String,
    /// Unix seconds.
    pub time_window_start: f64,
    /// Unix seconds.
    pub time_window_end: f64,
    /// Amperes by motor.
    pub current_mean: Vec<f64>,
    /// Amperes by motor.
    pub current_std: Vec<f64>,
    /// Amperes by motor.
    pub current_max: Vec<f64>,
    /// By axis.
    pub vibration_mean: Vibration,
    /// By axis.
    pub vibration_std: Vibration,
    /// By axis.
    pub vibration_max: Vibration,
    /// °C by sensor.
    pub temperature_mean: Vec<f64>,
    /// °C by sensor.
    pub temperature_max: Vec<f64>,
    /// Readings in the window.
    pub sample_count: u64,
}

/// What the AI layer answers, and what is published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    /// Unix time, milliseconds.
    pub timestamp: u64,
    /// Who.
    pub device_id: String,
    /// Whether anything is unusual.
    pub anomaly_detected: bool,
    /// How unusual, 0 to 1.
    pub anomaly_score: f64,
    /// In words.
    pub anomaly_description: String,
    /// 0 (new) to 1 (worn out).
    pub predicted_wear_level: f64,
    /// Hours of life left.
    pub estimated_remaining_hours: i64,
    /// For people.
    pub recommendations: Vec<String>,
    /// How sure, 0 to 1.
    pub confidence: f64,
    /// Whatever else the analysis has to say.
    pub analysis_details: Value,
}

/// Whether a device can have this identity.
///
/// # Errors
/// [`BadPayload`] says what one looks like.
pub fn check_device(device_id: &str) -> Result<(), BadPayload> {
    // NUL cannot be stored by PostgreSQL; other control characters only serve to forge log lines.
    if device_id.is_empty() || device_id.len() > 128 || device_id.chars().any(char::is_control) {
        return Err(BadPayload("device_id: 1 to 128 bytes without control characters".to_owned()));
    }
    Ok(())
}

fn check_timestamp(timestamp: u64) -> Result<(), BadPayload> {
    if timestamp > MAX_TIMESTAMP {
        return Err(BadPayload("timestamp: beyond the year 9999".to_owned()));
    }
    Ok(())
}

/// A device's clock: what lies between the last moment of a boot and the first that is Unix time is neither.
fn check_device_timestamp(timestamp: u64) -> Result<(), BadPayload> {
    if (BOOT_TIME_BELOW..=UNIX_TIME_ABOVE).contains(&timestamp) {
        let bounds = format!("milliseconds since boot are below {BOOT_TIME_BELOW}, Unix time above {UNIX_TIME_ABOVE}");
        return Err(BadPayload(format!("timestamp: {timestamp} is neither: {bounds}")));
    }
    check_timestamp(timestamp)
}

impl Checked for SensorData {
    fn check(&self) -> Result<(), BadPayload> {
        check_device(&self.device_id)?;
        check_device_timestamp(self.timestamp)?;
        for (name, channels) in [("motor_currents", &self.motor_currents), ("temperatures", &self.temperatures)] {
            if channels.len() > MAX_CHANNELS {
                return Err(BadPayload(format!("{name}: more than {MAX_CHANNELS} values")));
            }
        }
        Ok(())
    }
}

impl Checked for SafetyReport {
    fn check(&self) -> Result<(), BadPayload> {
        check_device(&self.device_id)?;
        check_device_timestamp(self.timestamp)
    }
}

/// PostgreSQL can hold no NUL in a text, nor in one inside JSON.
fn check_text(name: &str, text: &str) -> Result<(), BadPayload> {
    if text.contains('\0') { Err(BadPayload(format!("{name}: no NUL"))) } else { Ok(()) }
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(values) => values.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

impl Checked for Analysis {
    fn check(&self) -> Result<(), BadPayload> {
        check_device(&self.device_id)?;
        check_timestamp(self.timestamp)?;
        for (name, value) in [
            ("anomaly_score", self.anomaly_score),
            ("predicted_wear_level", self.predicted_wear_level),
            ("confidence", self.confidence),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err(BadPayload(format!("{name}: {value} is not from 0 to 1")));
            }
        }
        if self.estimated_remaining_hours < 0 {
            return Err(BadPayload(format!(
                "estimated_remaining_hours: {} is below 0",
                self.estimated_remaining_hours
            )));
        }
        check_text("anomaly_description", &self.anomaly_description)?;
        for recommendation in &self.recommendations {
            check_text("recommendations", recommendation)?;
        }
        if !self.analysis_details.is_object() {
            return Err(BadPayload("analysis_details: not an object".to_owned()));
        }
        if has_nul(&self.analysis_details) {
            return Err(BadPayload("analysis_details: no NUL".to_owned()));
        }
        Ok(())
    }
}

impl Checked for CommandRequest {
    fn check(&self) -> Result<(), BadPayload> {
        if self.command_type.is_empty()
            || self.command_type.len() > 128
            || self.command_type.chars().any(char::is_control)
        {
            return Err(BadPayload("command_type: 1 to 128 bytes without control characters".to_owned()));
        }
        let parameters = self.parameters.iter().flatten();
        for (name, value) in parameters {
            if name.contains('\0') || value.contains('\0') {
                return Err(BadPayload("parameters: no NUL".to_owned()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Analysis, Checked, CommandRequest, SafetyReport, SensorData, parse};

    fn reading() -> Value {
        json!({"timestamp": 1234, "device_id": "ESP32_FIELD_001", "motor_currents": [1.0, 2.5],
               "vibration": {"x": 0.1, "y": 0.2, "z": 0.3, "magnitude": 0.4}, "temperatures": [40.5]})
    }

    fn report() -> Value {
        json!({"timestamp": 1234, "device_id": "ESP32_FIELD_001", "emergency_stop": false, "door_closed": true,
               "overload_detected": false, "temperature_ok": true})
    }

    fn analysis() -> Value {
        json!({"timestamp": 1, "device_id": "d", "anomaly_detected": false, "anomaly_score": 0.0,
               "anomaly_description": "", "predicted_wear_level": 0.1, "estimated_remaining_hours": 9000,
               "recommendations": [], "confidence": 0.8, "analysis_details": {}})
    }

    fn each_missing_field_is_named<T: serde::de::DeserializeOwned + Checked + std::fmt::Debug>(whole: &Value) {
        parse::<T>(whole.to_string().as_bytes()).expect("the whole is understood");
        for name in whole.as_object().expect("an object").keys() {
            let mut part = whole.clone();
            part.as_object_mut().expect("an object").remove(name);
            let error = parse::<T>(part.to_string().as_bytes()).expect_err(name);
            assert!(error.0.contains(name), "{name} is not named in: {error}");
        }
    }

    #[test]
    fn a_missing_field_is_named_in_every_payload() {
        each_missing_field_is_named::<SensorData>(&reading());
        each_missing_field_is_named::<SafetyReport>(&report());
        each_missing_field_is_named::<Analysis>(&analysis());
        each_missing_field_is_named::<CommandRequest>(&json!({"command_type": "start"}));

        let mut nested = reading();
        nested["vibration"].as_object_mut().expect("an object").remove("magnitude");
        assert!(parse::<SensorData>(nested.to_string().as_bytes()).expect_err("magnitude").0.contains("magnitude"));
    }

    #[test]
    fn what_has_the_wrong_type_is_named_and_what_is_ambiguous_is_refused() {
        for (body, named) in [
            (r#"{"command_type": 5}"#, "command_type"),
            (r#"{"command_type": "start", "parameters": {"rpm": 100}}"#, "parameters.rpm"),
            (r#"{"command_type": "start", "parameters": ["rpm"]}"#, "parameters"),
            (r#"{"command_type": "start", "parameters": {"rpm": "1", "rpm": "2"}}"#, "rpm"),
            (r#"{"command_type": "start", "command_type": "stop"}"#, "command_type"),
            (r#"["start", {}]"#, "not a JSON object"),
            (r#"{"command_type": "start"} {}"#, "trailing"),
            (r#"{"command_type": "st\u0000art"}"#, "command_type"),
            (r#"{"command_type": "start", "parameters": {"a": "\u0000"}}"#, "parameters"),
            (r#"{"command_type": "\ud800"}"#, "command_type"),
            ("", "EOF"),
        ] {
            let error = parse::<CommandRequest>(body.as_bytes()).expect_err(body);
            assert!(error.0.contains(named), "{body}: {error}");
        }
        for body in
            [r#"{"command_type": "start", "parameters": null}"#, " \n{\"command_type\": \"start\", \"x\": [1]}\n"]
        {
            assert_eq!(parse::<CommandRequest>(body.as_bytes()).expect(body).parameters, None);
        }
    }

    #[test]
    fn no_malformed_payload_of_the_field_is_taken() {
        let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
        let (reading, report) = (reading().to_string(), report().to_string());
        let both = |whole: &str| -> Vec<Vec<u8>> {
            vec![
                vec![],
                b"null".to_vec(),
                b"{".to_vec(),
                b"\xff\xfe{}".to_vec(),
                whole.replace("1234", "-1").into_bytes(),
                whole.replace("1234", "1.5").into_bytes(),
                whole.replace("1234", "NaN").into_bytes(),
                whole.replace("ESP32_FIELD_001", &"x".repeat(10_000)).into_bytes(),
                whole.replace("ESP32_FIELD_001", "a\\u0000").into_bytes(),
                whole.replace("ESP32_FIELD_001", "\\udc00").into_bytes(),
                whole.replace("\"ESP32_FIELD_001\"", &deep).into_bytes(),
                whole.replacen('{', "{\"timestamp\": 1,", 1).into_bytes(),
                format!("[{whole}]").into_bytes(),
                format!("{whole}{}", " ".repeat(1 << 20)).into_bytes(),
                [whole.as_bytes(), &[0]].concat(),
            ]
        };
        let shown = |payload: &[u8]| String::from_utf8_lossy(&payload[..payload.len().min(120)]).into_owned();
        let values = ["NaN", "1e999", "\"2.5\"", "null", &deep, &vec!["1"; 300].join(",")];
        let values = values.map(|value| reading.replace("2.5", value).into_bytes());
        for payload in both(&reading).into_iter().chain(values) {
            assert!(parse::<SensorData>(&payload).is_err(), "{}", shown(&payload));
        }
        for payload in both(&report) {
            assert!(parse::<SafetyReport>(&payload).is_err(), "{}", shown(&payload));
        }
        for (name, value) in [("door_closed", "1"), ("door_closed", "\"true\""), ("emergency_stop", "null")] {
            let mut whole: Value = serde_json::from_str(&report).expect("JSON");
            whole[name] = serde_json::from_str(value).expect("JSON");
            assert!(parse::<SafetyReport>(whole.to_string().as_bytes()).is_err(), "{name}: {value}");
        }
        let twice = report.replacen('{', "{\"door_closed\": false,", 1);
        assert!(parse::<SafetyReport>(twice.as_bytes()).is_err(), "which of the two is it?");
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let mut whole = reading();
        whole["firmware"] = json!({"version": 3});
        assert!(parse::<SensorData>(whole.to_string().as_bytes()).is_ok());
        let mut whole = report();
        whole["firmware"] = json!("3");
        assert!(parse::<SafetyReport>(whole.to_string().as_bytes()).is_ok());
    }

    #[test]
    fn a_device_is_safe_in_exactly_one_of_sixteen_states() {
        let mut safe = 0;
        for bits in 0..16u8 {
            let bit = |n: u8| bits & (1 << n) != 0;
            let mut whole = report();
            whole["emergency_stop"] = bit(0).into();
            whole["door_closed"] = bit(1).into();
            whole["overload_detected"] = bit(2).into();
            whole["temperature_ok"] = bit(3).into();
            let report: SafetyReport = parse(whole.to_string().as_bytes()).expect("well formed");
            let expected = !bit(0) && bit(1) && !bit(2) && bit(3);
            assert_eq!(report.status.is_safe(), expected, "{report:?}");
            safe += u8::from(report.status.is_safe());
        }
        assert_eq!(safe, 1);
    }

    #[test]
    fn what_cannot_be_stored_is_refused_by_name() {
        for (field, value) in [
            ("device_id", json!("")),
            ("device_id", json!("a\u{0}b")),
            ("device_id", json!("x".repeat(129))),
            ("timestamp", json!(u64::MAX)),
            ("motor_currents", json!(vec![0.0; 300])),
        ] {
            let mut whole = reading();
            whole[field] = value;
            let error = parse::<SensorData>(whole.to_string().as_bytes()).expect_err(field);
            assert!(error.0.contains(field), "{error}");
        }
        for (field, value) in [("timestamp", json!(-1)), ("timestamp", json!("now")), ("motor_currents", json!(3))] {
            let mut whole = reading();
            whole[field] = value;
            assert!(parse::<SensorData>(whole.to_string().as_bytes()).is_err());
        }
    }

    #[test]
    fn an_analysis_out_of_its_bounds_is_refused_by_name() {
        for (field, values) in [
            ("anomaly_score", vec![json!(-3), json!(-1e-9), json!(1.000_1), json!(1e300), json!(null)]),
            ("predicted_wear_level", vec![json!(-0.1), json!(2)]),
            ("confidence", vec![json!(-0.1), json!(2)]),
            ("estimated_remaining_hours", vec![json!(-5), json!(1.5)]),
            ("anomaly_description", vec![json!("a\u{0}")]),
            ("recommendations", vec![json!(["a", "b\u{0}"])]),
            (
                "analysis_details",
                vec![json!([]), json!("x"), json!(null), json!({"a": [{"b\u{0}": 1}]}), json!({"a": {"b": ["\u{0}"]}})],
            ),
        ] {
            for value in values {
                let mut whole = analysis();
                whole[field] = value;
                let error = parse::<Analysis>(whole.to_string().as_bytes()).expect_err(field);
                assert!(error.0.starts_with(field), "{error}");
            }
        }
        for (field, value) in
            [("anomaly_score", json!(1)), ("confidence", json!(0)), ("analysis_details", json!({"a": []}))]
        {
            let mut whole = analysis();
            whole[field] = value;
            assert!(parse::<Analysis>(whole.to_string().as_bytes()).is_ok(), "{field}");
        }
    }

    #[test]
    fn a_timestamp_that_is_neither_since_boot_nor_unix_time_is_refused() {
        for (timestamp, is_taken) in [
            (0, true),
            ((1_u64 << 32) - 1, true),
            (1 << 32, false),
            (100_000_000_000, false),
            (100_000_000_001, true),
            (253_402_300_799_999, true),
            (253_402_300_800_000, false),
        ] {
            let (mut reading, mut report) = (reading(), report());
            reading["timestamp"] = json!(timestamp);
            report["timestamp"] = json!(timestamp);
            let reading = parse::<SensorData>(reading.to_string().as_bytes()).map(drop);
            let report = parse::<SafetyReport>(report.to_string().as_bytes()).map(drop);
            assert_eq!(reading, report);
            assert_eq!(reading.is_ok(), is_taken, "{timestamp}: {reading:?}");
            assert!(reading.is_ok() || reading.unwrap_err().0.starts_with("timestamp"), "{timestamp}");
        }
    }
}
