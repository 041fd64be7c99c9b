//! Why a message was not admitted, or a subscription not recorded.

use crate::config::TopicError;

/// Why a publish was not admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The queue is full, and its policy (or what is already on the wire) leaves no room.
    #[error("the queue is full")]
    Full,
    /// The message exceeds the queue's byte limit, or what MQTT can carry, by itself.
    #[error("the message is larger than the queue or MQTT allows")]
    TooLarge,
    /// The topic is not one that can be published to.
    #[error("the topic {reason}")]
    Topic {
        /// What is wrong with it.
        reason: TopicError,
    },
    /// A user property is too long or holds a NUL character, or there are more than 65,535 with the one that
    /// [`stamping`](crate::ClientBuilder::stamping) adds.
    #[error("a user property {reason}")]
    UserProperty {
        /// What is wrong with it.
        reason: TopicError,
    },
    /// The message has user properties, which MQTT 3.1.1 cannot carry: see [`ClientBuilder::version`](crate::ClientBuilder::version).
    #[error("user properties need MQTT 5, and this client speaks 3.1.1")]
    NeedsVersion5,
    /// The disk queue could not take it: full, read-only or failing. This client does not send it; what was admitted before
    /// is kept. A disk that hangs gives neither this nor another answer until it goes on.
    #[error("the disk queue could not take the message: {reason}")]
    Disk {
        /// In the words of the operating system.
        reason: String,
        /// Whether it may stand in the queue's files all the same, because the disk failed to synchronise them. All is
        /// written anew, without it, before the next message is admitted; a start of the queue before that may send it.
        maybe_kept: bool,
    },
    /// The client was closed; it will never admit again.
    #[error("the client is closed")]
    Closed,
}

impl PublishError {
    /// Whether the same call may succeed later without any change by the caller.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Full | Self::Disk { .. })
    }

    /// Whether the message may be sent all the same: only where the disk failed to synchronise, and by another start of the
    /// queue than this one. In all other cases nothing was admitted.
    #[must_use]
    pub const fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Disk { maybe_kept: true, .. })
    }
}

/// Why a subscription was not recorded or withdrawn.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The filter is malformed.
    #[error("the filter {reason}")]
    Filter {
        /// What is wrong with it.
        reason: TopicError,
    },
    /// There is no such subscription to withdraw.
    #[error("not subscribed to this filter")]
    NotSubscribed,
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}

impl SubscribeError {
    /// Whether the same call may succeed later without any change by the caller: never.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        false
    }
}
