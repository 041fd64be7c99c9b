//! Log lines to stderr by a thread of their own: whoever reads them slowly, or has gone away, holds up nothing.
//!
//! The AI layer compiles this file, too: it knows nothing of the crate it is in.

use std::{
    io::{self, Write},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// Lines that wait for their reader, at most; more are dropped and counted. Some hundred kilobytes.
const MAX_LINES: usize = 1_024;
/// Longest wait for the reader of the last lines when the process ends.
pub(crate) const LAST_LINES: Duration = Duration::from_secs(1);
/// How often a full queue is looked at then.
const LOOKS_EVERY: Duration = Duration::from_millis(10);

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Lines that nobody could read: there were too many of them, or stderr is closed.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

enum Entry {
    Line(Vec<u8>),
    /// All before it is written.
    End(SyncSender<()>),
}

/// Where log lines go; none of them waits there.
#[derive(Clone)]
pub struct Logs {
    entries: SyncSender<Entry>,
    dropped: &'static AtomicU64,
}

impl std::fmt::Debug for Logs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logs").finish_non_exhaustive()
    }
}

impl Logs {
    /// Sends the log of this process to stderr, as JSON lines.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn start(filter: EnvFilter) -> io::Result<Self> {
        let logs = Self::to(io::stderr(), &DROPPED)?;
        tracing_subscriber::fmt().json().flatten_event(true).with_writer(logs.clone()).with_env_filter(filter).init();
        Ok(logs)
    }

    fn to(out: impl Write + Send + 'static, dropped: &'static AtomicU64) -> io::Result<Self> {
        let (entries, queue) = sync_channel(MAX_LINES);
        std::thread::Builder::new().name("logs".to_owned()).spawn(move || write(&queue, out, dropped))?;
        Ok(Self { entries, dropped })
    }

    /// Waits until all lines are written, a second at most.
    pub fn finish(&self) {
        let until = Instant::now() + LAST_LINES;
        let (told, written) = sync_channel(1);
        let mut end = Entry::End(told);
        while let Err(TrySendError::Full(entry)) = self.entries.try_send(end) {
            if Instant::now() >= until {
                return;
            }
            std::thread::sleep(LOOKS_EVERY);
            end = entry;
        }
        let _ = written.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

fn write(queue: &Receiver<Entry>, mut out: impl Write, dropped: &AtomicU64) {
    for entry in queue {
        match entry {
            // A closed stderr may be all there is: the process goes on without its log.
            Entry::Line(line) => {
                if out.write_all(&line).is_err() {
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            Entry::End(told) => {
                let _ = told.try_send(());
            }
        }
    }
}

impl<'a> MakeWriter<'a> for Logs {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// A whole line at once, as the subscriber writes it.
impl Write for &Logs {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.entries.try_send(Entry::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        // Never an error: the subscriber would print it to stderr, and panic if that is closed.
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Write},
        sync::{
            atomic::{AtomicU64, Ordering},
            mpsc::{Receiver, Sender, channel},
        },
    };

    use super::{Logs, MAX_LINES};

    /// A reader who takes a line only when told to.
    struct Slow(Receiver<()>, Sender<String>);

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(String::from_utf8_lossy(line).into_owned());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_who_does_not_read_holds_up_nobody_and_costs_lines_that_are_counted() {
        static DROPPED: AtomicU64 = AtomicU64::new(0);
        let ((read, may_read), (out, lines)) = (channel(), channel());
        let logs = Logs::to(Slow(may_read, out), &DROPPED).expect("a thread");
        let told = 2 * MAX_LINES as u64;
        for n in 0..told {
            (&logs).write_all(format!("{n}\n").as_bytes()).expect("never an error");
        }

        let dropped = DROPPED.load(Ordering::Relaxed);
        // One may be with the reader already.
        assert!([told / 2, told / 2 - 1].contains(&dropped), "{dropped}");
        // The reader is back.
        drop(read);
        logs.finish();
        let kept: Vec<String> = lines.try_iter().collect();
        assert_eq!(kept.len() as u64, told - dropped);
        assert_eq!(kept.first().map(String::as_str), Some("0\n"));
    }

    #[test]
    fn a_closed_stderr_is_no_error_of_the_program() {
        static DROPPED: AtomicU64 = AtomicU64::new(0);
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let logs = Logs::to(writer, &DROPPED).expect("a thread");

        for _ in 0..3 {
            (&logs).write_all(b"line\n").expect("never an error");
        }
        logs.finish();

        assert_eq!(DROPPED.load(Ordering::Relaxed), 3);
    }
}
