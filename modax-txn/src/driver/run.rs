//! The relay's task.

use tokio::sync::{broadcast, watch};

use super::handle::RelayBuilder;
use crate::event::{Event, Stats};

/// Runs until stopped.
pub(super) async fn run(
    _settings: RelayBuilder,
    _events: broadcast::Sender<Event>,
    _stats: watch::Sender<Stats>,
    mut stop: watch::Receiver<Option<tokio::time::Instant>>,
) {
    // Bodies follow in the next step.
    let _ = stop.changed().await;
}
