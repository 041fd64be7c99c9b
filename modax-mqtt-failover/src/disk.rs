//! A disk queue from outside, while no client has it open: what is in it, whether it is sound, what can be saved.

use std::{io, path::Path};

use crate::{
    driver::{Directory, seed},
    queue::{
        log::{CommitError, Log},
        segment::{HEADER_BYTES, Record, SegmentId},
        storage::Storage,
        survey::survey,
    },
};

pub use crate::queue::{
    scan::Damage,
    segment::StoredMessage,
    survey::{FileSurvey, Survey},
};

/// Reads the queue in `directory` and changes nothing; it may lie on a read-only mount.
///
/// ```
/// use std::time::Duration;
/// use modax_mqtt_failover::{Client, Message, Queue, disk};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = std::env::temp_dir().join(format!("modax-inspect-{}", std::process::id()));
/// let client = Client::builder("c").brokers(["mqtt://127.0.0.1:1"])?.queue(Queue::disk(&directory)).build()?;
/// drop(client.publish(Message::new("plant", "21.5")).await?);
/// client.close(Duration::ZERO).await; // nobody was there
///
/// let found = disk::inspect(&directory)?;
/// assert!(found.is_sound());
/// assert_eq!(&*found.waiting[0].topic, "plant");
/// # std::fs::remove_dir_all(&directory)?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// Whatever the directory says; also when a client has it open. Damage is no error: see [`Survey::is_sound`].
pub fn inspect(directory: impl AsRef<Path>) -> io::Result<Survey> {
    let mut directory = Directory::existing(directory.as_ref())?;
    survey(&mut directory)
}

/// Copies every readable message without an outcome into a new queue in `to`, which must hold no queue or be absent, and
/// returns what the old one holds. The old one is left as it is.
///
/// ```
/// use std::time::Duration;
/// use modax_mqtt_failover::{Client, Message, Queue, disk};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let place = std::env::temp_dir().join(format!("modax-salvage-{}", std::process::id()));
/// # let (directory, saved) = (place.join("queue"), place.join("saved"));
/// let client = Client::builder("c").brokers(["mqtt://127.0.0.1:1"])?.queue(Queue::disk(&directory)).build()?;
/// drop(client.publish(Message::new("plant", "21.5")).await?);
/// client.close(Duration::ZERO).await;
///
/// disk::salvage(&directory, &saved)?;
/// assert_eq!(disk::inspect(&saved)?.waiting.len(), 1);
/// assert!(disk::salvage(&directory, &saved).is_err(), "nothing is copied over what is there");
/// # std::fs::remove_dir_all(&place)?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// Whatever the directories say; also when a client has one of them open, or `to` is in use.
pub fn salvage(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<Survey> {
    let (found, to) = (inspect(from)?, to.as_ref());
    // Which of the two directories is at fault is not to be guessed.
    copy(&found, to).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", to.display())))?;
    Ok(found)
}

fn copy(found: &Survey, to: &Path) -> io::Result<()> {
    let mut target = Directory::open(to)?;
    // A log that is opened tidies up: whatever stands there is somebody's. A bare header is what a full disk left of an earlier
    // try.
    for name in target.list()? {
        if SegmentId::from_file_name(&name).is_some() && target.read(&name)?.len() > HEADER_BYTES {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the queue to copy into is not empty"));
        }
    }
    let (mut log, _) = Log::open(target, u64::MAX, Box::new(seed))?;
    for message in &found.waiting {
        log.push(Record::Message(message.clone())).map_err(io::Error::other)?;
    }
    log.commit().map_err(|error| match error {
        CommitError::Write(cause) | CommitError::Sync(cause) | CommitError::Torn(cause) => cause,
        CommitError::Closed => io::Error::other(error),
    })
}
