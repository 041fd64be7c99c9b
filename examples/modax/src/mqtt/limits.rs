//! How much may wait for a broker, and what happens when it is full.

use std::num::NonZeroUsize;

use clap::{Args, ValueEnum};
use modax_mqtt_failover::{Queue, WhenFull};

/// Limits of the queue, in memory and on disk.
#[derive(Debug, Args)]
pub(crate) struct Limits {
    /// Messages that may wait or be on their way.
    #[arg(long, default_value = "10000", value_name = "N", allow_hyphen_values = true)]
    queue_max_messages: NonZeroUsize,
    /// Bytes of topics, payloads and bookkeeping that may wait or be on their way.
    #[arg(long, default_value = "67108864", value_name = "BYTES", allow_hyphen_values = true)]
    queue_max_bytes: NonZeroUsize,
    /// What happens to a line when the queue is full.
    #[arg(long, value_enum, default_value_t = Full::Wait)]
    when_full: Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Full {
    /// No more lines are read until there is room.
    Wait,
    /// The line is rejected.
    Reject,
    /// The oldest that was not sent yet makes room for it, with the outcome "shed".
    ShedOldest,
    /// The line itself is shed.
    ShedNewest,
    /// What a newer message of its topic has made out of date is shed first, then the oldest.
    LatestPerTopic,
}

impl Limits {
    /// Waiting is done outside the client: a publish that waits can then only be waiting for the disk, and has its place
    /// in the order.
    pub(crate) fn of(&self, queue: Queue) -> Queue {
        let policy = match self.when_full {
            Full::Wait | Full::Reject => WhenFull::Reject,
            Full::ShedOldest => WhenFull::ShedOldest,
            Full::ShedNewest => WhenFull::ShedNewest,
            Full::LatestPerTopic => WhenFull::LatestPerTopic,
        };
        queue.max_messages(self.queue_max_messages.get()).max_bytes(self.queue_max_bytes.get()).when_full(policy)
    }

    /// Whether a line waits where the client says that it is full; with shedding that is when everything is on its way.
    pub(crate) fn waits(&self) -> bool {
        self.when_full != Full::Reject
    }
}
