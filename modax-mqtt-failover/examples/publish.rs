//! Publishes numbered readings until Ctrl-C, and says what became of each.
//!
//! `cargo run --example publish -- mqtt://127.0.0.1:1883 mqtt://127.0.0.1:1884`

use std::time::Duration;

use modax_mqtt_failover::{Client, Message};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::builder("publish-example").brokers(std::env::args().skip(1))?.build()?;
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    for number in 0_u64.. {
        tokio::select! {
            _ = tick.tick() => {}
            _ = tokio::signal::ctrl_c() => break,
        }
        let reading = Message::new("example/readings", number.to_string()).expires_in(Duration::from_secs(60));
        let receipt = client.publish(reading).await?;
        tokio::spawn(async move { println!("{number}: {:?}", receipt.acked().await) });
    }
    let left = client.close(Duration::from_secs(5)).await;
    println!("{} not delivered", left.undelivered.len());
    Ok(())
}
