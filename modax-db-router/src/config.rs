//! Settings of a router, and the connection URL.

use std::time::Duration;

use crate::error::ConfigError;
use crate::policy::selection::Selection;
use crate::topology::NodeId;

/// Longest time that a setting or a call may name: beyond it a clock could overflow, and nobody means it.
pub(crate) const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Settings of a router; each has a default with its reason.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Longest wait for a primary, a connection and all attempts of one write together. Default 30 s: the time
    /// within which a cluster with the usual lease of 20 to 30 s has a new primary.
    pub acquire_deadline: Duration,
    /// Longest wait for the answer to `COMMIT`, and then for its outcome to be settled. Default 10 s: a synchronous
    /// standby that needs longer is as good as gone.
    pub commit_deadline: Duration,
    /// Longest time one read may take, with all its attempts. Default 10 s.
    pub read_deadline: Duration,
    /// Pause between two probes of one server while all is well. Default 1 s: one small query a second and server.
    pub probe_interval: Duration,
    /// Pause between two probes while the primary is in doubt. Default 10 ms: it is what a failover is prolonged by.
    pub doubt_interval: Duration,
    /// Longest time for one probe: dial, login and query together. Default 500 ms: far above what a busy server in
    /// reach needs, and short enough that a frozen one is found out within two seconds.
    pub probe_deadline: Duration,
    /// Failed probes in a row after which a server counts as lost. Default 2: one slow answer is no outage.
    pub fall: u32,
    /// Connections kept for each server, at most. Default 16: beyond a few per core they only queue in the server.
    pub pool_size: usize,
    /// Calls that may wait for a primary at once; more are refused. Default 10,000: some tens of megabytes.
    pub hold_limit: usize,
    /// How a replica is chosen among equals. Default: the less busy of two, which keeps a slow one from filling up.
    pub selection: Selection,
    /// Longest time the server lets a transaction stand open with nothing to do (`idle_in_transaction_session_timeout`);
    /// then it ends the session, and its locks are free. Default `None`: as long as `acquire_deadline`, after which a
    /// write is given up here as well. Without it a process that is frozen in the middle of a write blocks everybody
    /// who wants the same rows, for ever. Zero leaves it to the server. Raise it for writers with a longer deadline
    /// whose work pauses between statements.
    pub idle_in_transaction_timeout: Option<Duration>,
    /// How often the server looks whether we are still there while it works for us (`client_connection_check_interval`).
    /// Default 2 s: a statement that waits for a lock ends soon after its caller has given up, and retries do not use up
    /// the server's connections. A `COMMIT` that waits for its standby is not touched by it. Zero leaves it to the
    /// server; needed where a server cannot do it (on Windows) and therefore refuses the login.
    pub client_check_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            acquire_deadline: Duration::from_secs(30),
            commit_deadline: Duration::from_secs(10),
            read_deadline: Duration::from_secs(10),
            probe_interval: Duration::from_secs(1),
            doubt_interval: Duration::from_millis(10),
            probe_deadline: Duration::from_millis(500),
            fall: 2,
            pool_size: 16,
            hold_limit: 10_000,
            selection: Selection::default(),
            idle_in_transaction_timeout: None,
            client_check_interval: Duration::from_secs(2),
        }
    }
}

impl Config {
    /// Finds settings that cannot work.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let zero = |setting| ConfigError::Setting { setting, reason: "must be more than zero" };
        for (setting, value) in [
            ("acquire_deadline", self.acquire_deadline),
            ("commit_deadline", self.commit_deadline),
            ("read_deadline", self.read_deadline),
            ("probe_interval", self.probe_interval),
            ("doubt_interval", self.doubt_interval),
            ("probe_deadline", self.probe_deadline),
        ] {
            if value.is_zero() {
                return Err(zero(setting));
            }
            if value > LONGEST {
                return Err(ConfigError::Setting { setting, reason: "must be 366 days at most" });
            }
        }
        if self.fall == 0 {
            return Err(zero("fall"));
        }
        if self.pool_size == 0 {
            return Err(zero("pool_size"));
        }
        if self.hold_limit == 0 {
            return Err(zero("hold_limit"));
        }
        Ok(())
    }

    /// Adds what every session begins with to the options of a login. In front, because of two the server takes the last:
    /// what the URL says wins. As options of the login and not by `SET`, because a reset goes back to them.
    pub(crate) fn begin_sessions(&self, login: &mut tokio_postgres::Config) {
        let idle = self.idle_in_transaction_timeout.unwrap_or(self.acquire_deadline);
        let settings = [
            ("idle_in_transaction_session_timeout", idle),
            ("client_connection_check_interval", self.client_check_interval),
        ];
        let ours = settings.into_iter().filter(|(_, value)| !value.is_zero()).map(|(name, value)| {
            // Both are milliseconds in an `int` of the server, and 0 would turn them off.
            let millis = value.as_nanos().div_ceil(1_000_000).min(i32::MAX.unsigned_abs().into());
            format!("-c {name}={millis}")
        });
        let all: Vec<String> = ours.chain(login.get_options().map(str::to_owned)).collect();
        if !all.is_empty() {
            login.options(all.join(" "));
        }
    }
}

/// One server and how to log in there.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) id: NodeId,
    pub(crate) login: tokio_postgres::Config,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The login holds the password.
        f.debug_struct("Target").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Reads a libpq connection string, URL or key words, into one target a host.
///
/// `target_session_attrs` and `load_balance_hosts` are accepted and without effect: roles are this crate's work.
pub(crate) fn targets(url: &str) -> Result<Vec<Target>, ConfigError> {
    let mode = parameter(url, "sslmode");
    if let Some(mode) = mode
        && !matches!(mode, "disable" | "allow" | "prefer")
    {
        return Err(ConfigError::TlsUnsupported { mode: mode.to_owned() });
    }
    // tokio-postgres does not know `allow`; without TLS it means the same as `prefer`.
    let readable = url.replace("sslmode=allow", "sslmode=prefer");
    let login: tokio_postgres::Config = readable.parse().map_err(|error| unreadable(url, &error))?;
    let hosts = login.get_hosts();
    let ports = login.get_ports();
    if hosts.is_empty() {
        return Err(ConfigError::NoHost);
    }
    if ports.len() > 1 && ports.len() != hosts.len() {
        return Err(ConfigError::PortCount { hosts: hosts.len(), ports: ports.len() });
    }
    let mut targets: Vec<Target> = Vec::with_capacity(hosts.len());
    for (index, host) in hosts.iter().enumerate() {
        let port = ports.get(index).or_else(|| ports.first()).copied().unwrap_or(5432);
        if port == 0 {
            return Err(ConfigError::Url { reason: "port 0 is none".to_owned() });
        }
        let (name, local) = match (host, login.get_hostaddrs().get(index)) {
            // The address is what is dialled; the name is only what it is called.
            (tokio_postgres::config::Host::Tcp(name), Some(address)) => (name.clone(), address.is_loopback()),
            (tokio_postgres::config::Host::Tcp(name), None) => (name.clone(), is_loopback(name)),
            #[cfg(unix)]
            (tokio_postgres::config::Host::Unix(path), _) => (path.display().to_string(), true),
        };
        let id = NodeId::new(&name, port);
        if !local && mode != Some("disable") {
            return Err(ConfigError::PlaintextOffLoopback { node: id });
        }
        if targets.iter().any(|target| target.id == id) {
            return Err(ConfigError::Duplicate { node: id });
        }
        targets.push(Target { id, login: one_host(&login, index, host, port) });
    }
    Ok(targets)
}

/// Neither form of a connection string is recognised by what it holds, but by how it begins.
fn unreadable(url: &str, error: &tokio_postgres::Error) -> ConfigError {
    let reason = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    let is_url = ["postgresql://", "postgres://"].iter().any(|scheme| url.starts_with(scheme));
    // What stands before the first `=` is repeated by the driver: in a URL with a slip in it that is the password too.
    let is_key = |key: &str| !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    if is_url || url.split_once('=').is_some_and(|(key, _)| is_key(key.trim())) {
        return ConfigError::Url { reason };
    }
    ConfigError::Url { reason: "neither postgresql://user@host:port/database nor key=value pairs".to_owned() }
}

/// The same login for one host alone: tokio-postgres would otherwise try them one after the other.
fn one_host(
    all: &tokio_postgres::Config,
    index: usize,
    host: &tokio_postgres::config::Host,
    port: u16,
) -> tokio_postgres::Config {
    let mut one = tokio_postgres::Config::new();
    match host {
        tokio_postgres::config::Host::Tcp(name) => one.host(name),
        #[cfg(unix)]
        tokio_postgres::config::Host::Unix(path) => one.host_path(path),
    };
    if let Some(address) = all.get_hostaddrs().get(index) {
        one.hostaddr(*address);
    }
    one.port(port);
    if let Some(user) = all.get_user() {
        one.user(user);
    }
    if let Some(password) = all.get_password() {
        one.password(password);
    }
    if let Some(name) = all.get_dbname() {
        one.dbname(name);
    }
    if let Some(options) = all.get_options() {
        one.options(options);
    }
    one.application_name(all.get_application_name().unwrap_or("modax-db-router"));
    one.keepalives(all.get_keepalives());
    one.keepalives_idle(all.get_keepalives_idle());
    if let Some(interval) = all.get_keepalives_interval() {
        one.keepalives_interval(interval);
    }
    if let Some(retries) = all.get_keepalives_retries() {
        one.keepalives_retries(retries);
    }
    if let Some(timeout) = all.get_tcp_user_timeout() {
        one.tcp_user_timeout(*timeout);
    }
    if let Some(timeout) = all.get_connect_timeout() {
        one.connect_timeout(*timeout);
    }
    one.channel_binding(all.get_channel_binding());
    one.ssl_mode(tokio_postgres::config::SslMode::Disable);
    one
}

/// The value of a parameter in either form of a connection string, without quotes.
fn parameter<'a>(url: &'a str, name: &str) -> Option<&'a str> {
    url.split(['?', '&', ' ', '\t', '\n']).find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key.trim() == name).then(|| value.trim().trim_matches('\''))
    })
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}
