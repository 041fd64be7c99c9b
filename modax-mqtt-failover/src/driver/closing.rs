//! How a client ends: it sends what it has until a deadline, says goodbye, and accounts for the rest.

use std::{
    future::poll_fn,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{Driver, now};
use crate::{
    courier::{Input, Output},
    message::{Closed, Outcome, Undelivered},
};

/// Between the goodbye and the end of the socket.
const GOODBYE: Duration = Duration::from_millis(250);
/// For the disk to take the last records; a disk that needs longer is failing.
const LAST_COMMIT: Duration = Duration::from_secs(5);

pub(super) struct Closing {
    pub(super) deadline: Instant,
    pub(super) left: Option<oneshot::Sender<Closed>>,
}

/// Stands for a time that no clock can say: ten years.
const AGES: Duration = Duration::from_secs(10 * 365 * 86_400);

impl Closing {
    pub(super) fn new(time: Duration, left: Option<oneshot::Sender<Closed>>) -> Self {
        let deadline = now().checked_add(time).unwrap_or_else(|| now() + AGES);
        Self { deadline, left }
    }
}

impl Driver {
    pub(super) fn is_finished(&self) -> bool {
        let Some(closing) = &self.closing else { return false };
        let state = self.shared.lock();
        let quiet = state.backlog.messages() == 0 && state.acknowledged.is_empty() && self.settled.is_empty();
        quiet || closing.deadline <= now()
    }

    pub(super) async fn finish(&mut self) {
        let serving = self.courier.attempt();
        self.courier.handle_input(now(), Input::Stop);
        // The link has to outlive its own HangUp here, because here there is time to wait for it.
        let mut link = None;
        while let Some(output) = self.courier.poll_output() {
            match output {
                Output::Send { attempt, packet } => self.send(attempt, &packet),
                Output::HangUp { attempt } if attempt == serving => link = self.links.remove(attempt),
                Output::HangUp { attempt } => self.hang_up(attempt),
                Output::Settled { id, outcome } => self.settled.push((id, outcome)),
                Output::Event(event) => self.shared.emit(event),
                Output::Dial { .. } | Output::Deliver { .. } | Output::Granted { .. } | Output::Gap { .. } => {}
            }
        }
        if let Some(mut link) = link {
            let goodbye = async {
                poll_fn(|context| link.poll_finish(context, now)).await;
                poll_fn(|context| link.poll_drain(context)).await;
            };
            let _ = tokio::time::timeout(GOODBYE, goodbye).await;
        }
        let left = self.account();
        let disk = self.shared.lock().disk.take();
        if let Some(disk) = disk {
            let _ = tokio::time::timeout(LAST_COMMIT, disk.stop()).await;
        }
        if let Some(sender) = self.closing.take().and_then(|closing| closing.left) {
            let _ = sender.send(left);
        }
    }

    /// What is left, with every receipt resolved.
    fn account(&mut self) -> Closed {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let mut told = self.settle(&mut state);
        let mut left = self.courier.drain();
        left.extend(state.backlog.drain().into_iter().map(|admitted| (admitted, 0)));
        let mut closed = Closed::default();
        for (admitted, attempts) in left {
            let maybe_delivered = attempts > 0 || admitted.recovered;
            state.backlog.settle(admitted.id);
            state.admission.undelivered = state.admission.undelivered.saturating_add(1);
            state.end(admitted.id, Outcome::Undelivered { maybe_delivered }, &mut told);
            let topic = admitted.message.topic().to_owned();
            closed.undelivered.push(Undelivered { topic, payload: admitted.message.payload, maybe_delivered });
        }
        state.status = self.courier.status().clone();
        state.delivery = self.courier.stats();
        drop(state);
        #[cfg(feature = "metrics")]
        shared.measure();
        shared.tell(told);
        closed
    }
}
