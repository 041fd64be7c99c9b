//! `modax write`, `modax read` and `modax topology`.

pub(crate) mod param;
mod read;
mod topology;
mod value;

use std::sync::Arc;
use std::time::{Duration, Instant};

use modax_db_router::{ConfigError, Router};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::param::Statement;
pub(crate) use self::read::read;
pub(crate) use self::topology::topology;
use crate::Exit;
use crate::args::{DatabaseArgs, WriteArgs};
use crate::input;
use crate::output::{self, Output, OutputClosed, chain};
use crate::signal::Interrupt;

/// How long the connections may take to close.
const GOODBYE: Duration = Duration::from_secs(2);
/// How long statements under way may take to end after a signal. What still runs is then cut off, and told as what the
/// router knows of it.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Builds a router; says on stderr what is wrong with the configuration.
pub(crate) fn router(args: &DatabaseArgs, deadline: Duration) -> Option<Router> {
    let build = || -> Result<Router, ConfigError> {
        let mut builder = Router::builder(&args.url)?.acquire_deadline(deadline);
        if !args.patroni.is_empty() {
            builder = builder.patroni(&args.patroni)?;
        }
        builder.build()
    };
    match build() {
        Ok(router) => {
            tokio::spawn(topology::print_events(router.events()));
            Some(router)
        }
        Err(error) => {
            let flag = match error {
                ConfigError::Patroni { .. } => "--patroni",
                _ => "--url",
            };
            output::bad_usage(flag, &error);
            None
        }
    }
}

/// Closes without letting a hung node hold up the end of the command.
pub(crate) async fn close(router: &Router) {
    let _ = timeout(GOODBYE * 2, router.close(GOODBYE)).await;
}

/// Runs each line of stdin as one transaction.
pub(crate) async fn write(args: WriteArgs, output: Output) -> Exit {
    let Some(router) = router(&args.database, args.deadline) else { return Exit::Usage };
    let deadline = args.deadline;
    let work = {
        let router = router.clone();
        move |seq, bytes: Result<Vec<u8>, String>| {
            let router = router.clone();
            async move { write_line(&router, deadline, seq, bytes).await }
        }
    };
    let exit = run_lines(&router, usize::from(args.concurrency), &output, work, not_committed).await;
    close(&router).await;
    exit
}

/// Runs `work` on up to `concurrency` lines at once; `refuse` makes the line of an input that is not run at all.
async fn run_lines<W, F, L>(
    router: &Router,
    concurrency: usize,
    output: &Output,
    work: W,
    refuse: fn(u64, &str) -> L,
) -> Exit
where
    W: Fn(u64, Result<Vec<u8>, String>) -> F,
    F: Future<Output = (bool, L)> + Send + 'static,
    L: Serialize + Send + Sync + 'static,
{
    let Ok(mut interrupt) = Interrupt::listen() else { return Exit::Failed };
    let mut lines = input::lines();
    let mut running: JoinSet<Result<bool, OutputClosed>> = JoinSet::new();
    let mut good = true;
    let mut more = true;
    let mut end: Option<Instant> = None;
    while more || !running.is_empty() {
        tokio::select! {
            Some(done) = running.join_next() => match done {
                Ok(Ok(done)) => good &= done,
                Ok(Err(OutputClosed)) | Err(_) => return Exit::Failed,
            },
            line = lines.recv(), if more && running.len() < concurrency => match line {
                Some(line) => {
                    let (task, output) = (work(line.seq, line.bytes), output.clone());
                    running.spawn(async move {
                        let (good, line) = task.await;
                        output.line(&line).await.map(|()| good)
                    });
                }
                None => more = false,
            },
            () = interrupt.wait() => {
                if end.is_some() {
                    // The second signal: what still runs has an outcome nobody waits for.
                    return Exit::Failed;
                }
                output::event("interrupted", json!({ "running": running.len() }));
                good = false;
                more = false;
                end = Some(Instant::now() + LAST_WORDS + GOODBYE);
                // Ends what runs, each with its own outcome: before COMMIT nothing happened, behind it the router asks.
                let router = router.clone();
                tokio::spawn(async move { router.close(LAST_WORDS).await });
                lines.close();
                while let Some(line) = lines.recv().await {
                    if output.line(&refuse(line.seq, "interrupted")).await.is_err() {
                        return Exit::Failed;
                    }
                }
            }
            // What still runs is cut off: nobody can be told of it.
            () = output.closed() => return Exit::Failed,
            () = at(end) => return Exit::Failed,
        }
    }
    if good { Exit::Done } else { Exit::Failed }
}

async fn at(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end.into()).await,
        None => std::future::pending().await,
    }
}

fn not_committed(seq: u64, error: &str) -> Value {
    json!({ "seq": seq, "outcome": "not_committed", "node": null, "token": null, "latency_us": null, "error": error })
}

async fn write_line(router: &Router, deadline: Duration, seq: u64, bytes: Result<Vec<u8>, String>) -> (bool, Value) {
    let statement = match bytes.and_then(|bytes| Statement::parse(&bytes)) {
        Ok(statement) => Arc::new(statement),
        Err(error) => return (false, not_committed(seq, &error)),
    };
    let begun = Instant::now();
    let work = move |tx: modax_db_router::Tx| {
        let statement = statement.clone();
        async move { tx.execute(&statement.sql, &statement.params()).await }
    };
    match router.writer().deadline(deadline).run(work).await {
        Ok(written) => {
            let line = json!({
                "seq": seq,
                "outcome": "committed",
                "node": written.node.to_string(),
                "token": written.token.map(|token| token.to_string()),
                "latency_us": micros(begun),
                "rows": written.value,
                "attempts": written.attempts,
                "durability": format!("{:?}", written.durability).to_lowercase(),
            });
            (true, line)
        }
        Err(error) => {
            let mut line = not_committed(seq, &chain(&error));
            if error.outcome_unknown() {
                line["outcome"] = json!("unknown");
            }
            line["latency_us"] = json!(micros(begun));
            (false, line)
        }
    }
}

fn micros(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX)
}
