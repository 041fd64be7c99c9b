//! TLS to the brokers, as the environment says it.

use modax_mqtt_failover::tls::Tls;

use super::{BadSetting, Env};

/// The files TLS to the brokers needs; they are read when the client is made and again at each dial.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MqttTls {
    /// `MQTT_CA_CERTS`: the authorities trusted, PEM; default the system's.
    pub authorities: Option<String>,
    /// `MQTT_CERTFILE` and `MQTT_KEYFILE`: who we are, PEM; default none.
    pub identity: Option<(String, String)>,
}

impl MqttTls {
    /// Whether there is anything to say about it.
    pub const fn is_given(&self) -> bool {
        self.authorities.is_some() || self.identity.is_some()
    }

    /// The variable to name when a file does not serve.
    pub const fn variable(&self) -> &'static str {
        if self.authorities.is_some() { "MQTT_CA_CERTS" } else { "MQTT_CERTFILE" }
    }

    /// For the client.
    pub fn to_tls(&self) -> Tls {
        let mut tls = Tls::new();
        if let Some(file) = &self.authorities {
            tls = tls.ca_file(file);
        }
        if let Some((certificate, key)) = &self.identity {
            tls = tls.client_files(certificate, key);
        }
        tls
    }
}

impl Env<'_> {
    pub(super) fn mqtt_tls(&self) -> Result<MqttTls, BadSetting> {
        let identity = match (self.file("MQTT_CERTFILE")?, self.file("MQTT_KEYFILE")?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => return Err(BadSetting::new("MQTT_CERTFILE", "needs MQTT_KEYFILE")),
            (None, Some(_)) => return Err(BadSetting::new("MQTT_KEYFILE", "needs MQTT_CERTFILE")),
        };
        Ok(MqttTls { authorities: self.file("MQTT_CA_CERTS")?, identity })
    }

    /// The name of a file that can be read now: a typing error stops the start, by its variable.
    fn file(&self, name: &'static str) -> Result<Option<String>, BadSetting> {
        let Some(path) = self.text(name)? else { return Ok(None) };
        std::fs::read(&path).map_err(|error| BadSetting::new(name, format!("{path}: {error}")))?;
        Ok(Some(path))
    }
}
