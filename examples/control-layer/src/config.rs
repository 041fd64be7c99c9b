//! The environment: read once, checked whole, with secrets kept out of every output.
//!
//! A value that cannot work stops the start, because a control layer that runs with a setting nobody asked for is worse
//! than one that does not run. The message is one line that begins with the variable's name.

mod tls;

use std::{fmt, time::Duration};

use modax_mqtt_failover::{Topology, Version};
use reqwest::Url;

pub use self::tls::MqttTls;

/// A variable that stops the start.
#[derive(Debug, PartialEq, Eq)]
pub struct BadSetting {
    /// Which variable.
    pub name: &'static str,
    /// What is wrong with it; never its value where that may hold a secret.
    pub reason: String,
}

impl BadSetting {
    /// Blames `name`. The reason is kept to one line.
    pub fn new(name: &'static str, reason: impl fmt::Display) -> Self {
        Self { name, reason: reason.to_string().replace(['\n', '\r'], " ") }
    }
}

impl fmt::Display for BadSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

impl std::error::Error for BadSetting {}

/// Text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// Everything the environment says. `Debug` shows no secret.
#[derive(Clone)]
pub struct Config {
    /// `INSTANCE_ID`, or a random one.
    pub instance_id: String,
    /// Whether the identity was given. Without one the MQTT session is clean: nobody would come back for it.
    pub instance_is_named: bool,
    /// `MQTT_CLIENT_ID`; default `control-layer-` and the instance id.
    pub mqtt_client_id: String,
    /// `MQTT_BROKERS`, first preferred; default `mqtt://localhost:1883`. May hold passwords.
    pub mqtt_brokers: Vec<String>,
    /// `MQTT_CA_CERTS`, `MQTT_CERTFILE`, `MQTT_KEYFILE`, for brokers whose URL begins with `mqtts://`.
    pub mqtt_tls: MqttTls,
    /// `MQTT_TOPOLOGY`: `cluster` when the brokers share their sessions, so that a failover continues one; default `independent`.
    pub mqtt_topology: Topology,
    /// `MQTT_VERSION`: `3.1.1` or `5`; default what the URLs of the brokers say, and 3.1.1 if they say nothing.
    pub mqtt_version: Option<Version>,
    /// `MQTT_USERNAME` and `MQTT_PASSWORD`, for brokers whose URL has none.
    pub mqtt_credentials: Option<(String, Secret)>,
    /// `DATABASE_URL`. Required: there is no default that could be meant.
    pub database_url: Secret,
    /// `PATRONI_URLS`; default none.
    pub patroni_urls: Vec<String>,
    /// `AI_LAYER_URL`, without a slash at its end; default `http://localhost:8001`.
    pub ai_layer_url: String,
    /// `AI_ENABLED`; default true.
    pub ai_enabled: bool,
    /// `AI_LAYER_TIMEOUT`; default 5 s, half a window, so that answers never pile up.
    pub ai_layer_timeout: Duration,
    /// `AI_WINDOW`; default 10 s, 100 readings of a device at 10 Hz.
    pub ai_window: Duration,
    /// `API_HOST`; default `0.0.0.0`.
    pub api_host: String,
    /// `API_PORT`; default 8000, 0 takes any free one.
    pub api_port: u16,
    /// `API_KEY`, when `API_KEY_ENABLED`.
    pub api_key: Option<Secret>,
    /// `SAFETY_MAX_AGE`; default 5 s: a hundred missed reports at 20 Hz.
    pub safety_max_age: Duration,
    /// `COMMAND_TTL`; default 5 s: a command held through an outage must not act late.
    pub command_ttl: Duration,
    /// `COMMANDS_ALWAYS_ALLOWED`; default `stop,emergency_stop`: stopping is never refused.
    pub commands_always_allowed: Vec<String>,
    /// `DRAIN_TIME`; default 5 s: a load balancer that asks every 2 s has asked twice.
    pub drain_time: Duration,
    /// `RUST_LOG`; default `info`.
    pub log_filter: String,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("instance_id", &self.instance_id)
            .field("mqtt_client_id", &self.mqtt_client_id)
            .field("mqtt_brokers", &self.mqtt_brokers.iter().map(|url| without_credentials(url)).collect::<Vec<_>>())
            .field("mqtt_tls", &self.mqtt_tls)
            .field("mqtt_topology", &self.mqtt_topology)
            .field("mqtt_version", &self.mqtt_version)
            .field("mqtt_credentials", &self.mqtt_credentials.is_some())
            .field("database_url", &self.database_url)
            .field("patroni_urls", &self.patroni_urls.iter().map(|url| without_credentials(url)).collect::<Vec<_>>())
            .field("ai_layer_url", &without_credentials(&self.ai_layer_url))
            .field("ai_enabled", &self.ai_enabled)
            .field("ai_layer_timeout", &self.ai_layer_timeout)
            .field("ai_window", &self.ai_window)
            .field("api_host", &self.api_host)
            .field("api_port", &self.api_port)
            .field("api_key", &self.api_key)
            .field("safety_max_age", &self.safety_max_age)
            .field("command_ttl", &self.command_ttl)
            .field("commands_always_allowed", &self.commands_always_allowed)
            .field("drain_time", &self.drain_time)
            .field("log_filter", &self.log_filter)
            .finish_non_exhaustive()
    }
}

/// A URL as it may stand in a log.
pub fn without_credentials(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, host)| host)),
        None => "<not a URL>".to_owned(),
    }
}

impl Config {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// The first variable that cannot work.
    pub fn from_env() -> Result<Self, BadSetting> {
        Self::read(&|name| match std::env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err("is not UTF-8"),
        })
    }

    /// Reads variables from `lookup`. An empty one counts as not set, as compose files leave them.
    ///
    /// # Errors
    /// The first variable that cannot work.
    pub fn read(lookup: &dyn Fn(&str) -> Result<Option<String>, &'static str>) -> Result<Self, BadSetting> {
        let env = Env { lookup };
        let named = env.text("INSTANCE_ID")?;
        let instance_id = named.clone().unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string());
        check_name("INSTANCE_ID", &instance_id)?;
        let mqtt_client_id = env.text("MQTT_CLIENT_ID")?.unwrap_or_else(|| format!("control-layer-{instance_id}"));
        check_name("MQTT_CLIENT_ID", &mqtt_client_id)?;
        let mqtt_tls = env.mqtt_tls()?;
        Ok(Self {
            instance_is_named: named.is_some(),
            mqtt_brokers: env.brokers(&mqtt_tls)?,
            mqtt_tls,
            mqtt_topology: env.topology()?,
            mqtt_version: env.version()?,
            mqtt_credentials: env.credentials()?,
            database_url: env.text("DATABASE_URL")?.map(Secret).ok_or_else(|| {
                BadSetting::new("DATABASE_URL", "is required, for example postgresql://modax@db1,db2,db3/modax")
            })?,
            patroni_urls: env.list("PATRONI_URLS")?.unwrap_or_default(),
            ai_layer_url: env.http_url("AI_LAYER_URL")?.unwrap_or_else(|| "http://localhost:8001".to_owned()),
            ai_enabled: env.boolean("AI_ENABLED")?.unwrap_or(true),
            ai_layer_timeout: env.duration("AI_LAYER_TIMEOUT", 0.001, 300.0)?.unwrap_or(Duration::from_secs(5)),
            ai_window: env.duration("AI_WINDOW", 0.1, 3600.0)?.unwrap_or(Duration::from_secs(10)),
            api_host: env.text("API_HOST")?.unwrap_or_else(|| "0.0.0.0".to_owned()),
            api_port: env.port("API_PORT", 0)?.unwrap_or(8000),
            api_key: env.api_key()?,
            safety_max_age: env.duration("SAFETY_MAX_AGE", 0.001, 3600.0)?.unwrap_or(Duration::from_secs(5)),
            command_ttl: env.duration("COMMAND_TTL", 0.001, 3600.0)?.unwrap_or(Duration::from_secs(5)),
            commands_always_allowed: env
                .list("COMMANDS_ALWAYS_ALLOWED")?
                .unwrap_or_else(|| vec!["stop".to_owned(), "emergency_stop".to_owned()]),
            drain_time: env.duration("DRAIN_TIME", 0.0, 120.0)?.unwrap_or(Duration::from_secs(5)),
            log_filter: env.log_filter()?,
            instance_id,
            mqtt_client_id,
        })
    }
}

/// Identities travel in MQTT client ids, SQL and logs: a plain alphabet keeps all three out of trouble.
fn check_name(name: &'static str, value: &str) -> Result<(), BadSetting> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    if value.len() <= 128 && value.chars().all(plain) {
        return Ok(());
    }
    Err(BadSetting::new(name, "at most 128 letters, digits, and - _ . :"))
}

struct Env<'a> {
    lookup: &'a dyn Fn(&str) -> Result<Option<String>, &'static str>,
}

impl Env<'_> {
    fn text(&self, name: &'static str) -> Result<Option<String>, BadSetting> {
        let value = (self.lookup)(name).map_err(|reason| BadSetting::new(name, reason))?;
        Ok(value.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()))
    }

    fn list(&self, name: &'static str) -> Result<Option<Vec<String>>, BadSetting> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let items: Vec<String> = text.split(',').map(|item| item.trim().to_owned()).collect();
        if items.iter().any(String::is_empty) {
            return Err(BadSetting::new(name, "an item of the list is empty"));
        }
        Ok(Some(items))
    }

    fn topology(&self) -> Result<Topology, BadSetting> {
        match self.text("MQTT_TOPOLOGY")?.as_deref() {
            None | Some("independent") => Ok(Topology::Independent),
            Some("cluster") => Ok(Topology::Cluster),
            Some(other) => {
                Err(BadSetting::new("MQTT_TOPOLOGY", format!("{other:?} is neither independent nor cluster")))
            }
        }
    }

    fn version(&self) -> Result<Option<Version>, BadSetting> {
        match self.text("MQTT_VERSION")?.as_deref() {
            None => Ok(None),
            Some("3.1.1") => Ok(Some(Version::V311)),
            Some("5") => Ok(Some(Version::V5)),
            Some(other) => Err(BadSetting::new("MQTT_VERSION", format!("{other:?} is neither 3.1.1 nor 5"))),
        }
    }

    fn boolean(&self, name: &'static str) -> Result<Option<bool>, BadSetting> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(Some(true)),
            "false" | "0" | "no" | "off" => Ok(Some(false)),
            _ => Err(BadSetting::new(name, format!("{text:?} is neither true nor false"))),
        }
    }

    fn port(&self, name: &'static str, least: u16) -> Result<Option<u16>, BadSetting> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let port = text.parse::<u16>().ok().filter(|port| *port >= least);
        port.map(Some).ok_or_else(|| BadSetting::new(name, format!("{text:?} is not a port ({least} to 65535)")))
    }

    /// Seconds as a decimal number, with or without `s`, or milliseconds with `ms`; both ends included.
    fn duration(&self, name: &'static str, least: f64, most: f64) -> Result<Option<Duration>, BadSetting> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let (number, unit) = match text.strip_suffix("ms") {
            Some(number) => (number, 0.001),
            None => (text.strip_suffix('s').unwrap_or(&text), 1.0),
        };
        let seconds = number.trim().parse::<f64>().ok().map(|n| n * unit).filter(|s| (least..=most).contains(s));
        seconds
            .and_then(|s| Duration::try_from_secs_f64(s).ok())
            .map(Some)
            .ok_or_else(|| BadSetting::new(name, format!("{text:?} is not a time of {least} to {most} seconds")))
    }

    fn http_url(&self, name: &'static str) -> Result<Option<String>, BadSetting> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let url = Url::parse(&text).map_err(|error| BadSetting::new(name, format!("not a URL: {error}")))?;
        if url.scheme() != "http" || url.host_str().is_none() {
            return Err(BadSetting::new(name, "must be http://host[:port]"));
        }
        Ok(Some(text.trim_end_matches('/').to_owned()))
    }

    fn brokers(&self, tls: &MqttTls) -> Result<Vec<String>, BadSetting> {
        // Checked also where a list wins over them: a value that cannot work is never passed over.
        let host = self.text("MQTT_BROKER_HOST")?.unwrap_or_else(|| "localhost".to_owned());
        if host.contains(['/', '@', ' ']) {
            return Err(BadSetting::new("MQTT_BROKER_HOST", "must be a host name or address"));
        }
        // Whoever names certificates for a broker without a scheme means TLS to it.
        let (scheme, usual) = if tls.is_given() { ("mqtts", 8883) } else { ("mqtt", 1883) };
        let port = self.port("MQTT_BROKER_PORT", 1)?.unwrap_or(usual);
        let brokers = self.list("MQTT_BROKERS")?.unwrap_or_else(|| vec![format!("{scheme}://{host}:{port}")]);
        if tls.is_given() && !brokers.iter().any(|url| url.starts_with("mqtts://")) {
            return Err(BadSetting::new(tls.variable(), "no URL of MQTT_BROKERS begins with mqtts://"));
        }
        Ok(brokers)
    }

    fn credentials(&self) -> Result<Option<(String, Secret)>, BadSetting> {
        match (self.text("MQTT_USERNAME")?, self.text("MQTT_PASSWORD")?) {
            (Some(user), password) => Ok(Some((user, Secret(password.unwrap_or_default())))),
            (None, None) => Ok(None),
            // MQTT 3.1.1, 3.1.2.9: a password without a user name is malformed.
            (None, Some(_)) => Err(BadSetting::new("MQTT_PASSWORD", "needs MQTT_USERNAME")),
        }
    }

    fn api_key(&self) -> Result<Option<Secret>, BadSetting> {
        let key = self.text("API_KEY")?;
        if !self.boolean("API_KEY_ENABLED")?.unwrap_or(false) {
            return Ok(None);
        }
        key.map(|key| Some(Secret(key))).ok_or_else(|| BadSetting::new("API_KEY", "is required by API_KEY_ENABLED"))
    }

    fn log_filter(&self) -> Result<String, BadSetting> {
        let filter = self.text("RUST_LOG")?.unwrap_or_else(|| "info".to_owned());
        filter
            .parse::<tracing_subscriber::EnvFilter>()
            .map_err(|error| BadSetting::new("RUST_LOG", format!("not a filter: {error}")))?;
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::{BadSetting, Config, Version};

    const DATABASE: (&str, &str) = ("DATABASE_URL", "postgresql://modax:geheim@db1,db2/modax");

    fn read(pairs: &[(&str, &str)]) -> Result<Config, BadSetting> {
        let variables: BTreeMap<&str, &str> = std::iter::once(&DATABASE).chain(pairs).copied().collect();
        Config::read(&|name| Ok(variables.get(name).map(|value| (*value).to_owned())))
    }

    #[test]
    fn an_empty_environment_but_for_the_database_gives_the_documented_defaults() {
        let config = read(&[]).expect("defaults work");

        assert!(!config.instance_is_named);
        assert_eq!(config.mqtt_client_id, format!("control-layer-{}", config.instance_id));
        assert_eq!(config.mqtt_brokers, ["mqtt://localhost:1883"]);
        assert_eq!((config.api_host.as_str(), config.api_port), ("0.0.0.0", 8000));
        assert_eq!((config.safety_max_age, config.command_ttl), (Duration::from_secs(5), Duration::from_secs(5)));
        assert_eq!(config.commands_always_allowed, ["stop", "emergency_stop"]);
        assert!(config.ai_enabled && config.api_key.is_none());
    }

    #[test]
    fn two_instances_without_a_name_never_share_a_client_id() {
        assert_ne!(read(&[]).expect("one").mqtt_client_id, read(&[]).expect("two").mqtt_client_id);
    }

    #[test]
    fn every_bad_value_is_refused_by_its_name() {
        let bad: &[(&str, &str)] = &[
            ("INSTANCE_ID", "a b"),
            ("MQTT_CLIENT_ID", "x/y"),
            ("MQTT_BROKERS", "mqtt://a,,mqtt://b"),
            ("MQTT_BROKER_HOST", "mqtt://a"),
            ("MQTT_BROKER_PORT", "0"),
            ("MQTT_TOPOLOGY", "ring"),
            ("MQTT_VERSION", "4"),
            ("MQTT_PASSWORD", "x"),
            ("MQTT_CA_CERTS", "/nonexistent/ca.pem"),
            ("MQTT_CERTFILE", "Cargo.toml"),
            ("MQTT_KEYFILE", "Cargo.toml"),
            ("PATRONI_URLS", ","),
            ("AI_LAYER_URL", "https://ai"),
            ("AI_LAYER_URL", "ai:8001"),
            ("AI_ENABLED", "perhaps"),
            ("AI_LAYER_TIMEOUT", "0"),
            ("AI_LAYER_TIMEOUT", "NaN"),
            ("API_PORT", "65536"),
            ("API_PORT", "http"),
            ("API_KEY_ENABLED", "2"),
            ("SAFETY_MAX_AGE", "-1"),
            ("SAFETY_MAX_AGE", "5 minutes"),
            ("COMMAND_TTL", "1e9"),
            ("COMMANDS_ALWAYS_ALLOWED", "stop,,"),
            ("RUST_LOG", "control=loud=5"),
        ];
        for (name, value) in bad {
            let error = read(&[(name, value)]).expect_err(&format!("{name}={value}"));
            assert_eq!(error.name, *name, "{name}={value}: {error}");
            assert!(!error.to_string().contains('\n'));
        }
        let missing = Config::read(&|_| Ok(None)).expect_err("no database");
        assert_eq!(missing.name, "DATABASE_URL");
        assert_eq!(read(&[("API_KEY_ENABLED", "true")]).expect_err("no key").name, "API_KEY");
    }

    #[test]
    fn times_are_seconds_with_or_without_a_unit_or_milliseconds() {
        for (text, expected) in [("2", 2000), ("2.5", 2500), ("2s", 2000), ("750ms", 750)] {
            let config = read(&[("COMMAND_TTL", text)]).expect(text);
            assert_eq!(config.command_ttl, Duration::from_millis(expected), "{text}");
        }
    }

    #[test]
    fn one_broker_may_be_given_as_host_and_port_and_a_list_wins_over_it() {
        let one = read(&[("MQTT_BROKER_HOST", "plant"), ("MQTT_BROKER_PORT", "1884")]).expect("one");
        assert_eq!(one.mqtt_brokers, ["mqtt://plant:1884"]);

        let list = read(&[("MQTT_BROKER_HOST", "plant"), ("MQTT_BROKERS", "mqtt://a, mqtt://b:1884")]).expect("list");
        assert_eq!(list.mqtt_brokers, ["mqtt://a", "mqtt://b:1884"]);
        for (name, value) in [("MQTT_BROKER_PORT", "none"), ("MQTT_BROKER_HOST", "mqtt://a")] {
            let error = read(&[(name, value), ("MQTT_BROKERS", "mqtt://a")]).expect_err("never passed over");
            assert_eq!(error.name, name);
        }
    }

    #[test]
    fn certificates_mean_tls_to_a_broker_named_by_its_host() {
        let one = read(&[("MQTT_BROKER_HOST", "plant"), ("MQTT_CA_CERTS", "Cargo.toml")]).expect("one");
        assert_eq!(one.mqtt_brokers, ["mqtts://plant:8883"]);
        let error = read(&[("MQTT_BROKERS", "mqtt://a"), ("MQTT_CA_CERTS", "Cargo.toml")]).expect_err("plain");
        assert_eq!(error.name, "MQTT_CA_CERTS");
    }

    #[test]
    fn the_version_of_mqtt_is_left_to_the_brokers_urls_unless_it_is_said() {
        for (text, expected) in [("", None), ("3.1.1", Some(Version::V311)), ("5", Some(Version::V5))] {
            assert_eq!(read(&[("MQTT_VERSION", text)]).expect(text).mqtt_version, expected);
        }
        let urls = read(&[("MQTT_BROKERS", "mqtt://a?version=5,mqtt://b?version=5")]).expect("a query").mqtt_brokers;
        assert_eq!(urls, ["mqtt://a?version=5", "mqtt://b?version=5"]);
    }

    #[test]
    fn no_secret_is_ever_shown() {
        let config = read(&[
            ("MQTT_BROKERS", "mqtt://u:geheim@a"),
            ("MQTT_USERNAME", "u"),
            ("MQTT_PASSWORD", "geheim"),
            ("API_KEY_ENABLED", "1"),
            ("API_KEY", "geheim"),
        ])
        .expect("valid");

        assert!(!format!("{config:?}").contains("geheim"), "{config:?}");
    }
}
