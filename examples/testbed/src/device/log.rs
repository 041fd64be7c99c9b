//! The device's append-only log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The most entries kept; a run that makes more has an incomplete log, and the oracle says so.
const MOST: usize = 4_000_000;

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Entry {
    /// The device started for the `boot`-th time.
    Booted {
        /// From 1.
        boot: u32,
    },
    /// It made a reading.
    Made {
        /// From 0, over all boots; see [`serial_of`](super::serial_of).
        serial: u64,
        /// In this boot.
        boot: u32,
        /// Milliseconds since that boot.
        timestamp: u64,
    },
    /// A broker acknowledged the reading.
    Acked {
        /// Of the reading.
        serial: u64,
    },
    /// The queue was full and the reading was thrown away.
    Shed {
        /// Of the reading.
        serial: u64,
    },
    /// It is connected.
    Connected {
        /// As in the configuration.
        broker: String,
    },
    /// It gave the broker up.
    Left {
        /// As in the configuration.
        broker: String,
        /// Why.
        reason: String,
    },
    /// A command arrived.
    Received {
        /// `None` from a control layer that sends none.
        command_id: Option<String>,
        /// As sent.
        command_type: String,
        /// The parameter `request`, by which an operator under test numbers his commands.
        request: Option<String>,
        /// Whether its `expires_at` had passed by the device's clock; false from a control layer that sends none.
        #[serde(default)]
        expired: bool,
        /// Whether the device acted; it does not on a `command_id` it has acted on before, nor on an expired command.
        acted: bool,
    },
}

/// Everything a device did, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceLog {
    /// Whose log.
    pub device_id: String,
    /// In order.
    pub entries: Vec<Entry>,
    /// Whether entries are missing because there were too many.
    pub incomplete: bool,
}

impl DeviceLog {
    /// An empty log.
    pub fn new(device_id: impl Into<String>) -> Self {
        Self { device_id: device_id.into(), ..Self::default() }
    }

    /// Reads a log file. A torn last line (the writer was killed) is left out.
    ///
    /// # Errors
    /// When the file cannot be read, or a line before the last one is not an entry.
    pub fn read(device_id: impl Into<String>, file: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(file)?;
        let mut log = Self::new(device_id);
        for line in text.split_inclusive('\n') {
            match serde_json::from_str(line) {
                Ok(entry) => log.push(entry),
                Err(_) if !line.ends_with('\n') => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(log)
    }

    pub(super) fn push(&mut self, entry: Entry) {
        if self.entries.len() < MOST {
            self.entries.push(entry);
        } else {
            self.incomplete = true;
        }
    }
}

/// The log in memory and, if wanted, in a file.
#[derive(Debug)]
pub(super) struct LogWriter {
    pub(super) log: DeviceLog,
    file: Option<File>,
}

impl LogWriter {
    pub(super) fn open(device_id: &str, path: Option<&Path>) -> io::Result<Self> {
        let open = |path| OpenOptions::new().create(true).append(true).open(path);
        Ok(Self { log: DeviceLog::new(device_id), file: path.map(open).transpose()? })
    }

    pub(super) fn push(&mut self, entry: Entry) {
        if let Some(file) = &mut self.file {
            let line = serde_json::to_string(&entry).map_err(io::Error::from);
            if line.and_then(|line| writeln!(file, "{line}")).is_err() {
                // A log with a hole must not pass for a whole one.
                self.log.incomplete = true;
            }
        }
        self.log.push(entry);
    }
}
