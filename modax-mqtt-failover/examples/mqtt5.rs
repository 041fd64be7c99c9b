//! MQTT 5: user properties, a will that waits, and what a broker's "no" looks like.
//!
//! `cargo run --example mqtt5 -- mqtt://127.0.0.1:1883 mqtt://127.0.0.1:1884`

use std::time::Duration;

use modax_mqtt_failover::{Client, Message, Outcome, Qos, Received, Version};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::builder("mqtt5-example")
        .brokers(std::env::args().skip(1))?
        .version(Version::V5)
        .session_expiry(Duration::from_secs(600))
        .will(Message::new("example/presence", "gone").retained())
        .will_delay(Duration::from_secs(5))
        .on_connect(Message::new("example/presence", "here").retained())
        .build()?;
    // One of a group: each message goes to one of those that read under this name.
    let mut work = client.subscribe("$share/example/example/work", Qos::AtLeastOnce).await?.auto_ack();

    let message = Message::new("example/work", "21.5").user_property("unit", "°C");
    let receipt = client.publish(message.expires_in(Duration::from_secs(60))).await?;
    match receipt.acked().await {
        Outcome::Acked { broker, .. } => println!("{broker} has it"),
        // Too large, not allowed, over a quota: the next message goes on.
        Outcome::Rejected { reason, .. } if reason.is_transient() => println!("later perhaps: {reason}"),
        Outcome::Rejected { reason, .. } => println!("never: {reason}"),
        other => println!("{other:?}"),
    }

    if let Some(Received::Delivery(delivery)) = work.next().await {
        let unit = delivery.user_properties().get("unit").unwrap_or("no unit");
        println!("{} {unit}", String::from_utf8_lossy(delivery.payload()));
    }
    client.close(Duration::from_secs(5)).await;
    Ok(())
}
