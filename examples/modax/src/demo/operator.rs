//! The operator: one command after the other, five times a second, through the load balancer.
//!
//! A command that meets an error is repeated under the same `Idempotency-Key` until it has an answer, so that it is
//! one command however often it was sent. The next one waits for that, as a person would: the order in which
//! commands were given is then one order, and the field can be asked whether it saw the same.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::http::{Answer, Http};
use super::record::Record;
use super::watch::COMMANDS;

/// Between two commands.
const PACE: Duration = Duration::from_millis(200);
/// Longer than the 3 s in which the control layer promises to answer 503.
const PATIENCE: Duration = Duration::from_secs(4);
/// Between two tries of one command.
const RETRY: Duration = Duration::from_millis(200);

/// One command, with all its tries.
#[derive(Clone, Debug)]
pub(crate) struct Issued {
    /// The parameter `request`, by which the field's logs name it.
    pub(crate) request: String,
    /// When it was answered with 200, if it was.
    pub(crate) accepted: Option<Instant>,
}

/// What the operator saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    /// In the order in which they were given.
    pub(crate) issued: Vec<Issued>,
    /// When a try failed: no answer, or a server error.
    pub(crate) failed: Vec<Instant>,
    /// When a command was refused because the plant was not known to be safe.
    pub(crate) refused_unsafe: Vec<Instant>,
    /// Answers that the contract does not foresee.
    pub(crate) odd: Vec<String>,
    /// Every try.
    pub(crate) requests: u64,
}

/// The running operator.
pub(crate) struct Operator {
    log: Arc<Mutex<Log>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Operator {
    /// Starts commanding at `url`, the load balancer.
    pub(crate) fn start(http: Http, url: &str, record: Record) -> Self {
        let log: Arc<Mutex<Log>> = Arc::default();
        let (stop, stopped) = watch::channel(false);
        let work = Work { http, url: format!("{url}/control/command"), record, log: log.clone(), stopped };
        Self { log, stop, task: tokio::spawn(work.run()) }
    }

    /// What happened so far.
    pub(crate) fn log(&self) -> Log {
        lock(&self.log).clone()
    }

    /// How many commands were accepted.
    pub(crate) fn accepted(&self) -> usize {
        lock(&self.log).issued.iter().filter(|issued| issued.accepted.is_some()).count()
    }

    /// How many commands were issued.
    pub(crate) fn issued(&self) -> usize {
        lock(&self.log).issued.len()
    }

    /// Gives the last command its answer and ends; at most as long as one try takes.
    pub(crate) async fn stop(self) -> Log {
        self.stop.send_replace(true);
        let mut task = self.task;
        if tokio::time::timeout(PATIENCE * 2, &mut task).await.is_err() {
            task.abort();
        }
        lock(&self.log).clone()
    }
}

struct Work {
    http: Http,
    url: String,
    record: Record,
    log: Arc<Mutex<Log>>,
    stopped: watch::Receiver<bool>,
}

impl Work {
    async fn run(self) {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0_u64.. {
            pace.tick().await;
            if *self.stopped.borrow() {
                return;
            }
            self.command(number).await;
        }
    }

    /// One command until it has an answer.
    async fn command(&self, number: u64) {
        let key = uuid::Uuid::new_v4().to_string();
        let body = json!({
            "command_type": "set_speed",
            "parameters": { "request": number.to_string(), "speed": (100 + number % 50).to_string() },
        });
        lock(&self.log).issued.push(Issued { request: number.to_string(), accepted: None });
        loop {
            let sent = Instant::now();
            let answer = self.http.post(&self.url, &key, &body, PATIENCE).await;
            if self.note(sent, answer.as_ref().ok()) || *self.stopped.borrow() {
                return;
            }
            sleep(RETRY).await;
        }
    }

    /// True when the command has its answer.
    fn note(&self, sent: Instant, answer: Option<&Answer>) -> bool {
        let now = Instant::now();
        let mut log = lock(&self.log);
        log.requests += 1;
        match answer {
            Some(answer) if answer.status == 200 => {
                if let Some(issued) = log.issued.last_mut() {
                    issued.accepted = Some(now);
                }
                self.record.count(COMMANDS, now, 1);
            }
            Some(answer) if answer.status == 403 => log.refused_unsafe.push(sent),
            Some(answer) if answer.status < 500 => {
                log.odd.push(format!("command answered {}: {}", answer.status, answer.text()));
            }
            Some(_) | None => {
                log.failed.push(sent);
                return false;
            }
        }
        true
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}
