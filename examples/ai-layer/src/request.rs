//! The window that is asked about: parsed field by field, so that every complaint names the field.

use serde_json::{Map, Value};

/// Values of one list at most: no machine here has that many motors, and a list costs time.
const MOST_VALUES: usize = 256;
/// Largest magnitude of any reading; beyond it lies a broken sensor, and squares that overflow.
const LARGEST: f64 = 1e9;
/// Longest window: a year.
const LONGEST_SECONDS: f64 = 366.0 * 86_400.0;

/// Why a window is not analysed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadField {
    /// The field, with a point for parts: `vibration_mean.x`.
    pub(crate) field: String,
    /// What is wrong with it.
    pub(crate) reason: String,
}

impl BadField {
    fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

/// Vibration in m/s².
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Axes {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) z: f64,
    pub(crate) magnitude: f64,
}

/// One window of one device. Currents in amperes, temperatures in °C, times in Unix seconds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Window {
    pub(crate) device_id: String,
    pub(crate) start: f64,
    pub(crate) end: f64,
    pub(crate) current_mean: Vec<f64>,
    pub(crate) current_std: Vec<f64>,
    pub(crate) current_max: Vec<f64>,
    pub(crate) vibration_mean: Axes,
    pub(crate) vibration_std: Axes,
    pub(crate) vibration_max: Axes,
    pub(crate) temperature_mean: Vec<f64>,
    pub(crate) temperature_max: Vec<f64>,
    pub(crate) sample_count: u64,
}

impl Window {
    /// Reads a JSON object; fields it does not know are ignored.
    pub(crate) fn from_json(object: &Map<String, Value>) -> Result<Self, BadField> {
        let window = Self {
            device_id: device_id(object)?,
            start: number(object, "", "time_window_start")?,
            end: number(object, "", "time_window_end")?,
            current_mean: list(object, "current_mean")?,
            current_std: list(object, "current_std")?,
            current_max: list(object, "current_max")?,
            vibration_mean: axes(object, "vibration_mean")?,
            vibration_std: axes(object, "vibration_std")?,
            vibration_max: axes(object, "vibration_max")?,
            temperature_mean: list(object, "temperature_mean")?,
            temperature_max: list(object, "temperature_max")?,
            sample_count: count(object, "sample_count")?,
        };
        window.check()
    }

    /// Seconds from start to end.
    pub(crate) fn seconds(&self) -> f64 {
        self.end - self.start
    }

    fn check(self) -> Result<Self, BadField> {
        if self.start < 0.0 {
            return Err(BadField::new("time_window_start", "must not be negative"));
        }
        if self.end < self.start {
            return Err(BadField::new("time_window_end", "lies before time_window_start"));
        }
        if self.seconds() > LONGEST_SECONDS {
            return Err(BadField::new("time_window_end", "lies more than a year after time_window_start"));
        }
        for (field, list, means) in [
            ("current_std", &self.current_std, &self.current_mean),
            ("current_max", &self.current_max, &self.current_mean),
            ("temperature_max", &self.temperature_max, &self.temperature_mean),
        ] {
            if list.len() != means.len() {
                return Err(BadField::new(
                    field,
                    format!("has {} values where the means are {}", list.len(), means.len()),
                ));
            }
        }
        if self.current_std.iter().any(|value| *value < 0.0) {
            return Err(BadField::new("current_std", "must not be negative"));
        }
        for (field, axes) in [("vibration_std", self.vibration_std)] {
            if [axes.x, axes.y, axes.z, axes.magnitude].iter().any(|value| *value < 0.0) {
                return Err(BadField::new(field, "must not be negative"));
            }
        }
        for (field, axes) in [("vibration_mean", self.vibration_mean), ("vibration_max", self.vibration_max)] {
            if axes.magnitude < 0.0 {
                return Err(BadField::new(format!("{field}.magnitude"), "must not be negative"));
            }
        }
        Ok(self)
    }
}

fn field<'a>(object: &'a Map<String, Value>, within: &str, name: &str) -> Result<&'a Value, BadField> {
    object.get(name).ok_or_else(|| BadField::new(format!("{within}{name}"), "is missing"))
}

fn as_number(value: &Value, name: &str, largest: f64) -> Result<f64, BadField> {
    let number = value.as_f64().ok_or_else(|| BadField::new(name, "is not a number"))?;
    if !number.is_finite() || number.abs() > largest {
        return Err(BadField::new(name, format!("is beyond {largest:e}")));
    }
    Ok(number)
}

fn number(object: &Map<String, Value>, within: &str, name: &str) -> Result<f64, BadField> {
    // Only the two times are read so: Unix seconds, of which 1e11 is the year 5138.
    as_number(field(object, within, name)?, &format!("{within}{name}"), 1e11)
}

fn list(object: &Map<String, Value>, name: &str) -> Result<Vec<f64>, BadField> {
    let values = field(object, "", name)?.as_array().ok_or_else(|| BadField::new(name, "is not a list"))?;
    if values.len() > MOST_VALUES {
        return Err(BadField::new(name, format!("has more than {MOST_VALUES} values")));
    }
    values.iter().enumerate().map(|(at, value)| as_number(value, &format!("{name}[{at}]"), LARGEST)).collect()
}

fn axes(object: &Map<String, Value>, name: &str) -> Result<Axes, BadField> {
    let parts = field(object, "", name)?.as_object().ok_or_else(|| BadField::new(name, "is not an object"))?;
    let within = format!("{name}.");
    let part = |axis: &str| as_number(field(parts, &within, axis)?, &format!("{within}{axis}"), LARGEST);
    Ok(Axes { x: part("x")?, y: part("y")?, z: part("z")?, magnitude: part("magnitude")? })
}

fn count(object: &Map<String, Value>, name: &str) -> Result<u64, BadField> {
    field(object, "", name)?.as_u64().ok_or_else(|| BadField::new(name, "is not a whole number from 0"))
}

fn device_id(object: &Map<String, Value>) -> Result<String, BadField> {
    let id = field(object, "", "device_id")?.as_str().ok_or_else(|| BadField::new("device_id", "is not a string"))?;
    if id.is_empty() || id.len() > 128 || id.chars().any(char::is_control) {
        return Err(BadField::new("device_id", "must be 1 to 128 bytes without control characters"));
    }
    Ok(id.to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::Window;
    use serde_json::{Value, json};

    /// A window with which nothing is wrong.
    pub(crate) fn quiet() -> Value {
        json!({
            "device_id": "ESP32_FIELD_001", "time_window_start": 1_700_000_000.0, "time_window_end": 1_700_000_010.0,
            "current_mean": [4.0, 4.2], "current_std": [0.1, 0.1], "current_max": [4.5, 4.6],
            "vibration_mean": {"x": 1.0, "y": 1.1, "z": 1.2, "magnitude": 1.9},
            "vibration_std": {"x": 0.1, "y": 0.1, "z": 0.1, "magnitude": 0.1},
            "vibration_max": {"x": 1.3, "y": 1.3, "z": 1.5, "magnitude": 2.4},
            "temperature_mean": [40.0], "temperature_max": [41.0], "sample_count": 100
        })
    }

    pub(crate) fn window(value: &Value) -> Window {
        Window::from_json(value.as_object().unwrap()).unwrap()
    }

    fn refused(value: &Value) -> String {
        Window::from_json(value.as_object().unwrap()).unwrap_err().field
    }

    #[test]
    fn each_missing_or_mistyped_field_is_named_and_unknown_ones_are_ignored() {
        let mut more = quiet();
        more["firmware"] = json!({"unknown": [1]});
        assert_eq!(window(&more), window(&quiet()));
        for name in quiet().as_object().unwrap().keys() {
            let mut value = quiet();
            value.as_object_mut().unwrap().remove(name);
            assert_eq!(refused(&value), *name);
            value[name] = json!(null);
            assert_eq!(refused(&value), *name);
            value[name] = json!(true);
            assert_eq!(refused(&value), *name);
        }
        for (name, axis) in [("vibration_mean", "x"), ("vibration_std", "y"), ("vibration_max", "magnitude")] {
            let mut value = quiet();
            value[name].as_object_mut().unwrap().remove(axis);
            assert_eq!(refused(&value), format!("{name}.{axis}"));
        }
    }

    #[test]
    fn values_that_cannot_be_are_refused_by_name() {
        for (name, value, named) in [
            ("current_mean", json!([1.0, "2"]), "current_mean[1]"),
            ("current_mean", json!([1e10, 1.0]), "current_mean[0]"),
            ("current_mean", json!(vec![1.0; 257]), "current_mean"),
            ("current_mean", json!([1.0]), "current_std"),
            ("current_std", json!([-0.1, 0.0]), "current_std"),
            ("current_max", json!([]), "current_max"),
            ("temperature_max", json!([1.0, 2.0]), "temperature_max"),
            ("vibration_mean", json!({"x": 0, "y": 0, "z": 0, "magnitude": -1}), "vibration_mean.magnitude"),
            ("vibration_std", json!({"x": -1, "y": 0, "z": 0, "magnitude": 0}), "vibration_std"),
            ("sample_count", json!(-1), "sample_count"),
            ("sample_count", json!(1.5), "sample_count"),
            ("time_window_start", json!(-5), "time_window_start"),
            ("time_window_end", json!(5), "time_window_end"),
            ("time_window_end", json!(1e10), "time_window_end"),
            ("device_id", json!(""), "device_id"),
            ("device_id", json!("a\nb"), "device_id"),
        ] {
            let mut window = quiet();
            window[name] = value;
            assert_eq!(refused(&window), named);
        }
    }
}
