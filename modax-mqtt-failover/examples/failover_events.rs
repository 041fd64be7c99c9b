//! Publishes ten times a second and prints every event: kill or stop a broker and watch.
//!
//! `cargo run --example failover_events -- mqtt://127.0.0.1:1883 mqtt://127.0.0.1:1884`

use std::time::Duration;

use modax_mqtt_failover::{Client, Event, Message, Queue, WhenFull};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::builder("failover-events-example")
        .brokers(std::env::args().skip(1))?
        .queue(Queue::memory().max_messages(1000).when_full(WhenFull::ShedOldest))
        .build()?;
    let mut events = client.events();
    let publisher = client.clone();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        loop {
            tick.tick().await;
            match publisher.publish(Message::new("example/tick", "")).await {
                // The counters say how it went; nobody waits for this one.
                Ok(receipt) => drop(receipt),
                Err(error) => return eprintln!("{error}"),
            }
        }
    });
    while let Some(event) = events.next().await {
        match event {
            Event::FailedOver { from, to, detected, outage } => {
                println!("{from:?} -> {to}: noticed after {detected:?}, back after {outage:?}");
            }
            other => println!("{other:?}"),
        }
        println!("    {:?}", client.stats());
    }
    Ok(())
}
