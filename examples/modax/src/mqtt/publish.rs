//! `modax pub`: one line in, one outcome out.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use modax_mqtt_failover::{Client, Message, Outcome, Receipt};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::{GOODBYE, base64, builder, qos, start};
use crate::Exit;
use crate::args::PubArgs;
use crate::input;
use crate::output::{self, Output, OutputClosed, chain};
use crate::signal::Interrupt;

/// A line that names its own topic or quality of service.
#[derive(Deserialize)]
struct Envelope {
    payload: String,
    #[serde(default)]
    topic: Option<String>,
    #[serde(default)]
    qos: Option<u8>,
}

/// Publishes the lines of stdin.
pub(crate) async fn publish(args: PubArgs, output: Output) -> Exit {
    let Some(client) = start(builder(&args.brokers)) else { return Exit::Usage };
    let Ok(mut interrupt) = Interrupt::listen() else { return Exit::Failed };
    let mut run = Run { args, client, output, open: BTreeSet::new(), outcomes: JoinSet::new(), all_acked: true };
    let read = run.take_lines(&mut interrupt).await;
    let finished = match read {
        Ok(()) => run.finish(&mut interrupt).await,
        Err(OutputClosed) => Err(OutputClosed),
    };
    if finished.is_ok() && run.all_acked { Exit::Done } else { Exit::Failed }
}

/// One message's end, already told on stdout.
struct Told {
    seq: u64,
    acked: bool,
    output: Result<(), OutputClosed>,
}

struct Run {
    args: PubArgs,
    client: Client,
    output: Output,
    /// Messages whose final line is still owed.
    open: BTreeSet<u64>,
    outcomes: JoinSet<Told>,
    all_acked: bool,
}

impl Run {
    /// Reads as fast as the queue admits, until the end of input or a signal.
    async fn take_lines(&mut self, interrupt: &mut Interrupt) -> Result<(), OutputClosed> {
        let mut lines = input::lines();
        loop {
            let line = tokio::select! {
                line = lines.recv() => line,
                () = interrupt.wait() => break,
                Some(told) = self.outcomes.join_next() => {
                    self.settle(told.ok())?;
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
        output::event("interrupted", json!({ "waiting_for": self.open.len() }));
        Ok(())
    }

    /// Admits one line; its final line is told by a task of its own, or at once where it cannot be published. False
    /// when a signal came while the queue was full.
    async fn take(
        &mut self,
        seq: u64,
        bytes: Result<Vec<u8>, String>,
        interrupt: &mut Interrupt,
    ) -> Result<bool, OutputClosed> {
        let message = match bytes.and_then(|bytes| self.message(bytes)) {
            Ok(message) => message,
            Err(error) => {
                self.refuse(seq, "rejected", &error).await?;
                return Ok(true);
            }
        };
        let payload = self.args.report_admitted.then(|| message.1.clone());
        let published = tokio::select! {
            published = self.client.publish(message.0) => published,
            () = interrupt.wait() => {
                self.refuse(seq, "undelivered", "interrupted").await?;
                return Ok(false);
            }
        };
        let receipt = match published {
            Ok(receipt) => receipt,
            Err(error) => {
                self.refuse(seq, "rejected", &chain(&error)).await?;
                return Ok(true);
            }
        };
        self.open.insert(seq);
        let output = self.output.clone();
        if let Some(payload) = payload {
            let mut line = json!({ "seq": seq, "outcome": "admitted" });
            put_payload(&mut line, &payload);
            output.line(&line).await?;
        }
        self.outcomes.spawn(tell(seq, receipt, output));
        Ok(true)
    }

    fn message(&self, bytes: Vec<u8>) -> Result<(Message, Bytes), String> {
        let envelope = if self.args.plain { None } else { serde_json::from_slice::<Envelope>(&bytes).ok() };
        let (topic, payload, level) = match envelope {
            Some(line) => (line.topic, Bytes::from(line.payload), line.qos.unwrap_or(self.args.qos)),
            // A mistake in a message's own fields must not send the whole line as a payload.
            None if !self.args.plain && has_string_payload(&bytes) => {
                return Err("a message line is {\"topic\": string, \"payload\": string, \"qos\": 0 or 1}".to_owned());
            }
            None => (None, Bytes::from(bytes), self.args.qos),
        };
        let topic = topic.or_else(|| self.args.topic.clone()).ok_or("no topic: neither in the line nor by --topic")?;
        if level > 1 {
            return Err(format!("qos {level} is not supported by this version"));
        }
        let mut message = Message::new(topic, payload.clone()).qos(qos(level));
        if let Some(time) = self.args.expires_in {
            message = message.expires_in(time);
        }
        Ok((message, payload))
    }

    async fn refuse(&mut self, seq: u64, outcome: &str, error: &str) -> Result<(), OutputClosed> {
        self.all_acked = false;
        let line = json!({
            "seq": seq, "outcome": outcome, "broker": null, "attempts": 0, "latency_us": null, "error": error,
        });
        self.output.line(&line).await
    }

    fn settle(&mut self, told: Option<Told>) -> Result<(), OutputClosed> {
        let Some(told) = told else {
            self.all_acked = false;
            return Ok(());
        };
        self.open.remove(&told.seq);
        self.all_acked &= told.acked;
        told.output
    }

    /// Waits for the outcomes, at most `--max-wait` or until a signal, then closes and tells the rest.
    async fn finish(&mut self, interrupt: &mut Interrupt) -> Result<(), OutputClosed> {
        let deadline = Instant::now() + self.args.max_wait;
        loop {
            let told = tokio::select! {
                told = timeout_at(deadline, self.outcomes.join_next()) => told,
                () = interrupt.wait() => break,
            };
            match told {
                Ok(Some(told)) => self.settle(told.ok())?,
                Ok(None) | Err(_) => break,
            }
        }
        // Nothing waits any more, or nothing may wait any longer: what is left resolves as undelivered.
        let patience = if self.open.is_empty() { GOODBYE } else { Duration::ZERO };
        let _ = timeout(GOODBYE * 2, self.client.close(patience)).await;
        while let Ok(Some(told)) = timeout(GOODBYE, self.outcomes.join_next()).await {
            self.settle(told.ok())?;
        }
        for seq in std::mem::take(&mut self.open) {
            self.refuse(seq, "undelivered", "the client did not tell an outcome in time").await?;
        }
        Ok(())
    }
}

async fn tell(seq: u64, receipt: Receipt, output: Output) -> Told {
    let outcome = receipt.acked().await;
    let acked = matches!(outcome, Outcome::Acked { .. });
    Told { seq, acked, output: output.line(&describe(seq, &outcome)).await }
}

fn describe(seq: u64, outcome: &Outcome) -> Value {
    let mut line = json!({ "seq": seq, "outcome": null, "broker": null, "attempts": null, "latency_us": null });
    let name = match outcome {
        Outcome::Acked { broker, attempts, latency, .. } => {
            line["broker"] = json!(broker.to_string());
            line["attempts"] = json!(attempts);
            line["latency_us"] = json!(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
            "acked"
        }
        Outcome::Expired { maybe_delivered, .. } => {
            line["maybe_delivered"] = json!(maybe_delivered);
            "expired"
        }
        Outcome::Shed => "shed",
        Outcome::Rejected { reason, .. } => {
            line["error"] = json!(reason);
            "rejected"
        }
        Outcome::Undelivered { maybe_delivered, .. } => {
            line["maybe_delivered"] = json!(maybe_delivered);
            "undelivered"
        }
        other => {
            line["error"] = json!(format!("{other:?}"));
            "undelivered"
        }
    };
    line["outcome"] = json!(name);
    line
}

fn has_string_payload(line: &[u8]) -> bool {
    serde_json::from_slice::<Value>(line).is_ok_and(|value| value.get("payload").is_some_and(Value::is_string))
}

/// Adds `payload`, or `payload_base64` where the bytes are not text.
pub(super) fn put_payload(line: &mut Value, payload: &[u8]) {
    match std::str::from_utf8(payload) {
        Ok(text) => line["payload"] = json!(text),
        Err(_) => line["payload_base64"] = json!(base64::encode(payload)),
    }
}
