//! Why records are not on disk.

use std::io;

#[cfg(doc)]
use super::Log;

/// Why a commit did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The disk took no more (full, read-only). Earlier messages stand and nothing of these; the same commit may work later.
    #[error("queue file could not be written")]
    Write(#[source] io::Error),
    /// The disk failed to say that it has what it was given. Nothing is written again before [`Log::renew`].
    #[error("queue file could not be synchronised with the disk")]
    Sync(#[source] io::Error),
    /// The disk took part of it, and that could not be cut off. Nothing is written again before [`Log::renew`].
    #[error("queue file could not be cut back after a failed write")]
    Torn(#[source] io::Error),
    /// An earlier failure is not mended yet: [`Log::renew`]. Nothing of this commit was written.
    #[error("queue files are closed after a failure")]
    Closed,
}

impl CommitError {
    /// Whether messages of this commit may be found by the next start, if that comes before [`Log::renew`].
    #[must_use]
    pub const fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Sync(_) | Self::Torn(_))
    }
}
