//! Says before a start what cannot be read of the disk queue.

use std::io;
use std::path::Path;

use modax_mqtt_failover::disk;
use serde_json::json;

use crate::output;

/// Says what cannot be read of the queue, before the client opens it.
pub(super) async fn report(directory: &Path) -> io::Result<()> {
    let directory = directory.to_owned();
    let looked = tokio::task::spawn_blocking(move || {
        if !directory.exists() {
            return Ok(());
        }
        let survey = disk::inspect(&directory)?;
        if !survey.is_sound() {
            let bytes = survey.damaged_bytes();
            output::event("queue_damaged", json!({ "queue": directory.display().to_string(), "bytes": bytes }));
        }
        Ok(())
    });
    looked.await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
