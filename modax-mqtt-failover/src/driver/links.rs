//! The transports of all attempts: those that are being opened, and those that stand.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use super::link::{Link, Progress};
use crate::transport::{Opening, Transport};

/// What one of them did.
pub(super) enum Found {
    Dialled(u64, io::Result<Transport>),
    Moved(u64, Progress),
}

/// A few at most: one that serves, candidates, and those beside.
#[derive(Default)]
pub(super) struct Links {
    dials: Vec<(u64, Opening)>,
    open: Vec<Link>,
    /// Where the next look begins, so that none waits for a busy one.
    turn: usize,
}

impl Links {
    pub(super) fn dial(&mut self, attempt: u64, opening: Opening) {
        self.dials.push((attempt, opening));
    }

    pub(super) fn add(&mut self, link: Link) {
        self.open.push(link);
    }

    /// Those that stand and those that are being opened.
    pub(super) fn len(&self) -> usize {
        self.open.len().saturating_add(self.dials.len())
    }

    pub(super) fn get(&self, attempt: u64) -> Option<&Link> {
        self.open.iter().find(|link| link.attempt == attempt)
    }

    pub(super) fn get_mut(&mut self, attempt: u64) -> Option<&mut Link> {
        self.open.iter_mut().find(|link| link.attempt == attempt)
    }

    /// Takes an attempt out, whatever stage it is in; the link if it stood.
    pub(super) fn remove(&mut self, attempt: u64) -> Option<Link> {
        self.dials.retain(|(dialled, _)| *dialled != attempt);
        let place = self.open.iter().position(|link| link.attempt == attempt)?;
        Some(self.open.swap_remove(place))
    }

    /// The next thing that any of them does. Of `unread` nothing is read.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        now: impl Fn() -> Instant,
        unread: Option<u64>,
    ) -> Poll<Found> {
        for place in 0..self.dials.len() {
            let Some((attempt, dialling)) = self.dials.get_mut(place) else { break };
            if let Poll::Ready(result) = Pin::new(dialling).poll(context) {
                let attempt = *attempt;
                drop(self.dials.swap_remove(place));
                return Poll::Ready(Found::Dialled(attempt, result));
            }
        }
        let count = self.open.len();
        for step in 0..count {
            let place = self.turn.saturating_add(step).checked_rem(count).unwrap_or(0);
            let Some(link) = self.open.get_mut(place) else { break };
            let read = unread != Some(link.attempt);
            if let Poll::Ready(progress) = link.poll(context, &now, read) {
                self.turn = place.saturating_add(1);
                return Poll::Ready(Found::Moved(link.attempt, progress));
            }
        }
        Poll::Pending
    }
}
