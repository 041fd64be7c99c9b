//! A preferred broker behind a link that comes and goes, and one beside it that is well.

use std::{collections::BTreeSet, time::Duration};

use modax_mqtt_failover::{Client, Outcome, Qos, Selection};
use modax_testbed::{
    broker::{Script, ScriptedBroker},
    proxy::{Direction, Fault, Proxy},
    wait,
};

use crate::{
    DEADLINE, another,
    load::Load,
    patient,
    scale::{count, row},
    serving,
};

/// Reachable for so long, the preferred broker is gone back to; twice as long after each return that did not last.
const REACHABLE: Duration = Duration::from_millis(250);
/// At the end the link is up for so long and down for so long. Much less than the wait has grown to.
const PHASE: Duration = Duration::from_millis(300);
/// Messages a second.
const FLAPPING_RATE: u32 = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f08_a_preferred_broker_that_comes_and_goes_is_gone_back_to_less_and_less_and_nothing_is_lost() {
    let brokers = [
        ScriptedBroker::start(Script::new()).await.expect("a broker"),
        ScriptedBroker::start(Script::new()).await.expect("a broker"),
    ];
    let proxy = Proxy::start(brokers[0].addr()).await.expect("a proxy");
    let client = Client::builder("drill")
        .brokers([proxy.url("mqtt"), brokers[1].url()])
        .and_then(|builder| {
            builder.selection(Selection::priority().failback_after(REACHABLE)).liveness(patient()).build()
        })
        .expect("a client");
    assert_eq!(serving(&client).await, proxy.addr().port());
    let load = Load::start(&client, FLAPPING_RATE, Qos::AtLeastOnce);

    // It falls as soon as it is gone back to: no return lasts.
    let falls = u64::from(count("DRILL_FALLS", 3));
    let port = proxy.addr().port();
    for fall in 1..=falls {
        proxy.set(Direction::Both, Fault::Refuse);
        proxy.cut_all();
        another(&client, port).await;
        proxy.clear();
        let back = || async { client.status().connected.is_some_and(|now| now.port() == port) };
        wait::until(DEADLINE, "the preferred broker", back).await.expect("it is gone back to");
        assert_eq!((client.stats().failovers, client.stats().failbacks), (fall, fall));
    }
    proxy.set(Direction::Both, Fault::Toggle { up: PHASE, down: PHASE });
    let fallen = || async { proxy.fired().toggle >= 6 };
    wait::until(DEADLINE, "the falls", fallen).await.expect("the link falls again and again");
    proxy.clear();
    let published = load.end().await;

    let stats = client.stats();
    row(&format!(
        "a link that fell {} times: {} failovers, {} failbacks, {} messages",
        falls + proxy.fired().toggle,
        stats.failovers,
        stats.failbacks,
        published.outcomes.len(),
    ));
    assert_eq!((stats.failovers, stats.failbacks), (falls + 1, falls), "it follows a link that does not stay");
    assert!(published.outcomes.iter().all(Outcome::is_acked));
    let arrived = brokers.iter().flat_map(ScriptedBroker::publishes);
    let arrived: BTreeSet<u64> =
        arrived.map(|seen| String::from_utf8_lossy(&seen.payload).parse().expect("a number")).collect();
    let lost: Vec<_> = (0..published.outcomes.len() as u64).filter(|number| !arrived.contains(number)).collect();
    assert!(lost.is_empty(), "{lost:?} lost");
    assert!(client.close(DEADLINE).await.undelivered.is_empty());
}
