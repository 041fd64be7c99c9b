//! Getting a connection to the primary, and waiting while there is none.

use std::time::{Duration, Instant};

use tokio::sync::TryAcquireError;

use super::pool::{Checkout, DialError};
use super::{Shared, now};
use crate::error::AcquireError;
use crate::observation::Incarnation;
use crate::policy::retry::pause_after_break;
use crate::topology::{Topology, WritesClosed};
use deadpool::managed::PoolError;

/// First pause after a server that is said to be the primary did not let us in: its probes have the same pace.
const PAUSE: Duration = Duration::from_millis(10);

/// Who asks for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    /// A call: refused as soon as the router is being closed.
    Call,
    /// A running write whose commit must be settled: served as long as a closing router waits for it.
    Settling,
}

/// A connection to the primary and the life of the primary it belongs to.
pub(crate) struct Acquired {
    pub(crate) node: usize,
    pub(crate) incarnation: Incarnation,
    pub(crate) checkout: Checkout,
}

impl Shared {
    /// Waits for a primary and a connection to it, until `deadline`.
    pub(crate) async fn acquire(&self, deadline: Instant, whom: Whom) -> Result<Acquired, AcquireError> {
        let began = now();
        let mut refusal = None;
        let mut held = None;
        let mut refusals = 0;
        let mut routing = self.routing();
        loop {
            routing.mark_unchanged();
            let refused = match whom {
                Whom::Call => self.is_closed(),
                Whom::Settling => self.is_over(),
            };
            if refused {
                return Err(AcquireError::Closed);
            }
            let topology = self.topology();
            let why = match self.target(&topology, whom) {
                Ok((node, incarnation)) => {
                    let attempt = tokio::select! {
                        attempt = self.take(node, incarnation, deadline) => attempt,
                        _ = routing.changed() => continue,
                    };
                    match attempt {
                        // The picture may have changed since, with its connections cut before this one was there.
                        Ok(checkout) if self.target(&self.topology(), whom) == Ok((node, incarnation)) => {
                            return Ok(Acquired { node, incarnation, checkout });
                        }
                        Ok(_) => {}
                        Err(error) => refusal = error.or(refusal),
                    }
                    None
                }
                Err(why) => Some(why),
            };
            if now() >= deadline {
                return Err(self.give_up(began, why, refusal));
            }
            // Who settles was let in before: it is bounded by the writes under way, and may not be turned away.
            if why.is_some() && held.is_none() && whom == Whom::Call {
                held = Some(self.enter_hold()?);
            }
            let wake = if why.is_some() {
                deadline
            } else {
                refusals += 1;
                deadline.min(now() + pause_after_break(refusals, PAUSE, self.random()))
            };
            tokio::select! {
                _ = routing.changed() => refusals = 0,
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
    }

    /// Where to go: the primary, which may be asked and may finish what is under way also while new writes are held for
    /// a planned switchover.
    fn target(&self, topology: &Topology, whom: Whom) -> Result<(usize, Incarnation), WritesClosed> {
        match (topology.writable, whom) {
            (Err(why @ (WritesClosed::Paused | WritesClosed::Draining)), Whom::Settling) => {
                let current = topology.lineage().current();
                current.and_then(|life| Some((self.index_of(&life.node)?, life.incarnation))).ok_or(why)
            }
            (writable, Whom::Call | Whom::Settling) => writable,
        }
    }

    /// Whether a transaction that is under way in that life of the primary may be committed, or asked about.
    pub(crate) fn may_commit(&self, node: usize, incarnation: &Incarnation) -> bool {
        self.target(&self.topology(), Whom::Settling) == Ok((node, *incarnation))
    }

    fn enter_hold(&self) -> Result<tokio::sync::SemaphorePermit<'_>, AcquireError> {
        match self.hold.try_acquire() {
            Ok(permit) => Ok(permit),
            Err(TryAcquireError::NoPermits) => {
                self.counters.shed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Err(AcquireError::HoldFull { limit: self.config.hold_limit })
            }
            Err(TryAcquireError::Closed) => Err(AcquireError::Closed),
        }
    }

    fn give_up(
        &self,
        began: Instant,
        why: Option<WritesClosed>,
        source: Option<tokio_postgres::Error>,
    ) -> AcquireError {
        let waited = now().saturating_duration_since(began);
        let topology = self.topology();
        match (why, topology.primary()) {
            (None, Some(primary)) => AcquireError::NoConnection { node: primary.id.clone(), waited, source },
            (why, _) => {
                let why = why.unwrap_or(WritesClosed::NoPrimary);
                AcquireError::NoPrimary { why, waited, nodes: topology.states(), reasons: self.reasons() }
            }
        }
    }

    /// Takes a connection that belongs to that life of the primary. `Err` holds what the server said, if anything.
    async fn take(
        &self,
        node: usize,
        incarnation: Incarnation,
        deadline: Instant,
    ) -> Result<Checkout, Option<tokio_postgres::Error>> {
        match tokio::time::timeout_at(deadline.into(), self.take_from(node)).await {
            Ok(Ok(checkout)) if checkout.identity().is_of(&incarnation) => Ok(checkout),
            // Another life than the one that is known, or another server: the monitor must look.
            Ok(Ok(_)) => {
                self.suspect(node);
                Err(None)
            }
            Ok(Err(error)) => {
                self.suspect(node);
                Err(error)
            }
            Err(_) => Err(None),
        }
    }

    /// Takes a connection to that server. `Err` holds what the server said, if anything. The caller bounds the wait.
    pub(crate) async fn take_from(&self, node: usize) -> Result<Checkout, Option<tokio_postgres::Error>> {
        let Some(server) = self.servers.get(node) else { return Err(None) };
        match server.pool.take().await {
            Ok(checkout) => Ok(checkout),
            Err(PoolError::Backend(DialError::Postgres(error))) => Err(Some(error)),
            Err(_) => Err(None),
        }
    }
}
