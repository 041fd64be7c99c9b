//! `modax sub`: one line for each message, acknowledged once the line is flushed.

use modax_mqtt_failover::dedup::{Dedup, DedupStats, Verdict};
use modax_mqtt_failover::{Delivery, Qos, Received, Subscription};
use serde_json::json;
use tokio::sync::oneshot;
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
    tokio::spawn(tell_granted(args.filter.clone(), subscription.granted()));
    let mut dedup = args.dedup.map(|fields| once(fields, args.dedup_window).max_producers(args.dedup_publishers));
    let exit = tokio::select! {
        exit = print_all(&mut subscription, &mut dedup, args.count, &output) => exit,
        // The message that would find it out may never come.
        () = output.closed() => Exit::Failed,
        // Also while a line waits for whoever reads our stdout.
        () = interrupt.wait() => if args.count.is_none() { Exit::Done } else { Exit::Failed },
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

/// Until `count` lines are flushed. Cancel safe: a message that is not printed stays unacknowledged.
async fn print_all(
    subscription: &mut Subscription,
    dedup: &mut Option<Dedup>,
    count: Option<u64>,
    output: &Output,
) -> Exit {
    let mut received = 0;
    while let Some(item) = subscription.next().await {
        match item {
            Received::Delivery(delivery) => {
                let verdict = dedup.as_mut().map(|dedup| dedup.check_delivery(&delivery));
                if verdict == Some(Verdict::Repeat) {
                    if skip(delivery, output).await {
                        continue;
                    }
                    return Exit::Failed;
                }
                received += 1;
                let Some(flushed) = print(delivery, output).await else { return Exit::Failed };
                if count == Some(received) {
                    return if flushed.await.is_ok() { Exit::Done } else { Exit::Failed };
                }
            }
            Received::Gap { reason, .. } => event::gap(reason),
            _ => {}
        }
    }
    // The broker refused the subscription; the event said so.
    Exit::Failed
}

/// What is published from now on is printed, or a gap is told.
async fn tell_granted(filter: String, granted: impl Future<Output = Option<Qos>>) {
    if let Some(qos) = granted.await {
        output::event("subscribed", json!({ "filter": filter, "qos": level(qos) }));
    }
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

/// Tells when the line is flushed; `None` when nobody reads our stdout any more. Then the message stays unacknowledged.
async fn print(delivery: Delivery, output: &Output) -> Option<oneshot::Receiver<()>> {
    let mut line = json!({
        "topic": delivery.topic(),
        "qos": level(delivery.qos()),
        "duplicate": delivery.is_duplicate(),
        "retained": delivery.is_retained(),
    });
    put_properties(&mut line, delivery.user_properties());
    put_payload(&mut line, delivery.payload());
    let (flushed, is_flushed) = oneshot::channel();
    let done = move || {
        delivery.ack();
        let _ = flushed.send(());
    };
    output.line_then(&line, done).await.is_ok().then_some(is_flushed)
}

/// Acknowledges a repeat, but not before the line of its first copy is flushed: a crash in between would lose both.
async fn skip(delivery: Delivery, output: &Output) -> bool {
    output::event("repeat", json!({ "topic": delivery.topic() }));
    output.then(move || delivery.ack()).await.is_ok()
}
