//! The only owner of the clock, of connections and of tasks.
#![expect(
    clippy::disallowed_methods,
    reason = "this module is the border: it reads the clock and owns the relay's task"
)]

mod connections;
mod handle;
mod run;
mod store;

use std::{future::Future, time::Duration};

pub use connections::{BoxConnection, Connections};
pub use handle::{Events, Relay, RelayBuilder, Stopped};

use crate::message::MessageId;

/// Runs `work` for at most `limit`.
pub(crate) async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, work).await.ok()
}

impl MessageId {
    /// Makes a new identity from the wall clock and random bytes (UUID version 7, RFC 9562).
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a default that differs each time would surprise")]
    pub fn new() -> Self {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        // The last ten of sixteen: the first of them shares its byte with the fixed bits of version 4, and version 7 puts its own in
        // the same places.
        let random = *uuid::Uuid::new_v4().as_bytes();
        let random = random.last_chunk().unwrap_or(&[0; 10]);
        Self::from_parts(u64::try_from(since_1970.as_millis()).unwrap_or(0), random)
    }
}
