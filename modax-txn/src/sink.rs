//! Where messages go: a broker, a queue, a closure.

use std::{error::Error, future::Future, sync::Arc};

use async_trait::async_trait;

use crate::message::OutgoingMessage;

/// Any cause, boxed so that its type is not part of this crate's interface.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// The sink has the message and answers for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Confirmation {
    /// Who confirmed (a broker's address), for events. Not stored.
    pub by: Option<String>,
}

impl Confirmation {
    /// Confirmed, by nobody in particular.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Confirmed by `who`.
    #[must_use]
    pub fn by(who: impl Into<String>) -> Self {
        Self { by: Some(who.into()) }
    }
}

/// Why a sink did not take a message, and so what becomes of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// It may work later (broker away, queue full): tried again with [`RetryPolicy`](crate::RetryPolicy), later messages of the key wait.
    #[error("sink cannot take the message now")]
    Retry(#[source] BoxError),
    /// This message will never be taken (too large, not authorised): recorded as rejected; the key goes on.
    #[error("sink refuses the message: {reason}")]
    Reject {
        /// Why, as it is stored.
        reason: String,
    },
    /// It must not be sent any more, by a condition checked at the last moment (the plant is not safe now): recorded as rejected; the key goes on.
    #[error("message dropped: {reason}")]
    Drop {
        /// Why, as it is stored.
        reason: String,
    },
    /// Its time ran out inside the sink (a queue that honours [`OutgoingMessage::expires_in`]): recorded as expired; the key goes on.
    #[error("message expired inside the sink")]
    Expired,
}

impl SinkError {
    /// A passing trouble.
    pub fn retry(cause: impl Into<BoxError>) -> Self {
        Self::Retry(cause.into())
    }

    /// A refusal for good.
    pub fn reject(reason: impl Into<String>) -> Self {
        Self::Reject { reason: reason.into() }
    }

    /// A message that must not be sent any more.
    pub fn drop(reason: impl Into<String>) -> Self {
        Self::Drop { reason: reason.into() }
    }

    /// Whether the relay tries the same message again.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Retry(_))
    }
}

/// Publishes one message and answers when it is safe with whoever takes it over.
///
/// A closure `Fn(OutgoingMessage) -> impl Future<Output = Result<Confirmation, SinkError>>` is a sink, and so is an `Arc` of one.
///
/// The relay calls it for many messages at once, never for two of one key. It drops the future when the lease is lost or
/// [`publish_timeout`](crate::RelayBuilder::publish_timeout) has passed, so `publish` must be cancel safe in this sense: the
/// message may or may not have gone out; it will be published again.
#[async_trait]
pub trait Sink: Send + Sync {
    /// Publishes `message` and waits for the confirmation. Check conditions that must hold at the last moment here.
    ///
    /// # Errors
    /// See [`SinkError`]: each variant says what becomes of the message.
    ///
    /// # Cancel safety
    /// Dropped at any await; see the trait.
    async fn publish(&self, message: &OutgoingMessage) -> Result<Confirmation, SinkError>;
}

#[async_trait]
impl<F, Fut> Sink for F
where
    F: Fn(OutgoingMessage) -> Fut + Send + Sync,
    Fut: Future<Output = Result<Confirmation, SinkError>> + Send,
{
    async fn publish(&self, message: &OutgoingMessage) -> Result<Confirmation, SinkError> {
        self(message.clone()).await
    }
}

#[async_trait]
impl<S: Sink + ?Sized> Sink for Arc<S> {
    async fn publish(&self, message: &OutgoingMessage) -> Result<Confirmation, SinkError> {
        (**self).publish(message).await
    }
}
