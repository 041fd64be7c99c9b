//! stub
use crate::config::ConfigError;
use std::time::Duration;
/// Config.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct LivenessConfig {
    probe_interval: Duration,
}
impl Default for LivenessConfig {
    fn default() -> Self {
        Self { probe_interval: Duration::from_secs(1) }
    }
}
impl LivenessConfig {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let _ = self.probe_interval;
        Ok(())
    }
}
