//! What can go wrong in the testbed itself. Every message names the server or program it is about.

use std::fmt;
use std::time::Duration;

pub use crate::bring::BringError;

/// Why the testbed could not do what a test asked of it.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum TestbedError {
    /// A program is missing and could not be brought.
    #[error(transparent)]
    Bring(#[from] BringError),
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the file or program.
        what: String,
        /// The system's own error.
        source: std::io::Error,
    },
    /// Something did not become true in time.
    #[error("{what}: not within {after:?}{last}")]
    Deadline {
        /// What was awaited.
        what: String,
        /// How long it was awaited.
        after: Duration,
        /// The last thing known about it, empty or beginning with a separator.
        last: String,
    },
    /// A server ended although nobody ended it.
    #[error("{name} ended by itself ({status}); the end of its log:\n{log}")]
    Exited {
        /// The server.
        name: String,
        /// Its exit status.
        status: String,
        /// The last lines of its log.
        log: String,
    },
    /// A server answered, but not what it should.
    #[error("{name}: {message}")]
    Server {
        /// The server.
        name: String,
        /// What it said.
        message: String,
    },
}

/// As its display: a test that returns an error shows this, and a log should keep its lines.
impl fmt::Debug for TestbedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TestbedError {
    /// Whether a second start on other ports may help: another process took a port between its choice and its use.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Exited { log, .. } => {
                let log = log.to_lowercase();
                log.contains("in use") || log.contains("cannot bind")
            }
            Self::Bring(_) | Self::Io { .. } | Self::Deadline { .. } | Self::Server { .. } => false,
        }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(crate) fn server(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Server { name: name.into(), message: message.into() }
    }
}
