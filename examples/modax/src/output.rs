//! JSON lines: results on stdout, diagnostics and events on stderr.
//!
//! One thread owns stdout. It writes what is waiting in one piece and flushes before it waits again, so that a
//! reader of the pipe sees each line at once and a burst costs one system call. Another one owns stderr, so that nothing
//! but events is held up by a stderr that nobody reads.

use std::io::{PipeReader, PipeWriter, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, mpsc as threads};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::args::without_passwords;
use crate::signal::{self, Interrupt};

/// Lines waiting for a slow reader of our stdout; beyond it the commands wait too.
const WAITING_LINES: usize = 1024;
/// And their bytes. One line always fits, however long.
const WAITING_BYTES: u32 = 4 << 20;

/// For whom we are to end and who reads our stdout only slowly.
const UNREAD: Duration = Duration::from_secs(2);

/// Bytes of events waiting for a slow reader of our stderr; what is beyond is dropped, and its number told.
const WAITING_EVENT_BYTES: usize = 16 << 20;

/// Runs once its line is flushed.
type Flushed = Box<dyn FnOnce() + Send>;

struct Line {
    /// With its line end, or nothing.
    text: String,
    flushed: Option<Flushed>,
    /// Its share of what may wait, until it is flushed.
    room: Option<OwnedSemaphorePermit>,
}

/// The way to stdout.
#[derive(Clone)]
pub(crate) struct Output {
    lines: mpsc::Sender<Line>,
    room: Arc<Semaphore>,
    gone: watch::Receiver<bool>,
}

/// The end of the way: joins the writing thread.
pub(crate) struct OutputEnd {
    writer: JoinHandle<std::io::Result<()>>,
    /// As long as it stands, somebody looks whether stdout is read.
    watched: Option<PipeWriter>,
}

/// Stdout was closed by whoever read it: no result can be told any more.
#[derive(Debug)]
pub(crate) struct OutputClosed;

impl Output {
    /// Starts the thread that owns stdout.
    pub(crate) fn start() -> (Self, OutputEnd) {
        let (lines, receiver) = mpsc::channel(WAITING_LINES);
        let (tell_gone, gone) = watch::channel(false);
        let tell_failed = tell_gone.clone();
        let writer = std::thread::spawn(move || {
            let written = write_lines(receiver);
            if written.is_err() {
                tell_failed.send_replace(true);
            }
            written
        });
        // Without a descriptor for that, a write finds out.
        let watched = std::io::pipe().ok().map(|(left, watched)| {
            std::thread::spawn(move || watch_stdout(&tell_gone, &left));
            watched
        });
        (Self::new(lines, gone), OutputEnd { writer, watched })
    }

    fn new(lines: mpsc::Sender<Line>, gone: watch::Receiver<bool>) -> Self {
        Self { lines, room: Arc::new(Semaphore::new(WAITING_BYTES as usize)), gone }
    }

    /// Writes one object as one line.
    pub(crate) async fn line(&self, value: &impl Serialize) -> Result<(), OutputClosed> {
        self.send(value, None).await
    }

    /// Waits until nobody reads stdout any more, or it takes nothing more.
    pub(crate) async fn closed(&self) {
        let mut gone = self.gone.clone();
        if gone.wait_for(|gone| *gone).await.is_err() {
            // The threads that look could not, and all was written.
            std::future::pending::<()>().await;
        }
    }

    /// Writes one object as one line and runs `flushed` once the line has left the process.
    pub(crate) async fn line_then(
        &self,
        value: &impl Serialize,
        flushed: impl FnOnce() + Send + 'static,
    ) -> Result<(), OutputClosed> {
        self.send(value, Some(Box::new(flushed))).await
    }

    /// Runs `flushed` once every line so far has left the process.
    pub(crate) async fn then(&self, flushed: impl FnOnce() + Send + 'static) -> Result<(), OutputClosed> {
        let nothing = Line { text: String::new(), flushed: Some(Box::new(flushed)), room: None };
        self.lines.send(nothing).await.map_err(|_| OutputClosed)
    }

    /// Returns once another line has room, behind all lines that wait already, or never will have. Whatever makes lines asks
    /// before it takes in more. Cancel safe.
    pub(crate) async fn room(&self) {
        drop(self.room.acquire().await);
        drop(self.lines.reserve().await);
    }

    async fn send(&self, value: &impl Serialize, flushed: Option<Flushed>) -> Result<(), OutputClosed> {
        // What is printed has string keys and finite numbers.
        let mut text = serde_json::to_string(value).unwrap_or_default();
        text.push('\n');
        let bytes = u32::try_from(text.len()).unwrap_or(WAITING_BYTES).min(WAITING_BYTES);
        let sent = async {
            // The semaphore is never closed. A writer that ends drops the lines, and with them makes room.
            let room = self.room.clone().acquire_many_owned(bytes).await.ok();
            let line = Line { text, flushed, room };
            self.lines.send(line).await.map_err(|_| OutputClosed)
        };
        tokio::select! {
            biased;
            sent = sent => sent,
            () = given_up() => Err(OutputClosed),
        }
    }
}

impl OutputEnd {
    /// Waits until every line is written, or says why one is not. Every [`Output`] must be dropped first.
    ///
    /// A slow reader is waited for, but not past a signal.
    pub(crate) async fn finish(self) -> Result<(), String> {
        let Self { writer, watched } = self;
        let joined = tokio::task::spawn_blocking(move || writer.join());
        tokio::select! {
            joined = joined => match joined {
                Ok(Ok(Ok(()))) => {
                    drop(watched);
                    close_stdout();
                    Ok(())
                }
                Ok(Ok(Err(error))) => Err(format!("stdout, before the last line: {error}")),
                Ok(Err(_)) | Err(_) => Err("stdout: its thread ended early".to_owned()),
            },
            () = asked_to_leave() => Err("stdout takes nothing more: the last lines are not written".to_owned()),
        }
    }
}

/// Whoever reads stdout to its end before they read stderr has that end now, and not with the process, which waits for them.
fn close_stdout() {
    if let Ok(nothing) = std::fs::File::options().write(true).open("/dev/null") {
        // Where that fails the end of the process closes it.
        let _ = rustix::stdio::dup2_stdout(nothing);
    }
}

/// The same as [`given_up`], also where the command left signals to their default action.
async fn asked_to_leave() {
    // Where signals cannot be taken over they end the process.
    let _interrupt = Interrupt::listen();
    given_up().await;
}

/// Ends [`UNREAD`] after a signal; one that came before counts.
async fn given_up() {
    signal::come().await;
    tokio::time::sleep(UNREAD).await;
}

/// Asks for nothing, so that only the end is told: no reader of the pipe, no peer of the socket. Ends with the other side of
/// `left`: a stdout that is polled stays open.
fn watch_stdout(gone: &watch::Sender<bool>, left: &PipeReader) {
    let stdout = std::io::stdout();
    loop {
        let mut fds = [PollFd::new(&stdout, PollFlags::empty()), PollFd::new(left, PollFlags::empty())];
        match poll(&mut fds, None) {
            Ok(_) if !fds[1].revents().is_empty() => return,
            Ok(_) if fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) => {
                gone.send_replace(true);
                return;
            }
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) | Err(_) => return,
        }
    }
}

fn write_lines(mut receiver: mpsc::Receiver<Line>) -> std::io::Result<()> {
    let mut batch = Vec::new();
    let mut bytes = Vec::new();
    while receiver.blocking_recv_many(&mut batch, WAITING_LINES) > 0 {
        bytes.clear();
        for line in &batch {
            bytes.extend_from_slice(line.text.as_bytes());
        }
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&bytes)?;
        stdout.flush()?;
        for line in batch.drain(..) {
            if let Some(flushed) = line.flushed {
                flushed();
            }
            drop(line.room);
        }
    }
    Ok(())
}

/// Writes one diagnostic line to stderr: `{"event": name, …}`.
pub(crate) fn event(name: &str, mut fields: Value) {
    if let Value::Object(map) = &mut fields {
        map.insert("event".to_owned(), json!(name));
    } else {
        fields = json!({ "event": name, "detail": fields });
    }
    let mut line = fields.to_string();
    line.push('\n');
    if EVENT_BYTES_WAITING.fetch_add(line.len(), Ordering::Relaxed) < WAITING_EVENT_BYTES {
        // The thread ends with the process.
        let _ = EVENTS.send(Event::Line(line));
    } else {
        EVENT_BYTES_WAITING.fetch_sub(line.len(), Ordering::Relaxed);
        EVENTS_DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits until stderr has taken all events; a slow reader is waited for, but not past a signal.
pub(crate) async fn end_events() {
    tokio::select! {
        _ = events_written() => {}
        () = asked_to_leave() => {}
    }
}

/// Ends when stderr has taken all events so far.
pub(crate) fn events_written() -> oneshot::Receiver<()> {
    let (end, ended) = oneshot::channel();
    let _ = EVENTS.send(Event::End(end));
    ended
}

enum Event {
    Line(String),
    /// Everything before it has been written.
    End(oneshot::Sender<()>),
}

static EVENT_BYTES_WAITING: AtomicUsize = AtomicUsize::new(0);
static EVENTS_DROPPED: AtomicUsize = AtomicUsize::new(0);
static EVENTS: LazyLock<threads::Sender<Event>> = LazyLock::new(|| {
    let (sender, receiver) = threads::channel();
    std::thread::spawn(move || receiver.into_iter().for_each(write_event));
    sender
});

fn write_event(event: Event) {
    match event {
        Event::Line(line) => {
            // A closed stderr has nobody to be told about it.
            let _ = std::io::stderr().lock().write_all(line.as_bytes());
            EVENT_BYTES_WAITING.fetch_sub(line.len(), Ordering::Relaxed);
            let dropped = EVENTS_DROPPED.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                let line = format!("{}\n", json!({ "event": "events_dropped", "count": dropped }));
                let _ = std::io::stderr().lock().write_all(line.as_bytes());
            }
        }
        Event::End(end) => drop(end.send(())),
    }
}

/// Tells on stderr what is wrong with a flag; clap has said the rest.
pub(crate) fn bad_usage(flag: &str, error: &dyn std::error::Error) {
    event("bad_usage", json!({ "error": format!("{flag}: {}", without_passwords(&chain(error))) }));
}

/// An error with its causes in one sentence; a cause that its parent already tells is not told again.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        let news = news(&text, &cause_text);
        if !news.is_empty() {
            text.push_str(": ");
            text.push_str(&news);
        }
        source = cause.source();
    }
    text
}

/// What a cause adds to what is told. PostgreSQL's error repeats the sentence, and has its details in lines of their own.
fn news(told: &str, cause: &str) -> String {
    let (first, details) = cause.split_once('\n').unwrap_or((cause, ""));
    let sentence = first.rsplit_once("ERROR: ").map_or(first, |(_, sentence)| sentence);
    let rest = if told.contains(sentence) { details } else { cause };
    let lines: Vec<&str> = rest.lines().filter(|line| !told.contains(line)).collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn bytes_bound_what_waits_and_one_line_always_fits() {
        let (lines, mut receiver) = mpsc::channel(WAITING_LINES);
        let output = Output::new(lines, watch::channel(false).1);
        let long = "x".repeat(2 * WAITING_BYTES as usize);
        assert!(output.line(&long).now_or_never().is_some(), "one fits");
        let mut second = Box::pin(output.line(&"y"));
        assert!(second.as_mut().now_or_never().is_none(), "the first is not written yet");
        drop(receiver.recv().await);
        assert!(second.now_or_never().is_some());
        assert_eq!(receiver.recv().await.map(|line| line.text), Some("\"y\"\n".to_owned()));
        let half = "z".repeat(WAITING_BYTES as usize / 2);
        assert!(output.line(&half).now_or_never().is_some());
        assert!(output.line(&half).now_or_never().is_none(), "two of them with their quotes");
    }

    #[tokio::test]
    async fn there_is_room_only_behind_all_that_waits() {
        let (lines, mut receiver) = mpsc::channel(1);
        let output = Output::new(lines, watch::channel(false).1);
        assert!(output.room().now_or_never().is_some());
        assert!(output.line(&1).now_or_never().is_some());
        let mut waiting = Box::pin(output.line(&2));
        assert!(waiting.as_mut().now_or_never().is_none());
        let mut room = Box::pin(output.room());
        assert!(room.as_mut().now_or_never().is_none());
        drop(receiver.recv().await);
        assert!(room.as_mut().now_or_never().is_none(), "it went before a line");
        assert!(waiting.now_or_never().is_some());
        drop(receiver.recv().await);
        assert!(room.now_or_never().is_some());
    }

    #[test]
    fn a_cause_is_told_once() {
        let told = "statement failed: duplicate key (23505)";
        assert_eq!(news(told, "db error: ERROR: duplicate key\nDETAIL: id 1"), "DETAIL: id 1");
        assert_eq!(news(told, "ERROR: duplicate key"), "");
        assert_eq!(news("not committed", "db error: FATAL: gone\nHINT: wait"), "db error: FATAL: gone; HINT: wait");
        assert_eq!(news(told, ""), "");
    }
}
