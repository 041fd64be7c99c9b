//! Where the relay gets its connection.

use std::{future::Future, ops::Deref};

use async_trait::async_trait;
use deadpool_postgres::{ClientWrapper, Pool};
use tokio_postgres::Client;

use crate::sink::BoxError;

/// A connection, owned by the relay until it drops it.
pub type BoxConnection = Box<dyn Deref<Target = Client> + Send + Sync>;

/// Gives connections to the primary of the moment.
///
/// The relay holds one connection for as long as it works and asks for another after any failure, so an implementation that
/// follows failovers (a router) is all it takes for the relay to follow them. A connection to a replica is harmless: the first
/// statement fails there and another connection is asked for. Every call has a deadline.
///
/// A closure `Fn() -> impl Future<Output = Result<BoxConnection, BoxError>>` is enough.
#[async_trait]
pub trait Connections: Send + Sync + 'static {
    /// A connection to the current primary, without an open transaction.
    ///
    /// # Errors
    /// Any; the relay waits a little and asks again.
    ///
    /// # Cancel safety
    /// Dropped when it takes too long.
    async fn connection(&self) -> Result<BoxConnection, BoxError>;
}

#[async_trait]
impl<F, Fut> Connections for F
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<BoxConnection, BoxError>> + Send,
{
    async fn connection(&self) -> Result<BoxConnection, BoxError> {
        self().await
    }
}

/// The connection is taken out of the pool for good: the relay keeps it for hours, and after a statement that was given up it
/// must not go back.
#[async_trait]
impl Connections for Pool {
    async fn connection(&self) -> Result<BoxConnection, BoxError> {
        let object = self.get().await?;
        let detached: ClientWrapper = deadpool_postgres::Object::take(object);
        Ok(Box::new(detached))
    }
}
