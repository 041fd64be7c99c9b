//! Publishes over TLS ten times a second, with a certificate of our own where one is given, and prints what happens:
//! replace the files while it runs, restart a broker, and watch.
//!
//! `cargo run --features ring --example tls -- ca.pem mqtts://broker-1.plant mqtts://broker-2.plant`
//! `cargo run --features ring --example tls -- ca.pem us.pem us.key mqtts://broker-1.plant`

use std::time::Duration;

use modax_mqtt_failover::{Client, Message, Queue, WhenFull, tls::Tls};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (urls, files): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|word| word.contains("://"));
    let tls = match &files[..] {
        [] => Tls::new(),
        [ca] => Tls::new().ca_file(ca),
        [ca, certificate, key] => Tls::new().ca_file(ca).client_files(certificate, key),
        _ => return Err("no file, an authority, or an authority, a certificate and its key".into()),
    };
    let client = Client::builder("tls-example")
        .brokers(urls)?
        .tls(tls)
        .queue(Queue::memory().max_messages(1000).when_full(WhenFull::ShedOldest))
        .build()?;
    let mut events = client.events();
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(event) => println!("{event:?}"),
                None => return Ok(()),
            },
            // The counters say how it went; nobody waits for this one.
            _ = tick.tick() => drop(client.publish(Message::new("example/tick", "")).await?),
        }
    }
}
