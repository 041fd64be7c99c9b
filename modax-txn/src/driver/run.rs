//! The relay's task: runs the statements and the sink for the state machine.

use std::{error::Error, future::Future, panic::AssertUnwindSafe, pin::Pin, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::{
    sync::{broadcast, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    connections::{BoxConnection, Connections},
    handle::RelayBuilder,
    store::{Retention, Store, Swept},
};
use crate::{
    event::{Event, Stats},
    message::{MessageId, OutgoingMessage},
    relay::{Answer, Dispatch, Input, Output, Statement},
    sink::{Sink, SinkError},
};

/// Most answers of the sink taken in one turn of the loop, so that the database and the timer get theirs.
const ANSWERS: usize = 256;

type Ran = (Option<BoxConnection>, Result<(Input, Swept), String>);
type Running = Pin<Box<dyn Future<Output = Ran> + Send>>;

struct Driver {
    machine: Dispatch,
    store: Arc<Store>,
    connections: Arc<dyn Connections>,
    connection: Option<BoxConnection>,
    sink: Arc<dyn Sink>,
    publish_timeout: Duration,
    database_timeout: Duration,
    events: broadcast::Sender<Event>,
    stats: watch::Sender<Stats>,
    publishes: JoinSet<(MessageId, Answer)>,
    running: Option<Running>,
}

/// Runs until it is stopped or dropped; answers whether it came to its orderly end.
pub(super) async fn run(
    settings: RelayBuilder,
    events: broadcast::Sender<Event>,
    stats: watch::Sender<Stats>,
    mut stop: watch::Receiver<Option<Instant>>,
) -> bool {
    // Names this relay's acquisitions of the lease: two relays never have the same, whatever they are called.
    let token = uuid::Uuid::new_v4();
    let retention =
        Retention { settled: settings.retention, parked: settings.parked_retention, inbox: settings.inbox_retention };
    let store = Store::new(&settings.schema, settings.owner, token, settings.config.lease, retention);
    let mut wake = settings.schema.wake.subscribe();
    let seed = token.as_u64_pair().0;
    let mut driver = Driver {
        machine: Dispatch::new(settings.config, seed, now()),
        store: Arc::new(store),
        connections: settings.connections,
        connection: None,
        sink: settings.sink,
        publish_timeout: settings.publish_timeout,
        database_timeout: settings.database_timeout,
        events,
        stats,
        publishes: JoinSet::new(),
        running: None,
    };
    driver.machine.handle_timeout(now());
    let mut deadline = None;
    while driver.carry_out() {
        let due = driver.machine.poll_timeout().map(Instant::from_std);
        let input = tokio::select! {
            input = answer_of(&mut driver.running), if driver.running.is_some() => {
                driver.running = None;
                Some(driver.ran(input))
            }
            Some(answered) = driver.publishes.join_next(), if !driver.publishes.is_empty() => answered.ok().map(into_input),
            Ok(()) = wake.changed() => Some(Input::Woken),
            changed = stop.changed(), if deadline.is_none() => {
                // Without a handle nobody wants the relay any more; the handle's drop ends this task, too.
                let Ok(()) = changed else { return false };
                deadline = *stop.borrow_and_update();
                Some(Input::Stop)
            }
            () = until(deadline) => return false,
            () = until(due) => None,
        };
        match input {
            Some(input) => driver.machine.handle_input(now(), input),
            None => driver.machine.handle_timeout(now()),
        }
        driver.take_answers();
    }
    true
}

/// The clock of the runtime, so that a test that pauses it pauses the relay.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

async fn answer_of(running: &mut Option<Running>) -> Ran {
    match running {
        Some(running) => running.await,
        None => std::future::pending().await,
    }
}

impl Driver {
    /// Carries out what the state machine asks for; false when it has stopped.
    fn carry_out(&mut self) -> bool {
        let mut goes_on = true;
        // Before the events: who hears of one may look at the counters next.
        let stats = self.machine.stats();
        self.stats.send_if_modified(|old| std::mem::replace(old, stats) != stats);
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Run(statement) => self.start(statement),
                Output::Publish { message, not_after } => {
                    let (sink, timeout) = (Arc::clone(&self.sink), self.publish_timeout);
                    self.publishes.spawn(publish(sink, message, not_after, timeout));
                }
                // A new set, not `abort_all`: an answer that is already there must not be taken for one to a later attempt.
                Output::Abort => self.publishes = JoinSet::new(),
                Output::Event(event) => self.tell(event),
                Output::Stopped => goes_on = false,
            }
        }
        goes_on
    }

    fn tell(&self, event: Event) {
        #[cfg(feature = "tracing")]
        tracing::debug!(target: "modax_txn", ?event);
        // Nobody listening is no fault.
        let _ = self.events.send(event);
    }

    fn start(&mut self, statement: Statement) {
        let (store, connections) = (Arc::clone(&self.store), Arc::clone(&self.connections));
        let connection = self.connection.take();
        let timeout = self.database_timeout;
        self.running = Some(Box::pin(async move {
            let work = async move {
                let connection = match connection {
                    Some(connection) => connection,
                    None => connections.connection().await.map_err(|e| reason(e.as_ref()))?,
                };
                match store.run(&connection, statement).await {
                    Ok(answer) => Ok((connection, answer)),
                    Err(error) => Err(reason(&error)),
                }
            };
            // A connection whose statement failed or was given up is dropped with it.
            match tokio::time::timeout(timeout, work).await {
                Ok(Ok((connection, answer))) => (Some(connection), Ok(answer)),
                Ok(Err(reason)) => (None, Err(reason)),
                Err(_) => (None, Err(format!("no answer within {timeout:?}"))),
            }
        }));
    }

    fn ran(&mut self, (connection, answer): Ran) -> Input {
        self.connection = connection;
        match answer {
            Ok((input, swept)) => {
                let Swept { messages, parked, inbox, idempotency_keys } = swept;
                if messages + inbox + idempotency_keys > 0 {
                    self.tell(Event::Swept { messages, inbox, idempotency_keys });
                }
                if parked > 0 {
                    self.tell(Event::ParkedDiscarded { messages: parked });
                }
                input
            }
            Err(reason) => Input::DatabaseFailed { reason },
        }
    }

    /// Takes what else the sink has answered, without a turn of the loop for each.
    fn take_answers(&mut self) {
        for _ in 0..ANSWERS {
            let Some(answered) = self.publishes.try_join_next() else { return };
            // An error is a task that was aborted: the state machine has forgotten its message.
            if let Ok(answered) = answered {
                self.machine.handle_input(now(), into_input(answered));
            }
        }
    }
}

fn into_input((id, answer): (MessageId, Answer)) -> Input {
    Input::Answered { id, answer }
}

/// One attempt. A panic of the sink is a failure of this message, not the end of the relay.
async fn publish(
    sink: Arc<dyn Sink>,
    message: OutgoingMessage,
    not_after: std::time::Instant,
    timeout: Duration,
) -> (MessageId, Answer) {
    let id = message.id;
    if now() >= not_after {
        return (id, Answer::Unsent);
    }
    let attempt = tokio::time::timeout(timeout, sink.publish(&message));
    let answer = match AssertUnwindSafe(attempt).catch_unwind().await {
        Ok(Ok(Ok(confirmation))) => Answer::Confirmed { by: confirmation.by },
        Ok(Ok(Err(error))) => match error {
            SinkError::Retry(cause) => Answer::Retry { reason: reason(cause.as_ref()) },
            SinkError::Reject { reason } | SinkError::Drop { reason } => Answer::Rejected { reason },
            SinkError::Expired => Answer::Expired,
        },
        Ok(Err(_)) => Answer::Retry { reason: format!("no answer from the sink within {timeout:?}") },
        Err(_) => Answer::Retry { reason: "the sink panicked".to_owned() },
    };
    (id, answer)
}

/// An error with its causes, on one line.
fn reason(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
