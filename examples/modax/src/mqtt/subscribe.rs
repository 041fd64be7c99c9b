//! `modax sub`: one line for each message, acknowledged once the line is flushed.

use std::sync::Arc;

use modax_mqtt_failover::dedup::{DedupStats, Verdict};
use modax_mqtt_failover::{Delivery, Received};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::once::once;
use super::outcome::{put_payload, put_properties};
use super::{GOODBYE, builder, event, level, qos, start};
use crate::Exit;
use crate::args::SubArgs;
use crate::output::{self, Output};
use crate::signal::Interrupt;

/// Prints messages until `--count` is reached or a signal comes.
pub(crate) async fn subscribe(args: SubArgs, output: Output) -> Exit {
    let client = match start(builder(&args.brokers)) {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    let Ok(mut interrupt) = Interrupt::listen() else { return Exit::Failed };
    let events = client.events();
    let mut subscription = match client.subscribe(&args.filter, qos(args.qos)).await {
        Ok(subscription) => subscription,
        Err(error) => {
            output::bad_usage("--filter", &error);
            return Exit::Usage;
        }
    };
    tokio::spawn(event::print(events));
    let mut dedup = args.dedup.map(|fields| once(fields, args.dedup_window));
    let mut received = 0;
    let last_flushed = Arc::new(Notify::new());
    let exit = loop {
        let item = tokio::select! {
            item = subscription.next() => item,
            // The message that would find it out may never come.
            () = output.closed() => break Exit::Failed,
            () = interrupt.wait() => break if args.count.is_none() { Exit::Done } else { Exit::Failed },
        };
        match item {
            Some(Received::Delivery(delivery)) => {
                let verdict = dedup.as_mut().map(|dedup| dedup.check_delivery(&delivery));
                if verdict == Some(Verdict::Repeat) {
                    if skip(delivery, &output).await {
                        continue;
                    }
                    break Exit::Failed;
                }
                received += 1;
                let is_last = args.count == Some(received);
                if !print(delivery, &output, is_last.then(|| last_flushed.clone())).await {
                    break Exit::Failed;
                }
                if is_last {
                    last_flushed.notified().await;
                    break Exit::Done;
                }
            }
            Some(Received::Gap { reason, .. }) => output::event("gap", json!({ "reason": format!("{reason:?}") })),
            Some(_) => {}
            // The broker refused the subscription; the event said so.
            None => break Exit::Failed,
        }
    };
    if let Some(dedup) = dedup {
        report(dedup.stats());
    }
    // The stream is dropped last: dropped earlier it would withdraw the subscription from the broker's session, and what
    // comes until the next start with this client id would not be kept.
    let _ = timeout(GOODBYE * 2, client.close(GOODBYE)).await;
    drop(subscription);
    exit
}

/// What could not be told apart was printed: it is counted here, so that nobody takes it for known.
fn report(stats: DedupStats) {
    output::event(
        "dedup",
        json!({
            "first": stats.first,
            "repeats": stats.repeats,
            "too_old_to_tell": stats.too_old,
            "unidentified": stats.unidentified,
            "forgotten": stats.forgotten,
        }),
    );
}

/// False when nobody reads our stdout any more: then the message stays unacknowledged.
async fn print(delivery: Delivery, output: &Output, last: Option<Arc<Notify>>) -> bool {
    let mut line = json!({
        "topic": delivery.topic(),
        "qos": level(delivery.qos()),
        "duplicate": delivery.is_duplicate(),
    });
    put_properties(&mut line, delivery.user_properties());
    put_payload(&mut line, delivery.payload());
    let flushed = move || {
        delivery.ack();
        if let Some(last) = last {
            last.notify_one();
        }
    };
    output.line_then(&line, flushed).await.is_ok()
}

/// Acknowledges a repeat, but not before the line of its first copy is flushed: a crash in between would lose both.
async fn skip(delivery: Delivery, output: &Output) -> bool {
    output::event("repeat", json!({ "topic": delivery.topic() }));
    output.then(move || delivery.ack()).await.is_ok()
}
