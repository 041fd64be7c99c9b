//! Reads: a preference, a bound, a token, one deadline.

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::error::ReadError;
use crate::lsn::WriteToken;
use crate::plan::{Plan, ReadRequest};
use crate::router::Router;
use crate::topology::NodeId;

/// The answer to a read.
#[derive(Debug)]
#[non_exhaustive]
pub struct Rows {
    /// The rows.
    pub rows: Vec<Row>,
    /// The server that answered.
    pub node: NodeId,
    /// How old the server's data was at most when the statement was sent to it, by this router's own clock; zero on
    /// the primary, `None` if nothing can be proved.
    pub staleness: Option<Duration>,
}

/// A read that is being described; made by [`Router::read`].
#[derive(Clone, Debug)]
#[must_use = "nothing is read before `query`"]
pub struct Read<'a> {
    router: &'a Router,
    request: ReadRequest,
    deadline: Duration,
}

impl<'a> Read<'a> {
    pub(crate) const fn new(router: &'a Router, request: ReadRequest, deadline: Duration) -> Self {
        Self { router, request, deadline }
    }

    /// The server's data may be at most this old when the statement is sent to it; a server that is known to be older
    /// by the time its rows come is not believed either. Default: no bound.
    pub const fn max_staleness(mut self, bound: Duration) -> Self {
        self.request.max_staleness = Some(bound);
        self
    }

    /// The write of this token must be visible. Default: none has to be, and any server within the bounds may answer.
    pub const fn at_least(mut self, token: &WriteToken) -> Self {
        self.request.at_least = Some(*token);
        self
    }

    /// Longest time for all attempts together. Default: [`Config::read_deadline`](crate::Config::read_deadline).
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Who would answer this read now, and why the others would not.
    #[must_use]
    pub fn explain(&self) -> Plan {
        self.router.explain(&self.request)
    }

    /// Runs one statement and returns its rows.
    ///
    /// Tries one server after the other within the deadline. It runs in a read-only transaction
    /// that is rolled back, and what it leaves in its session (a session-level advisory lock) is taken away before the
    /// connection's next user.
    ///
    /// # Errors
    /// - [`ReadError::NoNode`]: nobody was allowed to answer; it says why each was left out.
    /// - [`ReadError::NoAnswer`]: those who were allowed did not.
    /// - [`ReadError::TokenLost`], [`ReadError::TokenUnproven`], [`ReadError::TokenForeign`]: no wait helps.
    /// - [`ReadError::Statement`]: the server refused the statement.
    ///
    /// # Cancel safety
    /// Cancel safe: a connection whose answer was not awaited is closed, not reused.
    pub async fn query(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Rows, ReadError> {
        self.router.shared().query(&self.request, self.deadline, sql, params).await
    }
}
