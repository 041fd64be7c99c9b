//! Prints what arrives, and where something may be missing.
//!
//! `cargo run --example subscribe -- 'example/#' mqtt://127.0.0.1:1883 mqtt://127.0.0.1:1884`

use modax_mqtt_failover::{Client, Qos, Received};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let filter = arguments.next().ok_or("a filter first, then the brokers' URLs")?;
    let client = Client::builder("subscribe-example").brokers(arguments)?.build()?;
    let mut messages = client.subscribe(&filter, Qos::AtLeastOnce).await?;
    while let Some(received) = messages.next().await {
        match received {
            Received::Delivery(delivery) => {
                println!("{}: {}", delivery.topic(), String::from_utf8_lossy(delivery.payload()));
                // Only now: a crash before this line brings the message back.
                delivery.ack();
            }
            Received::Gap { reason } => eprintln!("messages may be missing: {reason:?}"),
            other => eprintln!("{other:?}"),
        }
    }
    Ok(())
}
