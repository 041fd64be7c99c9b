//! Writes a row and a message in one transaction, several times, while a relay prints what arrives.
//!
//! ```sh
//! cargo run -p modax-txn --example outbox -- postgresql://postgres@127.0.0.1/postgres 20
//! ```
//! Start it twice: one of the two relays works, the other one takes over when the first is killed.

use std::{error::Error, ops::Deref, time::Duration};

use modax_txn::{
    BoxConnection, BoxError, Confirmation, Message, Outbox, OutgoingMessage, Relay, Schema, SinkError,
    tokio_postgres::{self, Client, NoTls},
};

struct Connection(Client);

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    // It ends with an error when the server goes away; the client's next statement reports it.
    tokio::spawn(connection);
    Ok(client)
}

async fn print(message: OutgoingMessage) -> Result<Confirmation, SinkError> {
    let text = String::from_utf8_lossy(&message.payload);
    println!("{} {text:?} (attempt {}, {:?} old, term {})", message.topic, message.attempt, message.age, message.epoch);
    Ok(Confirmation::new())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("usage: outbox URL [MESSAGES]")?;
    let messages: u32 = arguments.next().as_deref().unwrap_or("20").parse()?;

    let mut client = connect(&url).await?;
    let schema = Schema::new("modax_txn_example")?;
    let migrated = schema.migrate(&client).await?;
    println!("schema {} at version {}", schema.name(), migrated.version);
    let device = format!("CREATE TABLE IF NOT EXISTS {}.device (id text PRIMARY KEY, speed int)", schema.quoted());
    client.batch_execute(&device).await?;

    let connections = {
        let url = url.clone();
        move || {
            let url = url.clone();
            async move {
                let connection: BoxConnection = Box::new(Connection(connect(&url).await?));
                Ok::<_, BoxError>(connection)
            }
        }
    };
    let relay = Relay::builder(schema.clone(), connections, print).owner("example").spawn()?;

    let outbox = Outbox::new(schema.clone());
    let upsert = format!(
        "INSERT INTO {}.device VALUES ('d1', 1) ON CONFLICT (id) DO UPDATE SET speed = device.speed + 1 RETURNING speed",
        schema.quoted()
    );
    let mut last = None;
    for n in 0..messages {
        let tx = client.transaction().await?;
        // The row first: its lock is what keeps the messages of the device in order.
        let speed: i32 = tx.query_one(&upsert, &[]).await?.get(0);
        let message = Message::to("plant/d1/speed").key("d1").payload(speed.to_string());
        let receipt = outbox.enqueue(&tx, message).await?;
        if n % 5 == 4 {
            tx.rollback().await?;
            println!("rolled back: speed {speed} is never announced");
        } else {
            tx.commit().await?;
            outbox.committed(&receipt);
            last = Some(receipt.id());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    if let Some(id) = last {
        println!("{:?}", outbox.status(&client, id).await?);
    }
    let stopped = relay.stop(Duration::from_secs(5)).await;
    println!("stopped cleanly: {}; delivered here: {}", stopped.clean, stopped.stats.delivered);
    Ok(())
}
