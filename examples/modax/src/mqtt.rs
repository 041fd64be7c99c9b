//! `modax pub` and `modax sub`.

mod event;
pub(crate) mod limits;
mod line;
mod once;
mod outcome;
mod publish;
mod subscribe;

use std::time::Duration;

use modax_mqtt_failover::{
    Client, ClientBuilder, ConfigError, Qos, Scouting, Selection, Standby, Topology, Version, tls::Tls,
};
use serde_json::json;

pub(crate) use self::outcome::{put_payload, put_properties};
pub(crate) use self::publish::publish;
pub(crate) use self::subscribe::subscribe;
use crate::Exit;
use crate::args::{BrokerArgs, BrokerOrder, BrokerStandby};
use crate::output::{self, chain};

/// How long the connection may take to say goodbye once nothing waits any more.
const GOODBYE: Duration = Duration::from_secs(2);

fn builder(args: &BrokerArgs) -> Result<ClientBuilder, ConfigError> {
    let topology = if args.cluster { Topology::Cluster } else { Topology::Independent };
    let selection = match args.selection {
        BrokerOrder::Priority => Selection::priority(),
        BrokerOrder::RoundRobin => Selection::round_robin(),
    };
    let selection = match args.failback_after {
        Some(reachable) => selection.failback_after(reachable),
        None => selection,
    };
    let standby = match args.standby {
        BrokerStandby::None => Standby::None,
        BrokerStandby::Probe => Standby::Probe,
    };
    let scouting = if args.no_scouting { Scouting::none() } else { Scouting::probing() };
    let builder = Client::builder(args.client_id.as_str()).brokers(&args.brokers)?;
    let builder = if args.mqtt5 { builder.version(Version::V5) } else { builder };
    let builder = match tls(args) {
        Some(tls) => builder.tls(tls),
        None => builder,
    };
    Ok(builder.topology(topology).selection(selection).standby(standby).scouting(scouting))
}

/// What the flags ask for beyond the defaults; a certificate comes with its key, the flags see to that.
fn tls(args: &BrokerArgs) -> Option<Tls> {
    let identity = args.tls_cert.as_ref().zip(args.tls_key.as_ref());
    if args.tls_ca.is_none() && identity.is_none() && args.tls_server_name.is_none() {
        return None;
    }
    let mut tls = Tls::new();
    if let Some(file) = &args.tls_ca {
        tls = tls.ca_file(file);
    }
    if let Some((certificate, key)) = identity {
        tls = tls.client_files(certificate, key);
    }
    if let Some(name) = &args.tls_server_name {
        tls = tls.server_name(name);
    }
    Some(tls)
}

/// The flag that a contradiction comes from.
pub(crate) fn flag(error: &ConfigError) -> &'static str {
    match error {
        ConfigError::ClientId | ConfigError::OutOfRange { field: "client_id", .. } => "--client-id",
        ConfigError::OutOfRange { field, .. } if field.ends_with("failback_after") => "--failback-after",
        ConfigError::OutOfRange { field: "queue.fsync_every", .. } => "--fsync-every",
        ConfigError::OutOfRange { field: "queue.max_bytes", .. } => "--queue-max-bytes",
        ConfigError::OutOfRange { field: "queue.max_messages", .. } => "--queue-max-messages",
        ConfigError::Tls { .. } => "--tls-ca, --tls-cert, --tls-key, --tls-server-name",
        ConfigError::Queue { .. } => "--queue",
        ConfigError::NeedsVersion5 { field: "stamping" } => "--stamp without --mqtt5",
        _ => "--brokers",
    }
}

/// Builds the client; says on stderr what is wrong.
fn start(builder: Result<ClientBuilder, ConfigError>) -> Result<Client, Exit> {
    match builder.and_then(ClientBuilder::build) {
        Ok(client) => Ok(client),
        // A disk that refuses, or another process that has the queue, is no mistake in the command line.
        Err(error @ ConfigError::Queue { .. }) => {
            output::event("failed", json!({ "error": chain(&error) }));
            Err(Exit::Failed)
        }
        Err(error) => {
            output::bad_usage(flag(&error), &error);
            Err(Exit::Usage)
        }
    }
}

fn qos(level: u8) -> Qos {
    match level {
        0 => Qos::AtMostOnce,
        1 => Qos::AtLeastOnce,
        _ => Qos::ExactlyOnce,
    }
}

fn level(qos: Qos) -> u8 {
    match qos {
        Qos::AtMostOnce => 0,
        Qos::AtLeastOnce => 1,
        Qos::ExactlyOnce => 2,
    }
}
