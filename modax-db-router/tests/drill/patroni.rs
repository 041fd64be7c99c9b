//! Under Patroni: a switchover that nobody notices.

use modax_db_router::{Event, Router};
use modax_testbed::Ground;
use modax_testbed::servers::patroni::PatroniOptions;

use crate::ledger::{LONG, Told, Writers, event, prepare};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f35_a_planned_switchover_under_patroni_costs_no_caller_an_error() {
    let ground = Ground::start().await.expect("ground");
    let cluster = ground.patroni(PatroniOptions::default()).await.expect("servers");
    let builder = Router::builder(&cluster.url()).expect("url").patroni(cluster.patroni_urls()).expect("urls");
    let router = builder.build().expect("router");
    let mut events = router.events();
    prepare(&router).await;
    let before = cluster.leader().await.expect("a leader");
    let writers = Writers::start(&router, 4);
    writers.progress(50).await.expect("writes before");

    cluster.switchover().await.expect("switchover");
    event(&mut events, "failover", |event| matches!(event, Event::FailedOver { from, to, .. } if from != to)).await;
    writers.progress(50).await.expect("writes after");
    let after = cluster.leader().await.expect("a leader");
    assert_ne!(before, after, "the fault fired");
    let ledger = writers.stop().await;
    let failed: Vec<_> = ledger.iter().filter(|(_, told)| **told != Told::Committed).collect();
    assert!(failed.is_empty(), "callers saw it: {failed:?}");
    let sql = "SELECT count(*) || ' ' || count(DISTINCT number) FROM ledger";
    let rows = cluster.nodes()[after].psql(sql).await.expect("rows");
    assert_eq!(rows, format!("{0} {0}", ledger.len()), "nothing lost, nothing twice");
    router.close(LONG).await;
    ground.stop().await;
}
