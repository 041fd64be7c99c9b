//! The kernel drops a share of all packets between the client and its brokers, SYNs and acknowledgements among them.
//!
//! Real loss under real TCP, in a network namespace of the test's own: what the client sees of it is stalls of 200 ms, and of
//! 600 ms, 1.4 s and so on where what was sent again is lost too. The longer ones look like a hung broker and may be left.

use std::{collections::BTreeSet, time::Duration};

use modax_mqtt_failover::{Client, Event, LivenessConfig, Message, Outcome, Qos};
use modax_testbed::{
    broker::{Script, ScriptedBroker},
    namespace::{Namespace, PacketLoss},
};

use crate::{DEADLINE, acked_more, load::Load, scale::row, serving};

/// Messages a second: what a link that loses every third packet still carries.
const LOSSY_RATE: u32 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f10_a_share_of_packets_lost_costs_time_and_no_message() {
    if !Namespace::Network.has_entered("loss::f10_a_share_of_packets_lost_costs_time_and_no_message") {
        return;
    }
    let brokers = [
        ScriptedBroker::start(Script::new()).await.expect("a broker"),
        ScriptedBroker::start(Script::new()).await.expect("a broker"),
    ];
    let loss = PacketLoss::of(brokers.iter().map(|broker| broker.addr().port()));
    let urls = brokers.iter().map(ScriptedBroker::url);
    let client = Client::builder("drill").brokers(urls).unwrap().build().expect("a client");
    serving(&client).await;
    let load = Load::start(&client, LOSSY_RATE, Qos::AtLeastOnce);
    for percent in [2, 10, 30] {
        let (before, dropped) = (client.stats(), loss.dropped());
        let started = std::time::Instant::now();
        loss.set(percent);
        acked_more(&client, 500).await;
        let (after, dropped) = (client.stats(), loss.dropped() - dropped);
        assert!(dropped > 0, "nothing was lost at {percent} %");
        let dials = after.connects - before.connects + after.connect_failures - before.connect_failures;
        // A client that dialled at each stall, or as fast as it can, would lose two or three packets in each dial.
        assert!(dials <= 3 + dropped / 5, "a storm at {percent} %: {dials} dials and {dropped} packets lost");
        row(&format!(
            "{percent} % of packets lost: {dropped} packets, {} messages in {} ms, {} failovers, {} connects, {} failed, {} resent",
            after.acked - before.acked,
            started.elapsed().as_millis(),
            after.failovers - before.failovers,
            after.connects - before.connects,
            after.connect_failures - before.connect_failures,
            after.resent - before.resent,
        ));
    }
    loss.set(0);
    let published = load.end().await;

    let arrived = brokers.iter().flat_map(ScriptedBroker::publishes);
    let arrived: BTreeSet<u64> =
        arrived.map(|seen| String::from_utf8_lossy(&seen.payload).parse().expect("a number")).collect();
    let lost: Vec<_> = (0..published.outcomes.len() as u64).filter(|number| !arrived.contains(number)).collect();
    assert!(lost.is_empty(), "{lost:?} lost");
    assert!(published.outcomes.iter().all(Outcome::is_acked));
    assert!(client.close(DEADLINE).await.undelivered.is_empty());
}

/// Why the client left the broker it had, and that another one took what was published meanwhile.
async fn left_for(client: &Client, port: u16) -> String {
    let mut events = client.events();
    let receipt = client.publish(Message::new("drill/x", "x")).await.expect("admitted");
    let outcome = tokio::time::timeout(DEADLINE, receipt.acked()).await.expect("it is left in time");
    assert!(matches!(&outcome, Outcome::Acked { broker, .. } if broker.port() == port), "{outcome:?}");
    loop {
        let event = tokio::time::timeout(DEADLINE, events.next()).await.expect("events in time");
        if let Event::Disconnected { reason, .. } = event.expect("the client lives") {
            return reason;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f03_packets_that_vanish_are_noticed_by_the_judge_of_silence_and_without_it_by_the_kernel() {
    if !Namespace::Network
        .has_entered("loss::f03_packets_that_vanish_are_noticed_by_the_judge_of_silence_and_without_it_by_the_kernel")
    {
        return;
    }
    let brokers = [
        ScriptedBroker::start(Script::new()).await.expect("a broker"),
        ScriptedBroker::start(Script::new()).await.expect("a broker"),
    ];
    let [preferred, other] = [brokers[0].addr().port(), brokers[1].addr().port()];
    let client = |name, patience| {
        let urls = brokers.iter().map(ScriptedBroker::url);
        Client::builder(name).brokers(urls).unwrap().liveness(patience).build().expect("a client")
    };
    // Its first verdict comes after twice 10 s, and it asks nothing by itself: the kernel's 10 s are sooner.
    let (longest, never) = (Duration::from_secs(10), Duration::from_secs(3600));
    let patience = LivenessConfig::default().floor(longest).first(longest).probe_interval(never).slow_after(never);
    let (judging, patient) = (client("judging", LivenessConfig::default()), client("patient", patience));
    for client in [&judging, &patient] {
        assert_eq!(serving(client).await, preferred);
    }

    let loss = PacketLoss::of([preferred]);
    loss.set(100);
    let (judged, timed_out) = tokio::join!(left_for(&judging, other), left_for(&patient, other));

    assert!(loss.dropped() > 0, "nothing was lost");
    assert_eq!(judged, "an acknowledgement is overdue");
    assert!(timed_out.contains("timed out"), "{timed_out}");
    for client in [judging, patient] {
        assert!(client.close(DEADLINE).await.undelivered.is_empty());
    }
}
