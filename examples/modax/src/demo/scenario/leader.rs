//! The broker that leads the message stream is cut off: the cluster's own election counts first. What is asked here
//! is only how much our client adds to it.

use std::time::{Duration, Instant};

use modax_testbed::wait;
use tokio::time::sleep;

use super::brokers::SIGNS;
use super::{Found, Stage, first_event, recovery};
use crate::demo::cluster::Failure;
use crate::demo::direct::{Direct, Witness};
use crate::demo::probe::Prober;

/// An election of NATS takes 6 to 8 s; on a busy machine more.
const PATIENCE: Duration = Duration::from_secs(45);
/// What the client may add to the first acknowledgement a direct prober gets.
const ADDED: Duration = Duration::from_millis(250);

pub(super) async fn cut_off(stage: &Stage) -> Result<Found, Failure> {
    let nats = &stage.cluster.nats;
    let leader =
        wait::until(Duration::from_secs(20), "a leader of the message stream", || nats.stream_leader("$MQTT_msgs"))
            .await?;
    let node = &nats.nodes()[leader];
    let mut urls = nats.urls();
    urls.rotate_left(leader);
    let witness = Witness::start(&urls)?;
    let others: Vec<_> = nats.nodes().iter().map(modax_testbed::servers::nats::NatsNode::addr).collect();
    let direct = Direct::start(others.iter().enumerate().filter(|(index, _)| *index != leader).map(|(_, addr)| addr));
    let begun = Instant::now();
    wait::until(Duration::from_secs(20), "the witness and the direct prober", || async {
        witness.first(begun).is_some() && direct.first(begun).is_some()
    })
    .await?;
    let is_on_it = witness.broker() == Some(node.addr().to_string());
    let logs = stage.control_logs(SIGNS);

    let start = Instant::now();
    node.stop();

    let prober = Prober::start(stage.fresh_readings());
    let recovered = recovery(&prober, start, PATIENCE).await;
    let detected = first_event(&logs, start);
    let both = wait::until(Duration::from_secs(15), "both to be acknowledged again", || async {
        Some((witness.first(start)?, direct.first(start)?))
    })
    .await;
    node.cont();

    let (mut broken, mut story) = (Vec::new(), Vec::new());
    if !is_on_it {
        broken.push("the witness was not connected to the broker that was cut off".to_owned());
    }
    match both {
        Ok((ours, bare)) => {
            let added = ours.saturating_duration_since(bare);
            story.push(format!(
                "The broker cluster itself could store nothing for {:.2} s: it elects a new leader. Our client had its \
                 first confirmation {:.0} ms after a bare connection to the other brokers had one.",
                (bare - start).as_secs_f64(),
                added.as_secs_f64() * 1e3,
            ));
            if added > ADDED {
                broken.push(format!(
                    "the client added {:.0} ms, {} ms are allowed",
                    added.as_secs_f64() * 1e3,
                    ADDED.as_millis()
                ));
            }
        }
        Err(error) => broken.push(error.to_string()),
    }
    story.insert(
        0,
        format!(
            "Broker {} led the store in which the brokers keep messages until they are delivered. It stopped answering \
             while its connections stayed open.",
            leader + 1
        ),
    );
    story.push(
        "Without fresh safety reports the control layers refuse commands in the meantime: that is intended.".to_owned(),
    );
    sleep(Duration::from_secs(1)).await;
    Ok(Found { start, detected, recovered, failed_requests: 0, requests: prober.count(), story, broken })
}
