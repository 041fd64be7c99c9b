//! The values of flags: what each takes, and the sentence that refuses the rest.

use std::time::Duration;

use clap::ValueEnum as _;
use modax_db_router::WriteToken;

use super::Preference;

/// No wait is longer. Beyond it, a number is a mistake in its unit.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// As MQTT has it.
const LONGEST_TOPIC_BYTES: usize = 65_535;

pub(super) fn qos(text: &str) -> Result<u8, String> {
    match text {
        "0" => Ok(0),
        "1" => Ok(1),
        "2" => Ok(2),
        _ => Err("expected 0, 1 or 2".to_owned()),
    }
}

pub(super) fn preference(text: &str) -> Result<Preference, String> {
    match text {
        "nearest" => Err("--preference nearest is not supported by this version".to_owned()),
        other => {
            Preference::from_str(other, false).map_err(|_| "expected primary, prefer-replica or replica".to_owned())
        }
    }
}

/// A topic to publish to.
pub(super) fn topic(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > LONGEST_TOPIC_BYTES {
        return Err(format!("expected 1 to {LONGEST_TOPIC_BYTES} bytes"));
    }
    if text.contains(['+', '#']) {
        return Err("a topic to publish to has no wildcard".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn token(text: &str) -> Result<WriteToken, String> {
    text.parse().map_err(|_| "expected the \"token\" of a line of `modax write`".to_owned())
}

/// A number with its unit: 250ms, 5s, 2m, 1h.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("expected a number with its unit, such as 500ms, 30s, 2m or 1h".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| "expected a number before the unit".to_owned())?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        Ok(_) | Err(_) => Err(format!("expected at most {}h", LONGEST.as_secs() / 3600)),
    }
}

/// The same, and not zero.
pub(super) fn some_time(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|time| if time.is_zero() { Err("must be more than zero".to_owned()) } else { Ok(time) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for none in ["30", "s", "", "-1s", "1.2.3s", "5 s", "5S", "1e3s", "9000h", "99999999999999999999h"] {
            assert!(duration(none).is_err(), "{none}");
        }
        assert!(some_time("0s").is_err() && some_time("0.0000000001s").is_err() && some_time("1us").is_ok());
    }
}
