//! Publishes what it reads from standard input through a queue on disk: kill it at any moment, start it again, and
//! nothing that was reported as admitted is missing.
//!
//! `seq 1 100000 | cargo run --example disk_queue -- /var/tmp/outgoing mqtt://127.0.0.1:1883`

use std::{io::BufRead, time::Duration};

use modax_mqtt_failover::{Client, Message, Queue};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("a directory first, then the brokers' URLs")?;
    let client = Client::builder("disk-queue-example")
        .brokers(arguments)?
        .queue(Queue::disk(directory).max_messages(1_000_000).max_bytes(256 << 20))
        .build()?;
    println!("{} messages from an earlier run", client.stats().queue_messages);
    for line in std::io::stdin().lock().lines() {
        // The receipt is let go: the disk remembers, and the counters say how it goes.
        drop(client.publish(Message::new("example/lines", line?)).await?);
    }
    let left = client.close(Duration::from_secs(10)).await;
    println!("{} left on disk for the next run", left.undelivered.len());
    Ok(())
}
