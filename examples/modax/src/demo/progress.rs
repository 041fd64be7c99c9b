//! What the terminal shows while the demo runs: plain lines, and on a terminal one live line under them.

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use super::record::Record;

/// Where progress goes.
#[derive(Clone)]
pub(crate) struct Progress {
    record: Record,
    live: bool,
    /// The live line as it stands, to be drawn again after a plain one.
    line: Arc<Mutex<String>>,
}

impl Progress {
    /// Draws a live line only where stdout is a terminal.
    pub(crate) fn new(record: Record) -> Self {
        Self { record, live: std::io::stdout().is_terminal(), line: Arc::default() }
    }

    /// A line that stays, with the time in front.
    pub(crate) fn say(&self, text: &str) {
        let line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.record.now();
        let mut stdout = std::io::stdout().lock();
        // Nobody reads on: the report files are the result, so a closed stdout stops nothing.
        let _ = if self.live {
            write!(stdout, "\r\x1b[K{now:6.1}  {text}\n{line}")
        } else {
            writeln!(stdout, "{now:6.1}  {text}")
        };
        let _ = stdout.flush();
    }

    /// The live line.
    pub(crate) fn show(&self, text: &str) {
        if !self.live {
            return;
        }
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        text.clone_into(&mut line);
        let mut stdout = std::io::stdout().lock();
        let _ = write!(stdout, "\r\x1b[K{text}");
        let _ = stdout.flush();
    }

    /// Several lines without a time in front: the table.
    pub(crate) fn print(&self, text: &str) {
        let mut stdout = std::io::stdout().lock();
        let _ = write!(stdout, "{}{text}", if self.live { "\r\x1b[K" } else { "" });
        let _ = stdout.flush();
    }
}
