//! Making a session fit for its next user: nothing of the last one is left in it.
//!
//! The reset is sent when the connection is given back and awaited when it is handed out next: nobody waits for a round
//! trip of it, unless the very same connection is wanted again at once.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use deadpool_postgres::ClientWrapper;
use futures_util::future::join;
use tokio_postgres::Error;

use super::transaction::columns;

/// What `DISCARD ALL` does, except that the statements the driver has prepared stay: preparing them anew would cost each
/// use a round trip. One message, so one transaction. The answer tells whether something is left that only
/// `DISCARD ALL` takes away: statements prepared by `PREPARE`, an open transaction.
const RESET: &str = "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; UNLISTEN *; DISCARD TEMP; \
    DISCARD SEQUENCES; SELECT pg_catalog.pg_advisory_unlock_all(), \
    pg_catalog.now() OPERATOR(pg_catalog.<>) pg_catalog.statement_timestamp() \
    OR EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE from_sql)";

/// How thoroughly a session is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reset {
    /// After a transaction the router began and ended.
    Light,
    /// After use by hand: a transaction may be open, anything may be prepared.
    Full,
}

type Work = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// A reset that was sent. Behind a mutex only because a connection in use is shared, and a future is not.
pub(crate) struct Sent(Mutex<Work>);

impl Sent {
    /// Sends the reset: what is sent on the connection from now on runs behind it.
    pub(crate) fn send(client: Arc<ClientWrapper>, reset: Reset) -> Self {
        let mut work: Work = Box::pin(async move {
            if reset == Reset::Light && light(&client).await {
                return Ok(());
            }
            // Two queries: DISCARD ALL may not stand in a transaction, and two statements in one query are one.
            let (ended, discarded) = join(client.batch_execute("ROLLBACK"), client.batch_execute("DISCARD ALL")).await;
            client.statement_cache.clear();
            ended.and(discarded)
        });
        // The first poll sends. An answer cannot be there yet; if the link is gone, the connection is closed.
        if let Poll::Ready(result) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            work = Box::pin(std::future::ready(result));
        }
        Self(Mutex::new(work))
    }

    /// Waits for the answer.
    pub(crate) async fn done(self) -> Result<(), Error> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).await
    }
}

/// Whether nothing is left. An error, as in a transaction that was left aborted, is not yet the end.
async fn light(client: &ClientWrapper) -> bool {
    let Ok(messages) = client.simple_query(RESET).await else { return false };
    columns::<2>(&messages).is_some_and(|[_, left]| left.as_deref() == Some("f"))
}
