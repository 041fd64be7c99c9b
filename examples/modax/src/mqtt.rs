//! `modax pub` and `modax sub`.

mod base64;
mod event;
mod publish;
mod subscribe;

use std::time::Duration;

use modax_mqtt_failover::{Client, ClientBuilder, ConfigError, Qos, Topology};
use serde_json::json;

pub(crate) use self::publish::publish;
pub(crate) use self::subscribe::subscribe;
use crate::args::BrokerArgs;
use crate::output::{self, chain};

/// How long the connection may take to say goodbye once nothing waits any more.
const GOODBYE: Duration = Duration::from_secs(2);

fn builder(args: &BrokerArgs) -> Result<ClientBuilder, ConfigError> {
    let topology = if args.cluster { Topology::Cluster } else { Topology::Independent };
    Ok(Client::builder(args.client_id.as_str()).brokers(&args.brokers)?.topology(topology))
}

/// Builds the client and starts to print its events; says on stderr what is wrong with the configuration.
fn start(builder: Result<ClientBuilder, ConfigError>) -> Option<Client> {
    match builder.and_then(ClientBuilder::build) {
        Ok(client) => {
            tokio::spawn(event::print(client.events()));
            Some(client)
        }
        Err(error) => {
            output::event("bad_usage", json!({ "error": chain(&error) }));
            None
        }
    }
}

fn qos(level: u8) -> Qos {
    if level == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce }
}

fn level(qos: Qos) -> u8 {
    match qos {
        Qos::AtMostOnce => 0,
        Qos::AtLeastOnce => 1,
        Qos::ExactlyOnce => 2,
    }
}
