//! Real brokers, killed, stopped, cut off and starved under load; an oracle on each broker, outside the code under
//! test, counts what was lost, repeated and out of order. A machine without mosquitto or NATS fails: it does not skip.
//!
//! `make test` has at most three faults each, `make drill-mqtt` the full counts: the numbers come from the environment
//! (`drill/scale.rs`), the code is the same.

#[path = "drill/beats.rs"]
mod beats;
#[path = "drill/brokers.rs"]
mod brokers;
#[path = "drill/cluster.rs"]
mod cluster;
#[path = "drill/cluster_faults.rs"]
mod cluster_faults;
#[path = "drill/cut.rs"]
mod cut;
#[path = "drill/flapping.rs"]
mod flapping;
#[path = "drill/herd.rs"]
mod herd;
#[path = "drill/latency.rs"]
mod latency;
#[path = "drill/left_open.rs"]
mod left_open;
#[path = "drill/load.rs"]
mod load;
#[path = "drill/loss.rs"]
mod loss;
#[path = "drill/oracle.rs"]
mod oracle;
#[path = "drill/poison.rs"]
mod poison;
#[path = "drill/reader.rs"]
mod reader;
#[path = "drill/scale.rs"]
mod scale;
#[path = "drill/sessions.rs"]
mod sessions;
#[path = "drill/starved.rs"]
mod starved;
#[cfg(feature = "ring")]
#[path = "drill/tls.rs"]
mod tls;
#[path = "drill/twins.rs"]
mod twins;
#[path = "drill/verdict.rs"]
mod verdict;
#[path = "drill/version5.rs"]
mod version5;
#[path = "drill/wills.rs"]
mod wills;

use std::time::Duration;

use modax_mqtt_failover::{Client, LivenessConfig};
use modax_testbed::wait;

/// For what takes a moment on an idle machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// Messages a second on brokers that stand alone.
const RATE: u32 = 1000;

/// Where silence is not what is judged: a broker that gets no processor for a moment is not left for it. One that closes the
/// connection is left at once all the same.
fn patient() -> LivenessConfig {
    let long = Duration::from_secs(5);
    LivenessConfig::default().floor(long).first(long).slow_after(DEADLINE)
}

async fn serving(client: &Client) -> u16 {
    wait::until(DEADLINE, "a connection", || async { client.status().connected.map(|broker| broker.port()) })
        .await
        .expect("a connection")
}

/// Until a broker other than that on `port` serves.
async fn another(client: &Client, port: u16) {
    let other = || async { client.status().connected.is_some_and(|now| now.port() != port) };
    wait::until(DEADLINE, "another broker", other).await.expect("it stays where it was");
}

async fn acked_more(client: &Client, messages: u64) {
    let before = client.stats().acked;
    let more = || async { client.stats().acked >= before + messages };
    wait::until(DEADLINE, "acknowledgements", more).await.expect("no acknowledgements");
}
