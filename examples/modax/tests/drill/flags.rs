//! What the flags of `pub` and `sub` do to the connections, as brokers see it.

use std::time::Duration;

use modax_testbed::broker::{Connack, ConnectSeen, Script, ScriptedBroker};

use crate::running::Running;

const DEADLINE: Duration = Duration::from_secs(60);

async fn brokers() -> [ScriptedBroker; 2] {
    [ScriptedBroker::start(Script::new()).await.unwrap(), ScriptedBroker::start(Script::new()).await.unwrap()]
}

fn publisher(brokers: &[&ScriptedBroker], flags: &str) -> Running {
    let urls: Vec<_> = brokers.iter().map(|broker| broker.url()).collect();
    let urls = urls.join(",");
    let flags: Vec<_> = flags.split_whitespace().collect();
    Running::start(&[&["pub", "--client-id", "p", "--topic", "t", "--brokers", &urls], &flags[..]].concat())
}

/// Of this identity.
fn connects(broker: &ScriptedBroker, client_id: &str) -> Vec<ConnectSeen> {
    broker.connects().into_iter().filter(|connect| connect.client_id == client_id).collect()
}

async fn seen(broker: &ScriptedBroker, what: &str, holds: impl Fn(&ScriptedBroker) -> bool) {
    assert!(broker.wait_until(DEADLINE, holds).await, "{what}: {:?}", broker.connects());
}

#[tokio::test(flavor = "multi_thread")]
async fn standby_probe_keeps_a_silent_connection_to_the_next_broker() {
    let [first, second] = brokers().await;
    let publisher = publisher(&[&first, &second], "--standby probe");
    let ready = publisher.event("standby_ready").await;
    assert_eq!(ready["broker"], second.addr().to_string());
    assert_eq!(connects(&second, "p~standby").len(), 1);
    assert_eq!(publisher.end().await.1, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn failback_after_goes_back_to_the_preferred_broker_once_it_is_there() {
    let [first, second] = brokers().await;
    first.stop();
    let mut publisher = publisher(&[&first, &second], "--failback-after 100ms");
    publisher.send("away").await;
    assert_eq!(publisher.line().await["broker"], second.addr().to_string());

    first.restart().unwrap();

    let back = publisher.event("failed_back").await;
    assert_eq!((&back["from"], &back["to"]), (&second.addr().to_string().into(), &first.addr().to_string().into()));
    publisher.send("back").await;
    assert_eq!(publisher.line().await["broker"], first.addr().to_string());
    assert_eq!(publisher.end().await.1, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_of_a_cluster_share_the_session_and_others_have_theirs_thrown_away() {
    for (flags, clean) in [("", true), ("--cluster --no-scouting", false)] {
        let [first, second] = brokers().await;
        let mut publisher = publisher(&[&first, &second], flags);
        publisher.send("before").await;
        assert_eq!(publisher.line().await["broker"], first.addr().to_string(), "{flags}");
        first.stop();
        publisher.event("failed_over").await;
        let first_connect = connects(&second, "p")[0].clean_session;
        assert_eq!(first_connect, clean, "{flags}");
        assert_eq!(publisher.end().await.1, 0, "{flags}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scouts_leave_in_a_cluster_and_without_scouting_there_are_none() {
    let electing = || ScriptedBroker::start(Script::new().connack(Connack::Drop));
    let scouts = |broker: &ScriptedBroker| broker.connects().iter().any(|seen| seen.client_id.starts_with("p~scout"));

    let broker = electing().await.unwrap();
    let publisher_of_a_cluster = publisher(&[&broker], "--cluster");
    seen(&broker, "scouts", scouts).await;
    assert_eq!(publisher_of_a_cluster.end().await.1, 0);

    // Several tries take longer than a scout waits to leave.
    let broker = electing().await.unwrap();
    let publisher_alone = publisher(&[&broker], "--cluster --no-scouting");
    seen(&broker, "tries", |broker| broker.fired().dropped_before_connack >= 8).await;
    assert!(!scouts(&broker), "{:?}", broker.connects());
    assert_eq!(publisher_alone.end().await.1, 0);
}
