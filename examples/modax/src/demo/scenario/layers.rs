//! Faults of the layers: a control layer killed, too many requests, the AI layers paused.

use std::time::{Duration, Instant};

use modax_testbed::wait;
use serde_json::json;
use tokio::time::sleep;

use super::{Found, QUESTION, Stage, first_failure, recovery, window};
use crate::demo::cluster::Failure;
use crate::demo::load;
use crate::demo::probe::Prober;

/// How often the load balancer is asked what it thinks: the error of that detection.
const GLANCE: Duration = Duration::from_millis(20);
/// Seconds in which the operator goes on commanding with the AI layers paused.
const PAUSED: Duration = Duration::from_secs(5);

pub(super) async fn kill_control(stage: &Stage) -> Result<Found, Failure> {
    let victim = &stage.cluster.control[0];
    let prober = stage.status_prober();
    wait::until(Duration::from_secs(10), "the prober's first answers", || async { prober.count() > 5 }).await?;

    let start = Instant::now();
    victim.process().kill();

    let noticed = wait::until(Duration::from_secs(15), "the load balancer to notice", || async {
        let by_balancer = stage.cluster.balanced(&stage.http).await;
        let is_out = by_balancer.iter().any(|(server, is_up)| server == "control1" && !is_up);
        sleep(GLANCE).await;
        is_out.then(Instant::now)
    })
    .await
    .ok()
    .map(|at| (at, "the load balancer".to_owned()));
    let detected = noticed.into_iter().chain(first_failure(&prober, start)).min_by_key(|(at, _)| *at);
    // Nobody works again before somebody noticed: an answer from the other instance in between is luck.
    let recovered = recovery(&prober, detected.as_ref().map_or(start, |(at, _)| *at), Duration::from_secs(20)).await;
    sleep(Duration::from_secs(2)).await;
    let late = detected.as_ref().map_or(0, |(at, _)| prober.failures(*at));

    victim.restart(&stage.cluster.ground)?;
    stage.cluster.layers_ready(&stage.http).await?;
    let mut broken = Vec::new();
    if late > 0 {
        broken.push(format!("{late} requests for the status failed after the fault had been noticed"));
    }
    Ok(Found {
        start,
        detected,
        recovered,
        failed_requests: prober.failures(start),
        requests: prober.count(),
        story: vec![
            "Two control layers work side by side. One was ended the hard way (kill -9), as by a power cut.".to_owned(),
            "The load balancer sent everything to the other one. After that the killed one was started again and \
             took its place."
                .to_owned(),
        ],
        broken,
    })
}

pub(super) async fn overload(stage: &Stage) -> Result<Found, Failure> {
    let prober = stage.status_prober();
    wait::until(Duration::from_secs(10), "the prober's first answers", || async { prober.count() > 5 }).await?;

    let start = Instant::now();
    let load = load::run(&stage.http, &format!("{}/status", stage.cluster.control_url)).await;

    let recovered = recovery(&prober, start, Duration::from_secs(10)).await;
    let mut broken = Vec::new();
    if load.server_errors > 0 || load.unanswered > 0 {
        broken.push(format!("{} server errors, {} requests unanswered", load.server_errors, load.unanswered));
    }
    if load.p99 >= Duration::from_secs(1) {
        broken.push(format!("1 in 100 requests took {:.2} s or more", load.p99.as_secs_f64()));
    }
    Ok(Found {
        start,
        detected: first_failure(&prober, start),
        recovered,
        failed_requests: load.server_errors + load.unanswered + prober.failures(start),
        requests: prober.count() + load::REQUESTS,
        story: vec![
            format!(
                "{} requests were made, 100 of them at any time, in {:.1} s. 99 of 100 had their answer within {:.0} ms, the slowest took {:.0} ms.",
                load::REQUESTS,
                load.took.as_secs_f64(),
                load.p99.as_secs_f64() * 1e3,
                load.slowest.as_secs_f64() * 1e3,
            ),
            "Meanwhile the devices' readings went on into the database.".to_owned(),
        ],
        broken,
    })
}

pub(super) async fn pause_ai(stage: &Stage) -> Result<Found, Failure> {
    let analysis = {
        let (http, url) = (stage.http.clone(), format!("{}/api/v1/analyze", stage.cluster.ai_url));
        let body = window(stage.devices[0].id());
        Prober::start(move || {
            let (http, url, body) = (http.clone(), url.clone(), body.clone());
            async move { http.post(&url, "", &body, QUESTION).await.is_ok_and(|answer| answer.status == 200) }
        })
    };
    wait::until(Duration::from_secs(10), "the first analysis", || async {
        analysis.answers().iter().any(|answered| answered.good)
    })
    .await?;

    let start = Instant::now();
    for layer in &stage.cluster.ai {
        layer.process().stop();
    }
    let degraded =
        wait::until(Duration::from_secs(30), "health degraded", || async { degraded(stage).await.then(Instant::now) })
            .await;
    let detected = degraded.as_ref().ok().map(|at| (*at, "the control layers' health, \"degraded\"".to_owned()));
    let detected = detected.into_iter().chain(first_failure(&analysis, start)).min_by_key(|(at, _)| *at);
    sleep(PAUSED).await;
    let paused_for = start.elapsed();
    for layer in &stage.cluster.ai {
        layer.process().cont();
    }
    let recovered = recovery(&analysis, start, Duration::from_secs(30)).await;

    let failed = stage.operator.log().failed.iter().filter(|at| **at >= start).count();
    let mut broken = Vec::new();
    if degraded.is_err() {
        broken.push("the control layers' health did not become \"degraded\"".to_owned());
    }
    if failed > 0 {
        broken.push(format!("{failed} of the operator's requests failed"));
    }
    Ok(Found {
        start,
        detected,
        recovered,
        // What asked the paused layer itself could not succeed and is not counted: the claim is about control.
        failed_requests: 0,
        requests: analysis.count(),
        story: vec![
            format!(
                "The AI layers advise, they do not control. Both were paused for {:.1} s; the time until they worked again includes that.",
                paused_for.as_secs_f64()
            ),
            "The control layers said that they were degraded and went on accepting commands.".to_owned(),
        ],
        broken,
    })
}

/// Whether both control layers call themselves degraded, with 200: they go on.
async fn degraded(stage: &Stage) -> bool {
    for layer in &stage.cluster.control {
        let answer = stage.http.get(&format!("{}/health", layer.url), QUESTION).await;
        if !answer.is_ok_and(|answer| answer.status == 200 && answer.json()["status"] == json!("degraded")) {
            return false;
        }
    }
    true
}
