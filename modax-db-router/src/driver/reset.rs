//! Making a session fit for its next user: nothing of the last one is left in it.
//!
//! The reset is sent when the connection is given back, and nobody waits for it: what the next user sends runs behind
//! it, and its answer comes before theirs. Only then, before anything is committed or returned, it is looked at.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use deadpool_postgres::ClientWrapper;
use tokio_postgres::Error;

use super::evidence::columns;

/// What `DISCARD ALL` does, except that the statements the driver has prepared stay: preparing them anew would cost each
/// use a round trip. One message, so one transaction. The answer tells whether something is left that only
/// `DISCARD ALL` takes away: statements prepared by `PREPARE`, an open transaction.
const AFTER_WRITE: &str = "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; UNLISTEN *; \
    DISCARD TEMP; DISCARD SEQUENCES; SELECT pg_catalog.pg_advisory_unlock_all(), \
    pg_catalog.now() OPERATOR(pg_catalog.<>) pg_catalog.statement_timestamp() \
    OR EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE from_sql)";

/// The same behind a transaction that was rolled back, and took all with it but these.
const AFTER_READ: &str = "SELECT pg_catalog.pg_advisory_unlock_all(), \
    EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE from_sql)";

/// How thoroughly a session is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reset {
    /// After a transaction that the router rolled back.
    AfterRead,
    /// After a transaction that the router ended.
    AfterWrite,
}

type Answer = Result<bool, Error>;
type Work = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// A reset that was sent. Behind a mutex only because a connection in use is shared, and a future is not.
pub(crate) struct Sent(Mutex<Work>);

impl Sent {
    /// Sends the reset.
    pub(crate) fn send(client: Arc<ClientWrapper>, reset: Reset) -> Self {
        let mut work: Work = Box::pin(async move {
            match reset {
                Reset::AfterRead => after_read(&client).await,
                Reset::AfterWrite => after_write(&client).await,
            }
        });
        // The first poll sends. An answer cannot be there yet; if the link is gone, the connection is closed.
        if let Poll::Ready(answer) = look(&mut work) {
            work = Box::pin(std::future::ready(answer));
        }
        Self(Mutex::new(work))
    }

    /// What is known by now; itself again if the answer is still on its way.
    pub(crate) fn look(mut self) -> Result<bool, Self> {
        match look(self.0.get_mut().unwrap_or_else(PoisonError::into_inner)) {
            Poll::Ready(answer) => Ok(answer.unwrap_or(false)),
            Poll::Pending => Err(self),
        }
    }

    /// Waits for the answer: whether nothing is left in the session.
    pub(crate) async fn clean(self) -> bool {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).await.unwrap_or(false)
    }
}

fn look(work: &mut Work) -> Poll<Answer> {
    work.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

async fn after_write(client: &ClientWrapper) -> Answer {
    let messages = client.simple_query(AFTER_WRITE).await?;
    Ok(columns::<2>(&messages).is_some_and(|[_, left]| left.as_deref() == Some("f")))
}

/// Prepared: to plan it would cost the server more than to run it.
async fn after_read(client: &ClientWrapper) -> Answer {
    let statement = client.prepare_cached(AFTER_READ).await?;
    let left: bool = client.query_one(&statement, &[]).await?.try_get(1)?;
    Ok(!left)
}

/// Takes away whatever there is, an open transaction first.
pub(crate) async fn discard(client: &ClientWrapper) -> Result<(), Error> {
    // Two queries: DISCARD ALL may not stand in a transaction, and two statements in one query are one.
    client.batch_execute("ROLLBACK").await?;
    client.batch_execute("DISCARD ALL").await?;
    client.statement_cache.clear();
    Ok(())
}
