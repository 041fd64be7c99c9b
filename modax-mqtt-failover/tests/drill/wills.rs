//! What others are told of a client that goes away and comes back: wills of a real broker, seen by a witness.

use std::time::{Duration, Instant};

use modax_mqtt_failover::{Client, Message, Qos, Received, Subscription, Version};
use modax_testbed::{
    Ground, Mosquitto,
    proxy::{Direction, Fault, Proxy},
};

use crate::{DEADLINE, patient};

/// Who is always there, and sees what is said of the others.
struct Witness {
    client: Client,
    heard: Subscription,
}

impl Witness {
    async fn start(broker: &Mosquitto) -> Self {
        let client = Client::builder("witness").brokers([broker.url()]).unwrap().liveness(patient()).build().unwrap();
        let heard = client.subscribe("presence/#", Qos::AtLeastOnce).await.unwrap();
        let granted = tokio::time::timeout(DEADLINE, heard.granted()).await.expect("an answer in time");
        assert!(granted.is_some(), "nothing would be heard");
        Self { client, heard }
    }

    /// What is said next, as `who: what`.
    async fn next(&mut self) -> String {
        loop {
            match tokio::time::timeout(DEADLINE, self.heard.next()).await.expect("something is said in time") {
                Some(Received::Delivery(delivery)) => {
                    let who = delivery.topic().trim_start_matches("presence/").to_owned();
                    let said = format!("{who}: {}", String::from_utf8_lossy(delivery.payload()));
                    delivery.ack();
                    return said;
                }
                Some(_) => {}
                None => panic!("the witness is gone"),
            }
        }
    }

    /// All that is said until then.
    async fn until(&mut self, last: &str) -> Vec<String> {
        let mut all = Vec::new();
        while all.last().is_none_or(|said| said != last) {
            all.push(self.next().await);
        }
        all
    }

    async fn says(&self, topic: &str, payload: &str) {
        let receipt = self.client.publish(Message::new(topic, payload.to_owned())).await.expect("admitted");
        assert!(tokio::time::timeout(DEADLINE, receipt.acked()).await.expect("in time").is_acked());
    }

    /// All that is said until everything that was said before now is.
    async fn rest(&mut self) -> Vec<String> {
        self.says("presence/end", "end").await;
        self.until("end: end").await
    }
}

/// Says `here` whenever it connects; `gone` is its will.
struct Subject {
    client: Client,
    proxy: Proxy,
}

impl Subject {
    async fn start(broker: &Mosquitto, name: &str, version: Version, delay: Duration) -> Self {
        let proxy = Proxy::start(broker.addr()).await.expect("a proxy");
        let topic = format!("presence/{name}");
        let builder = Client::builder(name).brokers([proxy.url("mqtt")]).unwrap().version(version).liveness(patient());
        let builder =
            builder.will(Message::new(topic.as_str(), "gone")).on_connect(Message::new(topic.as_str(), "here"));
        let builder = if version == Version::V5 { builder.will_delay(delay) } else { builder };
        Self { client: builder.build().unwrap(), proxy }
    }

    /// Its connection is reset; it comes back at once.
    fn cut(&self) {
        self.proxy.cut_all();
    }

    /// It is reset, and cannot come back.
    fn shut_out(&self) {
        self.proxy.set(Direction::Both, Fault::Refuse);
        self.proxy.cut_all();
    }

    async fn end(self) {
        assert!(self.proxy.fired().reset > 0, "nothing was cut");
        self.client.close(DEADLINE).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f34_a_client_away_for_longer_than_its_will_waits_is_mourned_once_and_says_that_it_is_back() {
    let ground = Ground::start().await.expect("a ground");
    let broker = ground.mosquitto().await.expect("mosquitto");
    let mut witness = Witness::start(&broker).await;
    for (name, version) in [("new", Version::V5), ("old", Version::V311)] {
        let subject = Subject::start(&broker, name, version, Duration::from_secs(1)).await;
        let (here, gone) = (format!("{name}: here"), format!("{name}: gone"));
        witness.until(&here).await;

        subject.shut_out();
        let mut said = witness.until(&gone).await;
        subject.proxy.clear();
        said.extend(witness.until(&here).await);
        said.extend(witness.rest().await);

        assert_eq!(said.iter().filter(|said| **said == gone).count(), 1, "{said:?}");
        assert_eq!(said.iter().rfind(|said| said.starts_with(name)), Some(&here), "{said:?}");
        subject.end().await;
    }
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f34_a_client_back_before_its_will_is_due_is_not_mourned() {
    let ground = Ground::start().await.expect("a ground");
    let broker = ground.mosquitto().await.expect("mosquitto");
    let mut witness = Witness::start(&broker).await;
    // mosquitto counts in whole seconds: a will may be due one sooner.
    let (delay, early) = (Duration::from_secs(3), Duration::from_secs(1));
    let away = Subject::start(&broker, "away", Version::V5, delay).await;
    witness.until("away: here").await;
    // A busy machine may have one back too late: then another one.
    let mut in_time = None;
    for name in ["first", "second", "third"] {
        let (here, back) = (format!("{name}: here"), Subject::start(&broker, name, Version::V5, delay).await);
        witness.until(&here).await;
        let cut = Instant::now();
        back.cut();
        let said = witness.until(&here).await;
        if cut.elapsed() + early < delay {
            in_time = Some((name, back, said));
            break;
        }
        back.end().await;
    }
    let (name, back, mut said) = in_time.expect("one that is back before its will is due");

    // The will of the one that stays away is due no sooner than that of the other.
    away.shut_out();
    said.extend(witness.until("away: gone").await);

    assert!(!said.contains(&format!("{name}: gone")), "{said:?}");
    for subject in [back, away] {
        subject.proxy.clear();
        subject.end().await;
    }
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f34_a_will_that_comes_late_is_contradicted_on_a_real_broker() {
    let ground = Ground::start().await.expect("a ground");
    let broker = ground.mosquitto().await.expect("mosquitto");
    let mut witness = Witness::start(&broker).await;
    for (name, version) in [("new", Version::V5), ("old", Version::V311)] {
        let subject = Subject::start(&broker, name, version, Duration::from_secs(1)).await;
        let here = format!("{name}: here");
        witness.until(&here).await;
        subject.cut();
        witness.until(&here).await;

        // As from a bridge that was away for a while.
        witness.says(&format!("presence/{name}"), "gone").await;
        let said = witness.until(&format!("{name}: gone")).await;
        assert!(!said.is_empty());

        witness.until(&here).await;
        subject.end().await;
    }
    ground.stop().await;
}
