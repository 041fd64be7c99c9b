//! The environment: read once, checked whole.

use std::{fmt, time::Duration};

/// A variable that stops the start.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadSetting {
    name: &'static str,
    reason: String,
}

impl BadSetting {
    /// Blames `name`. The reason is kept to one line.
    pub(crate) fn new(name: &'static str, reason: impl fmt::Display) -> Self {
        Self { name, reason: reason.to_string().replace(['\n', '\r'], " ") }
    }
}

impl fmt::Display for BadSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

/// Everything the environment says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// `INSTANCE_ID`, or a random one.
    pub(crate) instance_id: String,
    /// `API_HOST`; default `0.0.0.0`: behind a load balancer on another machine.
    pub(crate) api_host: String,
    /// `API_PORT`; default 8001, 0 takes any free one.
    pub(crate) api_port: u16,
    /// `DRAIN_TIME` in seconds; default 5: a load balancer that asks every 2 s has asked twice.
    pub(crate) drain_time: Duration,
    /// `RUST_LOG`; default `info`.
    pub(crate) log_filter: String,
}

impl Config {
    /// Reads the process's environment.
    pub(crate) fn from_env() -> Result<Self, BadSetting> {
        Self::read(|name| match std::env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err(BadSetting::new(name, "is not UTF-8")),
        })
    }

    /// Reads variables from `lookup`. An empty one counts as not set, as compose files leave them.
    fn read(lookup: impl Fn(&'static str) -> Result<Option<String>, BadSetting>) -> Result<Self, BadSetting> {
        let text = |name| lookup(name).map(|value| value.filter(|value| !value.is_empty()));
        let instance_id = match text("INSTANCE_ID")? {
            Some(id) if id.len() > 64 || id.chars().any(|c| c.is_control() || c.is_whitespace()) => {
                return Err(BadSetting::new("INSTANCE_ID", "must be at most 64 characters without spaces"));
            }
            Some(id) => id,
            None => uuid::Uuid::new_v4().simple().to_string(),
        };
        let api_port = match text("API_PORT")? {
            Some(port) => port.parse().map_err(|_| BadSetting::new("API_PORT", format!("{port:?} is no port")))?,
            None => 8001,
        };
        let drain_time = match text("DRAIN_TIME")? {
            Some(seconds) => match seconds.parse::<f64>().map(Duration::try_from_secs_f64) {
                Ok(Ok(time)) if time <= Duration::from_secs(300) => time,
                _ => return Err(BadSetting::new("DRAIN_TIME", format!("{seconds:?} is not 0 to 300 seconds"))),
            },
            None => Duration::from_secs(5),
        };
        Ok(Self {
            instance_id,
            api_host: text("API_HOST")?.unwrap_or_else(|| "0.0.0.0".to_owned()),
            api_port,
            drain_time,
            log_filter: text("RUST_LOG")?.unwrap_or_else(|| "info".to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Config;
    use std::time::Duration;

    fn read(given: &[(&str, &str)]) -> Result<Config, String> {
        Config::read(|name| Ok(given.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_environment_is_enough() {
        let config = read(&[("API_HOST", "")]).unwrap();

        assert_eq!((config.api_host.as_str(), config.api_port), ("0.0.0.0", 8001));
        assert_eq!(config.drain_time, Duration::from_secs(5));
        assert_ne!(config.instance_id, read(&[]).unwrap().instance_id, "a random identity each time");
    }

    #[test]
    fn a_bad_value_is_named() {
        for (name, value) in [
            ("API_PORT", "eight"),
            ("API_PORT", "65536"),
            ("API_PORT", "-1"),
            ("DRAIN_TIME", "soon"),
            ("DRAIN_TIME", "-1"),
            ("DRAIN_TIME", "NaN"),
            ("DRAIN_TIME", "301"),
            ("INSTANCE_ID", "a b"),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert!(error.starts_with(&format!("{name}: ")) && !error.contains('\n'), "{error}");
        }
    }
}
