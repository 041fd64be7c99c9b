//! `modax pub`: one line in, one outcome out.
//!
//! Messages are admitted in the order of their lines, and with a disk queue many are on their way to the disk at once:
//! each waits there for others, and would otherwise hold up the next line.

use std::collections::BTreeSet;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt as _, StreamExt as _};
use modax_mqtt_failover::{Client, Message, Outcome, PublishError, Queue, Receipt, Recovered};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::outcome::{describe, put_payload};
use super::{GOODBYE, builder, event, line, start};
use crate::Exit;
use crate::args::PubArgs;
use crate::input;
use crate::output::{self, Output, OutputClosed, chain};
use crate::signal::Interrupt;

/// For the client to end: it waits up to 5 s for the disk to take its last records.
const LAST_COMMIT: Duration = Duration::from_secs(8);
/// How long outcomes are waited for after a signal: enough for a broker that answers.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Publishes the lines of stdin.
pub(crate) async fn publish(args: PubArgs, output: Output) -> Exit {
    let described = builder(&args.brokers).map(|builder| builder.queue(queue(&args)).stamping(args.stamp));
    let client = match start(described) {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    tokio::spawn(event::print(client.events()));
    let Ok(mut interrupt) = Interrupt::listen() else { return Exit::Failed };
    // What stood in a damaged file was admitted once, and has no outcome.
    let is_whole = client.stats().damaged == 0;
    let mut run = Run {
        args,
        client,
        output,
        open: BTreeSet::new(),
        writing: FuturesOrdered::new(),
        outcomes: JoinSet::new(),
        leaves: Arc::default(),
        all_acked: is_whole,
        end: None,
    };
    run.replay();
    let read = run.take_lines(&mut interrupt).await;
    let finished = match read {
        Ok(()) => run.finish(&mut interrupt).await,
        Err(OutputClosed) => Err(OutputClosed),
    };
    if finished.is_err() {
        // Nobody can be told, but a queue on disk is to know.
        let _ = timeout(LAST_COMMIT, run.client.close(Duration::ZERO)).await;
    }
    if finished.is_ok() && run.all_acked { Exit::Done } else { Exit::Failed }
}

fn queue(args: &PubArgs) -> Queue {
    let queue = args.queue.as_ref().map_or_else(Queue::memory, Queue::disk);
    args.limits.of(queue.fsync_every(args.fsync_every))
}

/// Whose final line it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    /// A message that an earlier run left on disk: its place there, and its topic.
    Replayed(u64, Arc<str>),
    /// A line of this run, by its number.
    Line(u64),
}

impl Whose {
    /// The beginning of the line.
    fn head(&self) -> Value {
        match self {
            Self::Replayed(sequence, topic) => json!({ "replayed": true, "sequence": sequence, "topic": &**topic }),
            Self::Line(seq) => json!({ "seq": seq }),
        }
    }
}

/// One message's end, not yet told on stdout.
struct Known {
    whose: Whose,
    line: Value,
    is_acked: bool,
}

/// What `publish` said of one message.
struct Published {
    seq: u64,
    /// For `--report-admitted`.
    payload: Option<Bytes>,
    result: Result<Receipt, PublishError>,
}

type Publishing = Pin<Box<dyn Future<Output = Published> + Send>>;

/// Where a message is after its turn has come.
enum Turn {
    /// Known at once.
    Ended(Published),
    /// It has its place and is on its way to the disk.
    Writing(Publishing),
    /// A signal came while the queue was full.
    Interrupted,
}

/// One thing that happened to messages on their way.
enum Step {
    Published(Published),
    /// `None`: the task that waited for it is gone.
    Known(Option<Known>),
}

struct Run {
    args: PubArgs,
    client: Client,
    output: Output,
    /// Messages without an outcome.
    open: BTreeSet<Whose>,
    writing: FuturesOrdered<Publishing>,
    outcomes: JoinSet<Known>,
    /// Set when the client is closed: what it leaves then stays on disk. A QoS 0 message that went down with its connection
    /// before does not.
    leaves: Arc<AtomicBool>,
    all_acked: bool,
    /// After a signal: when outcomes are waited for no longer.
    end: Option<Instant>,
}

impl Run {
    /// Waits for the outcomes of what an earlier run left as well.
    fn replay(&mut self) {
        let recovered = self.client.recovered();
        if !recovered.is_empty() {
            output::event("replaying", json!({ "messages": recovered.len() }));
        }
        for Recovered { topic, receipt, .. } in recovered {
            let whose = Whose::Replayed(receipt.id().number(), topic);
            self.open.insert(whose.clone());
            self.await_outcome(whose, receipt);
        }
    }

    fn await_outcome(&mut self, whose: Whose, receipt: Receipt) {
        let leaves = self.args.queue.is_some().then(|| Arc::clone(&self.leaves));
        self.outcomes.spawn(outcome(whose, receipt, leaves));
    }

    /// Reads as fast as the queue admits, until the end of input or a signal.
    async fn take_lines(&mut self, interrupt: &mut Interrupt) -> Result<(), OutputClosed> {
        let mut lines = input::lines();
        let output = self.output.clone();
        loop {
            let line = tokio::select! {
                // Outcomes that wait for a slow reader are not in the client's queue any more: nothing else bounds them.
                line = async { output.room().await; lines.recv().await } => line,
                () = interrupt.wait() => break,
                Some(step) = self.step() => {
                    self.apply(step).await?;
                    continue;
                }
            };
            let Some(line) = line else { return Ok(()) };
            if !self.take(line.seq, line.bytes, interrupt).await? {
                break;
            }
        }
        // What was read ahead is owed a line as well; what is still in the pipe was never ours.
        lines.close();
        while let Some(line) = lines.recv().await {
            self.refuse(line.seq, "undelivered", "interrupted").await?;
        }
        self.interrupted();
        Ok(())
    }

    fn interrupted(&mut self) {
        output::event("interrupted", json!({ "waiting_for": self.open.len() }));
        self.end = Some(Instant::now() + LAST_WORDS);
    }

    /// Admits one line, or tells its final line where it cannot be published. False when a signal came while the queue
    /// was full.
    async fn take(
        &mut self,
        seq: u64,
        bytes: Result<Vec<u8>, String>,
        interrupt: &mut Interrupt,
    ) -> Result<bool, OutputClosed> {
        let message = match bytes.and_then(|bytes| line::message(&self.args, bytes)) {
            Ok(message) => message,
            Err(error) => {
                self.refuse(seq, "rejected", &error).await?;
                return Ok(true);
            }
        };
        match self.turn(seq, message, interrupt).await? {
            Turn::Ended(published) => {
                self.open.insert(Whose::Line(seq));
                self.apply(Step::Published(published)).await?;
            }
            Turn::Writing(publishing) => {
                self.open.insert(Whose::Line(seq));
                self.writing.push_back(publishing);
            }
            Turn::Interrupted => {
                self.refuse(seq, "undelivered", "interrupted").await?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Gives the message its place in the queue, as soon as there is room.
    async fn turn(&mut self, seq: u64, message: Message, interrupt: &mut Interrupt) -> Result<Turn, OutputClosed> {
        let patience = self.args.expires_in.and_then(|time| Instant::now().checked_add(time));
        loop {
            let mut publishing = self.publishing(seq, message.clone());
            // The first look admits or refuses; nothing of it waits for room.
            let Some(published) = (&mut publishing).now_or_never() else { return Ok(Turn::Writing(publishing)) };
            let is_late = patience.is_some_and(|patience| patience <= Instant::now());
            let waits = self.args.limits.waits() && matches!(published.result, Err(PublishError::Full));
            if is_late || !waits {
                return Ok(Turn::Ended(published));
            }
            let late = async {
                match patience {
                    Some(patience) => sleep_until(patience).await,
                    None => pending().await,
                }
            };
            // Whatever fills the queue has an outcome that is waited for here, so room is not made unnoticed.
            tokio::select! {
                () = interrupt.wait() => return Ok(Turn::Interrupted),
                Some(step) = self.step() => self.apply(step).await?,
                () = late => {}
            }
        }
    }

    fn publishing(&self, seq: u64, message: Message) -> Publishing {
        let client = self.client.clone();
        let payload = self.args.report_admitted.then(|| message.payload().clone());
        Box::pin(async move { Published { seq, payload, result: client.publish(message).await } })
    }

    /// The next thing that happens to messages on their way; `None` when there are none. Cancel safe.
    async fn step(&mut self) -> Option<Step> {
        let Self { writing, outcomes, .. } = self;
        tokio::select! {
            Some(published) = writing.next() => Some(Step::Published(published)),
            Some(known) = outcomes.join_next() => Some(Step::Known(known.ok())),
            else => None,
        }
    }

    async fn apply(&mut self, step: Step) -> Result<(), OutputClosed> {
        match step {
            Step::Published(Published { seq, payload, result: Ok(mut receipt) }) => {
                // What a full queue did not let in was never on disk.
                let is_in = receipt.try_outcome() != Some(Outcome::Shed);
                if let Some(payload) = payload.filter(|_| is_in) {
                    let mut line = json!({ "seq": seq, "outcome": "admitted" });
                    if self.args.queue.is_some() {
                        line["sequence"] = json!(receipt.id().number());
                    }
                    put_payload(&mut line, &payload);
                    self.output.line(&line).await?;
                }
                self.await_outcome(Whose::Line(seq), receipt);
                Ok(())
            }
            Step::Published(Published { seq, result: Err(error), .. }) => {
                self.open.remove(&Whose::Line(seq));
                let mut line = refusal(seq, "rejected", &chain(&error));
                if error.outcome_unknown() {
                    line["maybe_kept"] = json!(true);
                }
                self.fail(line).await
            }
            Step::Known(Some(known)) => {
                // Before the line is written, which may take long: it is not to be told twice.
                self.open.remove(&known.whose);
                self.all_acked &= known.is_acked;
                self.output.line(&known.line).await
            }
            Step::Known(None) => {
                self.all_acked = false;
                Ok(())
            }
        }
    }

    async fn refuse(&mut self, seq: u64, outcome: &str, error: &str) -> Result<(), OutputClosed> {
        self.fail(refusal(seq, outcome, error)).await
    }

    async fn fail(&mut self, line: Value) -> Result<(), OutputClosed> {
        self.all_acked = false;
        self.output.line(&line).await
    }

    /// Waits for the outcomes, at most `--max-wait` or, after a signal, [`LAST_WORDS`]; then closes and tells the rest.
    async fn finish(&mut self, interrupt: &mut Interrupt) -> Result<(), OutputClosed> {
        let deadline = Instant::now() + self.args.max_wait;
        loop {
            let end = self.end.map_or(deadline, |end| end.min(deadline));
            let step = tokio::select! {
                step = timeout_at(end, self.step()) => step,
                () = interrupt.wait() => {
                    if self.end.is_some() {
                        break;
                    }
                    self.interrupted();
                    continue;
                }
            };
            match step {
                Ok(Some(step)) => self.apply(step).await?,
                Ok(None) | Err(_) => break,
            }
        }
        // Nothing waits any more, or nothing may wait any longer: what is left resolves as undelivered.
        self.leaves.store(true, Ordering::Relaxed);
        let patience = if self.open.is_empty() { GOODBYE } else { Duration::ZERO };
        let _ = timeout(LAST_COMMIT, self.client.close(patience)).await;
        while let Ok(Some(step)) = timeout(GOODBYE, self.step()).await {
            self.apply(step).await?;
        }
        // A disk that hangs may have them all the same.
        for whose in std::mem::take(&mut self.open) {
            let mut line = whose.head();
            for field in ["broker", "attempts", "latency_us"] {
                line[field] = Value::Null;
            }
            line["outcome"] = json!("unknown");
            line["error"] = json!("the client did not tell an outcome in time");
            self.fail(line).await?;
        }
        Ok(())
    }
}

/// The final line of what was not admitted.
fn refusal(seq: u64, outcome: &str, error: &str) -> Value {
    json!({ "seq": seq, "outcome": outcome, "broker": null, "attempts": 0, "latency_us": null, "error": error })
}

/// Waits for the outcome. A message that is left on disk says so: the next start sends it.
async fn outcome(whose: Whose, receipt: Receipt, leaves_on_disk: Option<Arc<AtomicBool>>) -> Known {
    let outcome = receipt.acked().await;
    let mut line = describe(whose.head(), &outcome);
    let is_left = leaves_on_disk.is_some_and(|leaves| leaves.load(Ordering::Relaxed));
    if is_left && matches!(outcome, Outcome::Undelivered { .. }) {
        line["on_disk"] = json!(true);
    }
    Known { whose, line, is_acked: outcome.is_acked() }
}
