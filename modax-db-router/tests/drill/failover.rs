//! The primary is killed, frozen, doubled, and comes back.

use modax_db_router::{Event, NodeState, Router, WritesClosed};
use modax_testbed::servers::postgres::PostgresOptions;
use modax_testbed::{Ground, wait};

use crate::ledger::{LONG, Writers, compare, event, prepare, promote_best};

fn synchronous() -> PostgresOptions {
    PostgresOptions { synchronous: Some("ANY 1 (s1, s2)".to_owned()), ..PostgresOptions::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f38_no_acknowledged_write_is_lost_or_doubled_when_the_primary_is_killed() {
    let ground = Ground::start().await.expect("ground");
    let cluster = ground.postgres(synchronous()).await.expect("servers");
    let router = Router::builder(&cluster.url()).expect("url").build().expect("router");
    let mut events = router.events();
    prepare(&router).await;
    let writers = Writers::start(&router, 8);
    writers.progress(100).await.expect("writes before");

    cluster.nodes()[0].kill();
    assert!(!cluster.nodes()[0].process().is_running(), "the fault fired");
    event(&mut events, "loss of the primary", |event| matches!(event, Event::PrimaryLost { .. })).await;
    let chosen = promote_best(&cluster).await;

    // A busy machine may have had the old one doubted, and followed again, before.
    let chosen_address = cluster.nodes()[chosen].addr().to_string();
    let follows = |event: &Event| matches!(event, Event::FailedOver { to, .. } if to.to_string() == chosen_address);
    event(&mut events, "failover", follows).await;
    writers.progress(100).await.expect("writes after");
    let ledger = writers.stop().await;
    let (committed, unknown) = compare(&cluster.nodes()[chosen], &ledger).await;
    assert!(committed >= 200);
    assert_eq!(unknown, 0, "the rule settles every ambiguous commit");
    router.close(LONG).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f36_a_frozen_primary_hangs_nobody_and_is_refused_when_it_comes_back() {
    let ground = Ground::start().await.expect("ground");
    let cluster = ground.postgres(synchronous()).await.expect("servers");
    let router = Router::builder(&cluster.url()).expect("url").build().expect("router");
    let mut events = router.events();
    prepare(&router).await;
    let writers = Writers::start(&router, 8);
    writers.progress(100).await.expect("writes before");

    cluster.nodes()[0].stop();
    let chosen = promote_best(&cluster).await;
    // A busy machine may have had the old one doubted, and followed again, before.
    let chosen_address = cluster.nodes()[chosen].addr().to_string();
    let follows = |event: &Event| matches!(event, Event::FailedOver { to, .. } if to.to_string() == chosen_address);
    event(&mut events, "failover", follows).await;
    writers.progress(100).await.expect("writes on the other one");

    cluster.nodes()[0].cont();
    let fenced = event(&mut events, "refusal", |event| matches!(event, Event::Fenced { .. })).await;
    let Event::Fenced { node, .. } = fenced else { unreachable!() };
    assert_eq!(node.to_string(), cluster.nodes()[0].addr().to_string());
    writers.progress(100).await.expect("writes go on");
    // On a busy machine two probes may be late, and the node out of reach for a moment.
    let fenced = || async { router.topology().node(&node).expect("known").state == NodeState::Fenced };
    wait::until(LONG, "the old one to be fenced", fenced).await.expect("it stays refused");
    // The old primary is alone with its history: nothing acknowledged may be there only.
    let ledger = writers.stop().await;
    let (committed, unknown) = compare(&cluster.nodes()[chosen], &ledger).await;
    assert!(committed >= 300);
    assert_eq!(unknown, 0, "the rule settles every ambiguous commit");
    assert_eq!(router.stats().stale_primaries_refused, 1);
    router.close(LONG).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f36_two_primaries_at_once_stop_all_writes_until_one_is_left() {
    let ground = Ground::start().await.expect("ground");
    let cluster = ground.postgres(PostgresOptions::default()).await.expect("servers");
    // A busy machine must not make a primary that lives look dead.
    let builder = Router::builder(&cluster.url()).expect("url").probe_deadline(LONG);
    let router = builder.build().expect("router");
    let mut events = router.events();
    prepare(&router).await;

    let standby = &cluster.nodes()[1];
    let replicated = || async { standby.psql("SELECT 1 FROM ledger LIMIT 0").await.is_ok() };
    wait::until(LONG, "the table to reach the standby", replicated).await.expect("replication");
    standby.promote().await.expect("promotion beside a live primary");
    event(&mut events, "split brain", |event| matches!(event, Event::SplitBrain { .. })).await;
    wait::until(LONG, "writes to stop", || async {
        router.topology().writes_closed() == Some(WritesClosed::SplitBrain)
    })
    .await
    .expect("writes stop");
    let writers = Writers::start(&router, 4);
    wait::until(LONG, "writers to wait", || async { router.stats().held == 4 }).await.expect("held");
    assert_eq!(writers.acknowledged(), 0);

    cluster.nodes()[0].kill();
    writers.progress(20).await.expect("the one that is left is written");
    let ledger = writers.stop().await;
    compare(&cluster.nodes()[1], &ledger).await;
    assert_eq!(router.stats().split_brains, 1);
    router.close(LONG).await;
    ground.stop().await;
}
