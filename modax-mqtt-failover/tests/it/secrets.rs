//! What a client knows and must not tell: looked for in everything it says of itself.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use modax_mqtt_failover::{
    Client, ClientBuilder, Event, Message, Observer, Outcome, Qos, broker::Address, packet::Credentials, tls::Tls,
};
use modax_testbed::{
    broker::{Connack, Script, ScriptedBroker},
    pki::{Authority, Issued},
};
use tracing::{Metadata, Subscriber, field::Field, span};

use crate::{
    tls::{Front, HOST},
    transport::{broker, event, within},
};

/// What stands in URLs: `%40` is `@`, so that it is written in two ways.
const URL_USER: &str = "canary-url-user";
const URL_PASSWORD: &str = "canary%40url-password";
const BUILDER_USER: &str = "canary-builder-user";
const BUILDER_PASSWORD: &str = "canary-builder-password";
const PAYLOAD: &str = "canary-payload";

/// What was said, by whom.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<(&'static str, String)>>>);

impl Heard {
    fn note(&self, source: &'static str, said: String) {
        self.0.lock().unwrap().push((source, said));
    }

    /// An error in all the ways a program prints one.
    fn error<E: std::error::Error>(&self, source: &'static str, error: &E) {
        let mut said = format!("{error} {error:?} {error:#?}");
        let mut cause = error.source();
        while let Some(inner) = cause {
            write!(said, " {inner} {inner:?}").unwrap();
            cause = inner.source();
        }
        self.note(source, said);
    }

    fn of(&self, source: &str) -> String {
        let heard = self.0.lock().unwrap();
        heard.iter().filter(|(from, _)| *from == source).map(|(_, said)| said.as_str()).collect::<Vec<_>>().join("\n")
    }
}

impl Observer for Heard {
    fn on_event(&self, event: &Event) {
        self.note("observer", format!("{event:?}"));
    }

    fn on_outcome(&self, outcome: &Outcome) {
        self.note("observer", format!("{outcome:?}"));
    }
}

/// Everything that any subscriber of `tracing` could write down, at every level.
impl Subscriber for Heard {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        let mut said = span.metadata().name().to_owned();
        span.record(&mut |field: &Field, value: &dyn fmt::Debug| write!(said, " {field}={value:?}").unwrap());
        self.note("tracing", said);
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, values: &span::Record<'_>) {
        values.record(&mut |field: &Field, value: &dyn fmt::Debug| self.note("tracing", format!("{field}={value:?}")));
    }
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut said = format!("{} {}", event.metadata().level(), event.metadata().target());
        event.record(&mut |field: &Field, value: &dyn fmt::Debug| write!(said, " {field}={value:?}").unwrap());
        self.note("tracing", said);
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// A broker's URL with the canary in it.
fn secret(url: &str) -> String {
    url.replacen("://", &format!("://{URL_USER}:{URL_PASSWORD}@"), 1)
}

fn client_of(urls: &[String], tls: Tls) -> ClientBuilder {
    Client::builder("secrets")
        .brokers(urls)
        .expect("valid")
        .credentials(BUILDER_USER, BUILDER_PASSWORD)
        .resolver(|_: Arc<str>| async { Ok(vec![IpAddr::from([127, 0, 0, 1])]) })
        .tls(tls)
}

/// What is wrong with a description, in words.
fn refusals(heard: &Heard, ours: &Authority, us: &Issued, url: &str) {
    let tls = || Tls::new().ca_pem(ours.pem()).client_pem(&us.certificate, &us.key);
    for url in [
        secret("http://h"),
        secret("mqtt://h:x"),
        secret("mqtt://h/path"),
        secret("mqtt://"),
        secret("mqtt://h?version=6"),
    ] {
        heard.error("build", &Client::builder("secrets").brokers([&url]).unwrap_err());
        heard.error("build", &Address::parse(&url).unwrap_err());
    }
    let address = Address::parse(&secret("mqtt://h")).unwrap();
    assert!(address.credentials.is_some());
    let given = Credentials::new(BUILDER_USER, BUILDER_PASSWORD);
    heard.note("broker", format!("{address:?} {:?} {} {given:?}", address.broker, address.broker));
    let repeated = [secret("mqtt://h"), secret("mqtt://h")];
    let torn = us.key.replace("-----END", "-----");
    for builder in [
        Client::builder("secrets").brokers(&repeated).unwrap(),
        Client::builder("secrets").brokers([secret("mqtt://a?version=5"), secret("mqtt://b?version=3.1.1")]).unwrap(),
        client_of(&[url.to_owned()], tls().client_pem(&us.certificate, torn)),
        client_of(&[url.to_owned()], tls().client_pem(&ours.issue(&["other"]).certificate, &us.key)),
        client_of(&[url.to_owned()], tls().client_pem(&us.key, &us.key)),
        client_of(&[url.to_owned()], tls().ca_pem(&us.key)),
        client_of(&[url.to_owned()], tls().client_files("/absent/certificate", "/absent/key")),
        client_of(&["mqtt://h".to_owned()], tls()),
        client_of(&[url.to_owned()], tls()).will(Message::new("#", PAYLOAD)),
    ] {
        heard.note("builder", format!("{builder:?} {builder:#?}"));
        heard.error("build", &builder.build().unwrap_err());
    }
}

/// What a client says of itself now.
fn look(heard: &Heard, client: &Client) {
    heard.note("client", format!("{client:?} {client:#?}"));
    heard.note("status", format!("{:?}", client.status()));
    heard.note("stats", format!("{:?}", client.stats()));
}

async fn publish_and_subscribe(heard: &Heard, client: &Client) {
    heard.error("publish", &client.publish(Message::new("a/#", PAYLOAD)).await.unwrap_err());
    let property = Message::new("a", PAYLOAD).user_property("a", "b");
    heard.error("publish", &client.try_publish(property).unwrap_err());
    heard.error("subscribe", &client.subscribe("a/#/b", Qos::AtLeastOnce).await.unwrap_err());
    heard.error("subscribe", &client.unsubscribe("never").await.unwrap_err());
}

#[tokio::test]
async fn no_secret_is_in_anything_a_client_says_of_itself() {
    let heard = Heard::default();
    let _subscriber = tracing::subscriber::set_default(heard.clone());
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let us = ours.issue(&["press-7"]);
    let refuses = ScriptedBroker::start(Script::new().connack(Connack::Refuse(4))).await.unwrap();
    let (absent, plain, behind, untrusted) = (broker().await, broker().await, broker().await, broker().await);
    absent.stop();
    let untrusted = Front::start(untrusted.addr(), &other.issue(&[HOST]), None).await;
    let secured = Front::start(behind.addr(), &ours.issue(&[HOST]), Some(&ours)).await;
    refusals(&heard, &ours, &us, &secured.url());

    // Refused for its password, not there, of another authority, then one that works, and one to fail over to.
    let urls =
        [secret(&refuses.url()), secret(&absent.url()), secret(&untrusted.url()), plain.url(), secret(&secured.url())];
    let tls = Tls::new().ca_pem(ours.pem()).client_pem(&us.certificate, &us.key);
    let will = Message::new("a", PAYLOAD);
    let builder =
        client_of(&urls, tls).will(will).on_connect(Message::new("b", PAYLOAD)).observer(Arc::new(heard.clone()));
    heard.note("builder", format!("{builder:?} {builder:#?}"));
    let client = builder.build().unwrap();
    let mut events = client.events();
    let mut story = client.events();
    let listening = heard.clone();
    let listener = tokio::spawn(async move {
        while let Some(event) = story.next().await {
            listening.note("events", format!("{event:?} {event:#?}"));
        }
    });
    let subscription = client.subscribe("a", Qos::AtLeastOnce).await.unwrap();
    heard.note("client", format!("{subscription:?}"));
    for serving in [&plain, &behind] {
        let receipt = client.publish(Message::new("a", PAYLOAD)).await.unwrap();
        heard.note("client", format!("{receipt:?}"));
        let outcome = within("an outcome", receipt.acked()).await;
        assert!(outcome.is_acked());
        heard.note("publish", format!("{outcome:?}"));
        publish_and_subscribe(&heard, &client).await;
        look(&heard, &client);
        serving.stop();
        event(&mut events, "the end of a connection", |event| {
            matches!(event, Event::Disconnected { .. }).then_some(())
        })
        .await;
    }
    drop(client.try_publish(Message::new("a", PAYLOAD)).unwrap());
    assert_eq!(within("the end", client.close(Duration::ZERO)).await.undelivered.len(), 1);
    heard.error("publish", &client.publish(Message::new("a", PAYLOAD)).await.unwrap_err());
    heard.error("subscribe", &client.subscribe("a", Qos::AtLeastOnce).await.unwrap_err());
    look(&heard, &client);
    within("the last event", listener).await.unwrap();

    // They were sent, or there was nothing to tell.
    let user = |broker: &ScriptedBroker| broker.connects().first().and_then(|connect| connect.username.clone());
    assert_eq!(
        [&refuses, &plain, &behind].map(user),
        [URL_USER, BUILDER_USER, URL_USER].map(|user| Some(user.to_owned()))
    );
    for source in ["events", "observer", "tracing"] {
        for told in
            ["Parked", "ConnectFailed", "not signed by a trusted", "FailedOver", "Disconnected", "Connected", "Closed"]
        {
            assert!(heard.of(source).contains(told), "{source} did not hear of {told}: {}", heard.of(source));
        }
    }
    nothing_secret(&heard, &us);
}

fn nothing_secret(heard: &Heard, us: &Issued) {
    let decoded = URL_PASSWORD.replace("%40", "@");
    let mut secrets = vec![URL_USER, URL_PASSWORD, &decoded, BUILDER_USER, BUILDER_PASSWORD, PAYLOAD];
    let key = us.key.lines().filter(|line| !line.starts_with("-----"));
    secrets.extend(key);
    assert!(secrets.len() > 7, "there is a key");
    // A list of bytes is as good as the text.
    let numbers: Vec<String> = secrets.iter().map(|secret| format!("{:?}", &secret.as_bytes()[..8])).collect();
    let numbers: Vec<&str> = numbers.iter().map(|bytes| bytes.trim_matches(['[', ']'])).collect();
    for source in [
        "events",
        "observer",
        "tracing",
        "client",
        "builder",
        "broker",
        "build",
        "publish",
        "subscribe",
        "status",
        "stats",
    ] {
        let said = heard.of(source);
        assert!(!said.trim().is_empty(), "{source} said nothing");
        let closely = said.split_whitespace().collect::<Vec<_>>().join(" ");
        for secret in secrets.iter().chain(&numbers) {
            assert!(!said.contains(secret) && !closely.contains(secret), "{source} tells {secret}: {said}");
        }
    }
}
