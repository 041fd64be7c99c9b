//! Writes ten rows a second, reads each back from a replica, and tells what happens to the cluster.
//!
//! `cargo run --example follow -- postgresql://modax@127.0.0.1:5601,127.0.0.1:5602/modax`
//!
//! Kill the primary and promote a standby while it runs.

use std::time::{Duration, Instant};

use modax_db_router::{ReadPreference, Router};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("give a connection URL with all servers")?;
    let router = Router::builder(&url)?.build()?;
    let mut events = router.events();
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            println!("event: {event:?}");
        }
    });
    router.execute("CREATE TABLE IF NOT EXISTS follow (number bigint, at timestamptz DEFAULT now())", &[]).await?;
    for number in 0_i64.. {
        let began = Instant::now();
        match router.execute("INSERT INTO follow (number) VALUES ($1)", &[&number]).await {
            Ok(written) => {
                let mut read = router.read(ReadPreference::PreferReplica);
                if let Some(token) = &written.token {
                    read = read.at_least(token);
                }
                let found = read.query("SELECT count(*) FROM follow WHERE number = $1", &[&number]).await;
                let from = found.as_ref().map_or_else(ToString::to_string, |rows| rows.node.to_string());
                println!(
                    "{number}: {:?} on {} in {:?} ({} attempts), read back from {from}",
                    written.durability,
                    written.node,
                    began.elapsed(),
                    written.attempts
                );
            }
            Err(error) if error.outcome_unknown() => println!("{number}: perhaps written: {error}"),
            Err(error) => println!("{number}: not written: {error}"),
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    router.close(Duration::from_secs(5)).await;
    Ok(())
}
