//! Connections to one server.

use std::fmt;
use std::ops::Deref;

/// A connection that is in use.
pub(crate) struct Checkout {
    client: tokio_postgres::Client,
}

impl Checkout {
    pub(crate) const fn client(&self) -> &tokio_postgres::Client {
        &self.client
    }
}

/// A connection to the primary. Dereferences to [`tokio_postgres::Client`]; goes back to its pool when dropped.
pub struct Connection {
    inner: Checkout,
}

impl Deref for Connection {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &tokio_postgres::Client {
        self.inner.client()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}
