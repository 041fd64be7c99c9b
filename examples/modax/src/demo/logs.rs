//! Events in the layers' logs: the first line after a fault that speaks of it.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;

/// How often the logs are read: the error of a detection by log.
const GLANCE: Duration = Duration::from_millis(20);
/// Read at once at most; a log that grows faster is caught up with.
const CHUNK_BYTES: u64 = 1 << 20;

/// A line that was found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) at: Instant,
    pub(crate) log: String,
}

/// Watches logs from now on; ends when dropped.
pub(crate) struct LogWatch {
    found: Arc<Mutex<Option<Found>>>,
    _task: JoinSet<()>,
}

impl LogWatch {
    /// Looks for the first new line of any of `logs` that contains one of `words`, letters' case aside.
    pub(crate) fn start(logs: &[(&str, &Path)], words: &'static [&'static str]) -> Self {
        let found: Arc<Mutex<Option<Found>>> = Arc::default();
        let mut tails: Vec<Tail> = logs.iter().map(|(name, path)| Tail::at_end(name, path)).collect();
        let mut task = JoinSet::new();
        let kept = found.clone();
        task.spawn(async move {
            loop {
                for tail in &mut tails {
                    if tail.speaks_of(words) {
                        let log = tail.name.clone();
                        *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(Found { at: Instant::now(), log });
                        return;
                    }
                }
                sleep(GLANCE).await;
            }
        });
        Self { found, _task: task }
    }

    /// The line, once it was seen.
    pub(crate) fn found(&self) -> Option<Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Tail {
    name: String,
    path: PathBuf,
    offset: u64,
    /// The start of a line whose end is not written yet.
    rest: String,
}

impl Tail {
    fn at_end(name: &str, path: &Path) -> Self {
        let offset = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        Self { name: name.to_owned(), path: path.to_owned(), offset, rest: String::new() }
    }

    fn speaks_of(&mut self, words: &[&str]) -> bool {
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.offset))?;
            file.take(CHUNK_BYTES).read_to_end(&mut bytes)
        });
        let Ok(read) = read else { return false };
        self.offset += read as u64;
        self.rest.push_str(&String::from_utf8_lossy(&bytes).to_lowercase());
        let end = self.rest.rfind('\n').map_or(0, |index| index + 1);
        let lines: String = self.rest.drain(..end).collect();
        lines.lines().any(|line| words.iter().any(|word| line.contains(word)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn only_whole_new_lines_count() {
        let path = std::env::temp_dir().join(format!("modax-log-{}", uuid::Uuid::new_v4()));
        std::fs::write(&path, "Disconnected before\n").unwrap();
        let mut tail = Tail::at_end("control-1", &path);
        assert!(!tail.speaks_of(&["disconnected"]));
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"{\"event\":\"Disconn").unwrap();
        assert!(!tail.speaks_of(&["disconnected"]));
        file.write_all(b"ected\"}\n").unwrap();
        assert!(tail.speaks_of(&["disconnected"]));
        assert!(!tail.speaks_of(&["disconnected"]));
        std::fs::remove_file(&path).unwrap();
    }
}
