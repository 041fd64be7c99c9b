//! Code that users write must compile: in tasks, in handlers, with loops, with borrowed data.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use modax_db_router::{ConfigError, ReadPreference, Router, Tx, WriteError, WriteToken};

/// What a web framework asks of a handler: a future that is `Send` and owns what it uses.
type Handler = fn(Router, String) -> Pin<Box<dyn Future<Output = Result<String, WriteError>> + Send>>;

async fn store(router: Router, body: String) -> Result<String, WriteError> {
    let readings: BTreeMap<String, i64> = BTreeMap::from([(body.clone(), 1)]);
    let readings = &readings;
    let written = router
        .write(|tx| async move {
            let statement = tx.prepare("INSERT INTO t VALUES ($1, $2)").await?;
            for (name, value) in readings {
                tx.execute(&statement, &[name, value]).await?;
            }
            let rows = tx.query("SELECT 1", &[]).await?;
            Ok(rows.len())
        })
        .await?;
    Ok(format!("{} {:?} {}", written.value, written.token, body))
}

#[tokio::test]
async fn a_write_runs_in_a_task_and_in_a_handler() {
    let handler: Handler = |router, body| Box::pin(store(router, body));
    // Port 1 of loopback: nobody listens.
    let builder = Router::builder("postgresql://modax@127.0.0.1:1/modax").expect("url");
    let router = builder.acquire_deadline(Duration::from_millis(50)).build().expect("no server needs to be up");
    let task = tokio::spawn({
        let router = router.clone();
        async move { router.execute("INSERT INTO t VALUES ($1)", &[&1_i64]).await.map(|written| written.value) }
    });
    let owned = tokio::spawn({
        let router = router.clone();
        async move {
            let name = String::from("pump");
            router
                .writer()
                .attempts(1)
                .run(|tx: Tx| {
                    let name = name.clone();
                    async move { tx.execute("INSERT INTO t VALUES ($1)", &[&name]).await }
                })
                .await
        }
    });
    let read = tokio::spawn({
        let router = router.clone();
        async move {
            let token: Option<WriteToken> = None;
            let mut read = router.read(ReadPreference::PreferReplica).max_staleness(Duration::from_secs(5));
            if let Some(token) = &token {
                read = read.at_least(token);
            }
            read.deadline(Duration::from_millis(50)).query("SELECT 1", &[]).await.map(|rows| rows.rows.len())
        }
    });
    assert!(matches!(task.await.expect("task"), Err(WriteError::NoPrimary { .. })));
    assert!(matches!(owned.await.expect("task"), Err(WriteError::NoPrimary { .. })));
    assert!(read.await.expect("task").is_err());
    assert!(matches!(
        tokio::spawn(handler(router.clone(), "x".into())).await.expect("task"),
        Err(WriteError::NoPrimary { .. })
    ));

    // Everything ends at once when the router is closed.
    router.close(Duration::from_secs(1)).await;
    assert!(matches!(router.execute("SELECT 1", &[]).await, Err(WriteError::Closed)));
}

#[tokio::test]
async fn calls_beyond_the_limit_of_the_hold_are_refused_at_once() -> Result<(), ConfigError> {
    let router = Router::builder("postgresql://modax@127.0.0.1:1/modax")?.hold_limit(1).build()?;
    let held = tokio::spawn({
        let router = router.clone();
        async move { router.execute("SELECT 1", &[]).await.map(|_| ()) }
    });
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while router.stats().held == 0 && tokio::time::Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    assert!(matches!(router.execute("SELECT 1", &[]).await, Err(WriteError::HoldFull { limit: 1 })));
    assert_eq!(router.stats().shed, 1);
    let mut events = router.events();
    router.close(Duration::from_secs(1)).await;
    assert!(matches!(held.await, Ok(Err(WriteError::Closed))));
    assert_eq!(events.next().await, Some(modax_db_router::Event::Closed));
    assert_eq!(events.next().await, None);
    Ok(())
}
