//! The stream of events.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_util::StreamExt;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::event::Event;

/// What happens from the moment it was made; a [`Stream`]. Bounded: who reads too slowly gets [`Event::Lagged`].
pub struct Events {
    inner: Pin<Box<dyn Stream<Item = Event> + Send>>,
}

impl Events {
    pub(crate) fn new(receiver: Receiver<Event>) -> Self {
        let inner = futures_util::stream::unfold(Some(receiver), |receiver| async move {
            let mut receiver = receiver?;
            match receiver.recv().await {
                Ok(Event::Closed) => Some((Event::Closed, None)),
                Ok(event) => Some((event, Some(receiver))),
                Err(RecvError::Lagged(missed)) => Some((Event::Lagged { missed }, Some(receiver))),
                Err(RecvError::Closed) => None,
            }
        });
        Self { inner: Box::pin(inner) }
    }

    /// The next event; `None` once the router is gone.
    ///
    /// # Cancel safety
    /// Cancel safe: no event is lost.
    pub async fn next(&mut self) -> Option<Event> {
        self.inner.next().await
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.inner.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}
