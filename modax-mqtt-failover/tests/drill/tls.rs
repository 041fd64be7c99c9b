//! TLS against mosquitto: what it has to prove, what it asks of us, and certificates that change while all is running.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use modax_mqtt_failover::{Client, ClientBuilder, Event, Events, Message, Outcome, Qos, Queue, tls::Tls};
use modax_testbed::{
    Ground, Mosquitto, MosquittoOptions,
    pki::{Authority, Issued},
    proxy::{Direction, Fault, Proxy},
};

use crate::{DEADLINE, RATE, acked_more, another, load::Load, oracle::Oracles, serving, verdict::judge};

fn write(path: PathBuf, text: &str) -> PathBuf {
    std::fs::write(&path, text).expect("a file");
    path
}

/// A mosquitto with a listener for TLS beside the plain one, and the files it shows.
struct Secure {
    broker: Mosquitto,
    port: u16,
    folder: PathBuf,
}

impl Secure {
    /// `asking`: it wants client certificates of this authority.
    async fn start(ground: &Ground, shown: &Issued, asking: Option<&Authority>) -> Self {
        let port = ground.port();
        let folder = ground.dir().join(format!("tls-{port}"));
        std::fs::create_dir(&folder).expect("a folder");
        let place = folder.display();
        let listener = format!("listener {port} 127.0.0.1\ncertfile {place}/shown.pem\nkeyfile {place}/shown.key");
        let extra = match asking {
            Some(authority) => {
                let ca = write(folder.join("clients.pem"), authority.pem());
                format!("{listener}\ncafile {}\nrequire_certificate true", ca.display())
            }
            None => listener,
        };
        show(&folder, shown);
        let options = MosquittoOptions { extra, quiet: true, ..Default::default() };
        let broker = ground.mosquitto_with(options).await.expect("mosquitto");
        Self { broker, port, folder }
    }

    fn url(&self) -> String {
        format!("mqtts://127.0.0.1:{}", self.port)
    }
}

fn show(folder: &Path, shown: &Issued) {
    write(folder.join("shown.pem"), &shown.certificate);
    write(folder.join("shown.key"), &shown.key);
}

fn client_of(urls: impl IntoIterator<Item = String>, tls: Tls) -> ClientBuilder {
    Client::builder("drill").brokers(urls).expect("valid").tls(tls).queue(Queue::memory().max_messages(100_000))
}

async fn event<T>(events: &mut Events, what: &str, wanted: impl Fn(Event) -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = wanted(events.next().await.expect("the client lives")) {
                return found;
            }
        }
    };
    tokio::time::timeout(DEADLINE, found).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

async fn failure(client: &Client) -> String {
    event(&mut client.events(), "a failed try", |event| match event {
        Event::ConnectFailed { reason, .. } => Some(reason),
        _ => None,
    })
    .await
}

async fn acked(client: &Client) -> Outcome {
    let receipt = client.publish(Message::new("drill/x", "1")).await.expect("admitted");
    tokio::time::timeout(DEADLINE, receipt.acked()).await.expect("an outcome in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_brokers_behind_mutual_tls_killed_under_load_lose_nothing() {
    let ground = Ground::start().await.expect("a ground");
    let authority = Authority::new("ours");
    let shown = authority.issue(&["127.0.0.1"]);
    let mut brokers = Vec::new();
    for _ in 0..2 {
        brokers.push(Secure::start(&ground, &shown, Some(&authority)).await);
    }
    let oracles = Oracles::start(brokers.iter().map(|secure| secure.broker.addr())).await;
    let us = authority.issue(&["drill"]);
    let tls = Tls::new().ca_pem(authority.pem()).client_pem(&us.certificate, &us.key);
    let client = client_of(brokers.iter().map(Secure::url), tls).build().expect("a client");
    let load = Load::start(&client, RATE, Qos::AtLeastOnce);
    acked_more(&client, 100).await;

    let mut faults = Vec::new();
    for _ in 0..2 {
        let port = serving(&client).await;
        let place = brokers.iter().position(|secure| secure.port == port).expect("one of ours");
        let life = oracles.life(place);
        faults.push(Instant::now());
        brokers[place].broker.kill().await;
        another(&client, port).await;
        acked_more(&client, 50).await;
        brokers[place].broker.restart().await.expect("restarted");
        oracles.subscribed_after(place, life).await;
        acked_more(&client, 100).await;
    }

    let published = load.end().await;
    assert!(client.stats().failovers >= 2, "the faults did not reach the client: {:?}", client.stats());
    judge("two brokers behind mutual TLS, killed", Qos::AtLeastOnce, &published, &faults, &oracles).await;
    assert!(client.close(DEADLINE).await.undelivered.is_empty());
    drop(oracles);
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_proves_nothing_or_wants_more_than_we_show_is_not_used() {
    let ground = Ground::start().await.expect("a ground");
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    for (shown, told) in [
        (other.issue(&["127.0.0.1"]), "not signed by a trusted authority"),
        (ours.issue_expired(&["127.0.0.1"]), "expired"),
        (ours.issue(&["another.plant"]), "not valid for name"),
    ] {
        let secure = Secure::start(&ground, &shown, None).await;
        let client = client_of([secure.url()], Tls::new().ca_pem(ours.pem())).build().expect("a client");
        let reason = failure(&client).await;
        assert!(reason.contains(told), "{reason}");
        assert!(!client.status().is_connected());
    }

    let asking = Secure::start(&ground, &ours.issue(&["127.0.0.1"]), Some(&ours)).await;
    let nameless = client_of([asking.url()], Tls::new().ca_pem(ours.pem())).build().expect("a client");
    eprintln!("without a certificate of ours: {}", failure(&nameless).await);
    assert_eq!(nameless.stats().connects, 0);
    let stranger = other.issue(&["drill"]);
    let tls = Tls::new().ca_pem(ours.pem()).client_pem(&stranger.certificate, &stranger.key);
    let stranger = client_of([asking.url()], tls).build().expect("a client");
    eprintln!("with a stranger's certificate: {}", failure(&stranger).await);
    assert_eq!(stranger.stats().connects, 0);
    let us = ours.issue(&["drill"]);
    let tls = Tls::new().ca_pem(ours.pem()).client_pem(&us.certificate, &us.key);
    let known = client_of([asking.url()], tls).build().expect("a client");
    assert!(acked(&known).await.is_acked());
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_restarted_with_another_authority_is_followed_once_the_files_are_renewed() {
    let ground = Ground::start().await.expect("a ground");
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let secure = Secure::start(&ground, &old.issue(&["127.0.0.1"]), Some(&old)).await;
    let mut us = old.issue(&["drill"]);
    let file = |name: &str, text: &str| write(ground.dir().join(name), text);
    let (ca, certificate, key) = (file("ca.pem", old.pem()), file("us.pem", &us.certificate), file("us.key", &us.key));
    let tls = Tls::new().ca_file(ca).client_files(certificate, key);
    let client = client_of([secure.url()], tls).build().expect("a client");
    let mut events = client.events();
    assert!(acked(&client).await.is_acked());

    show(&secure.folder, &new.issue(&["127.0.0.1"]));
    write(secure.folder.join("clients.pem"), new.pem());
    secure.broker.restart().await.expect("restarted");
    event(&mut events, "the refusal of the new certificate", |event| {
        matches!(event, Event::ConnectFailed { reason, .. } if reason.contains("trusted authority")).then_some(())
    })
    .await;
    us = new.issue(&["drill"]);
    file("ca.pem", new.pem());
    file("us.pem", &us.certificate);
    file("us.key", &us.key);

    event(&mut events, "the new files", |event| matches!(event, Event::CertificatesReloaded).then_some(())).await;
    assert!(acked(&client).await.is_acked());
    assert!(client.close(DEADLINE).await.undelivered.is_empty());
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f03_a_link_under_tls_that_falls_silent_is_left_and_nothing_is_lost() {
    let ground = Ground::start().await.expect("a ground");
    let authority = Authority::new("ours");
    let shown = authority.issue(&["127.0.0.1"]);
    let brokers = [Secure::start(&ground, &shown, None).await, Secure::start(&ground, &shown, None).await];
    let proxy = Proxy::start(([127, 0, 0, 1], brokers[0].port).into()).await.expect("a proxy");
    let oracles = Oracles::start(brokers.iter().map(|secure| secure.broker.addr())).await;
    let urls = [proxy.url("mqtts"), brokers[1].url()];
    let client = client_of(urls, Tls::new().ca_pem(authority.pem())).build().expect("a client");
    let load = Load::start(&client, RATE, Qos::AtLeastOnce);
    acked_more(&client, 100).await;
    assert_eq!(serving(&client).await, proxy.addr().port());

    let faults = [Instant::now()];
    proxy.set(Direction::Both, Fault::Blackhole);
    another(&client, proxy.addr().port()).await;
    acked_more(&client, 100).await;
    proxy.clear();

    let published = load.end().await;
    assert!(proxy.fired().blackhole > 0, "{:?}", proxy.fired());
    judge("a link under TLS that fell silent", Qos::AtLeastOnce, &published, &faults, &oracles).await;
    assert!(client.close(DEADLINE).await.undelivered.is_empty());
    drop(oracles);
    ground.stop().await;
}
