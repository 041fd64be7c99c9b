//! The primary is gone, and so is the Patroni that could start it again.

use std::time::{Duration, Instant};

use modax_testbed::wait;
use serde_json::json;
use tokio::time::sleep;

use super::{Found, Stage, first_event, first_failure, recovery};
use crate::demo::cluster::Failure;
use crate::demo::probe::Prober;

/// Longer than the 3 s in which the control layer answers 503 without a database.
const QUESTION: Duration = Duration::from_secs(4);
/// The bound and as much again, so that a late recovery is measured and not only missed.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn stop_primary(stage: &Stage) -> Result<Found, Failure> {
    let leader = wait::until(Duration::from_secs(20), "a leader of the database cluster", || async {
        stage.cluster.patroni.leader().await
    })
    .await?;
    let node = &stage.cluster.patroni.nodes()[leader];
    let prober = command_prober(stage);
    wait::until(Duration::from_secs(10), "the first commands of the prober", || async {
        prober.answers().iter().any(|answered| answered.good)
    })
    .await?;
    let logs = stage.control_logs(&["primarylost", "primary_lost", "primary lost"]);

    let start = Instant::now();
    node.kill_all();

    // Until the first failed command, a success may still belong to the time before.
    let sign = wait::until(Duration::from_secs(15), "the first sign", || async { prober.first_failure(start) }).await;
    let recovered = recovery(&prober, start, PATIENCE).await;
    let signs = first_event(&logs, start).into_iter().chain(first_failure(&prober, start));
    let detected = signs.min_by_key(|(at, _)| *at);
    sleep(Duration::from_secs(1)).await;
    let new_leader = stage.cluster.patroni.leader().await;
    node.restart()?;

    let mut broken = Vec::new();
    if sign.is_err() || new_leader.is_none_or(|new| new == leader) {
        broken.push("the fault did not take effect: no command failed, or nobody else took the lead".to_owned());
    }
    Ok(Found {
        start,
        detected,
        recovered,
        failed_requests: prober.failures(start),
        requests: prober.count(),
        story: vec![
            format!(
                "Database {} took the writes. It and the program that manages it were ended the hard way, as by a power cut. \
                 The others had to wait until its lease ran out (20 s), elect a new primary and go on without losing a stored row.",
                leader + 1
            ),
            "Readings were kept in the control layers' memory meanwhile and stored afterwards. Commands were answered \
             with \"not now\", and the operator repeated each under its key."
                .to_owned(),
        ],
        broken,
    })
}

/// A command ten times a second: it is durable before it is accepted.
fn command_prober(stage: &Stage) -> Prober {
    let (http, url) = (stage.http.clone(), format!("{}/control/command", stage.cluster.control_url));
    Prober::start(move || {
        let (http, url) = (http.clone(), url.clone());
        async move {
            let key = uuid::Uuid::new_v4().to_string();
            let body = json!({ "command_type": "probe", "parameters": {} });
            http.post(&url, &key, &body, QUESTION).await.is_ok_and(|answer| answer.status == 200)
        }
    })
}
