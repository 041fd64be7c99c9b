//! A broker is cut off that leads nothing: what fails over is the clients alone.

use std::time::{Duration, Instant};

use modax_testbed::wait;
use tokio::time::sleep;

use super::{Found, Stage, first_event, recovery};
use crate::demo::cluster::Failure;
use crate::demo::nats::{clients_of, leaders, meta_leader, settled_without, step_down};
use crate::demo::probe::Prober;

/// What the control layers log when they lose or suspect a broker.
pub(super) const SIGNS: &[&str] = &["suspected", "disconnected", "failed over"];
/// Leaders move in about a second each; the last one may come back once.
const MOVE: Duration = Duration::from_secs(30);
/// The layers may move while one broker is prepared.
const TRIES: u32 = 5;
/// Between two looks at who leads what.
const LOOK: Duration = Duration::from_millis(500);
/// The bound and time to see how late it was.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn cut_off(stage: &Stage) -> Result<Found, Failure> {
    let victim = ready(stage).await?;
    let node = &stage.cluster.nats.nodes()[victim];
    let on_it = stage.devices.iter().filter(|device| device.status().broker == Some(node.url())).count();
    let logs = stage.control_logs(SIGNS);

    let start = Instant::now();
    node.stop();

    let prober = Prober::start(stage.fresh_readings());
    let recovered = recovery(&prober, start, PATIENCE).await;
    let detected = first_event(&logs, start);
    node.cont();

    Ok(Found {
        start,
        detected,
        recovered,
        // Until the first new reading is there, the prober's answer is "not yet", which is no failed request.
        failed_requests: 0,
        requests: prober.count(),
        story: vec![
            format!(
                "Broker {} stopped answering while its connections stayed open, as when a cable is pulled. One control \
                 layer and {on_it} of the devices were connected to it.",
                victim + 1
            ),
            "They noticed by themselves, went to another broker and sent again what had not been confirmed.".to_owned(),
        ],
        broken: Vec::new(),
    })
}

/// A broker that leads nothing and serves a control layer, both as it is now: a layer may go back to the broker it
/// prefers while the leaders are being moved.
async fn ready(stage: &Stage) -> Result<usize, Failure> {
    for _ in 0..TRIES {
        let victim = vacate(stage).await?;
        if serves_a_layer(stage, victim).await {
            return Ok(victim);
        }
    }
    Err(format!("no control layer stayed with a broker that leads nothing in {TRIES} tries").into())
}

/// Whether a control layer itself is connected to this broker; not only one of its probing connections, whose names have
/// a `~`.
async fn serves_a_layer(stage: &Stage, index: usize) -> bool {
    let clients = clients_of(&stage.http, stage.cluster.doors[index].monitor).await;
    clients.iter().any(|client| client.starts_with("control-layer-") && !client.contains('~'))
}

/// Chooses a broker that a control layer is connected to and moves away from it whatever it leads.
async fn vacate(stage: &Stage) -> Result<usize, Failure> {
    let (nodes, doors) = (stage.cluster.nats.nodes(), &stage.cluster.doors);
    let meta =
        wait::until(MOVE, "a leader of the broker cluster", || meta_leader(&stage.http, doors[0].monitor)).await?;
    let victim = wait::until(MOVE, "a control layer on a broker that does not lead the cluster", || async {
        for (index, _) in nodes.iter().enumerate().filter(|(_, node)| node.name() != meta) {
            if serves_a_layer(stage, index).await {
                return Some(index);
            }
        }
        None
    })
    .await?;
    let name = nodes[victim].name();
    let end = Instant::now() + MOVE;
    // A leader that was asked to go may be elected again, and whoever has just been elected may lag: quiet is what
    // was quiet twice, with the cluster healthy in between.
    let mut quiet_looks = 0;
    while quiet_looks < 2 {
        if Instant::now() > end {
            return Err(format!("broker {} still leads something after {} s", victim + 1, MOVE.as_secs()).into());
        }
        let mut accounts = Vec::new();
        for doors in doors {
            accounts.push(leaders(&stage.http, doors.monitor).await.unwrap_or_default());
        }
        if settled_without(&accounts, name) {
            quiet_looks += 1;
            stage.cluster.nats.healthy(MOVE).await?;
        } else {
            quiet_looks = 0;
            for (led, _) in accounts[victim].iter().filter(|(_, leader)| *leader == name) {
                // Whether it helped is seen at the next look.
                let _ = step_down(doors[victim].clients, led).await;
            }
        }
        sleep(LOOK).await;
    }
    Ok(victim)
}
