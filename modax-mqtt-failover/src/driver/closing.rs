//! How a client ends: it sends what it has until a deadline, says goodbye, and accounts for the rest.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use super::{Driver, now};
use crate::{
    courier::{Input, Output},
    event::{Event, Status},
    handover::Told,
    message::{Outcome, Undelivered},
};

/// Between the goodbye and the end of the socket.
const GOODBYE: Duration = Duration::from_millis(250);
/// For the disk to take the last records; a disk that needs longer is failing.
const LAST_COMMIT: Duration = Duration::from_secs(5);

/// Stands for a time that no clock can say: ten years.
const AGES: Duration = Duration::from_secs(10 * 365 * 86_400);

impl Driver {
    pub(super) fn close(&mut self, time: Duration) {
        let deadline = now().checked_add(time).unwrap_or_else(|| now() + AGES);
        self.closing = Some(self.closing.map_or(deadline, |earlier| earlier.min(deadline)));
    }

    pub(super) fn is_finished(&self) -> bool {
        let Some(deadline) = self.closing else { return false };
        let state = self.shared.lock();
        let quiet = state.backlog.messages() == 0 && state.acknowledged.is_empty() && self.settled.is_empty();
        quiet || deadline <= now()
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
        self.account();
        let disk = self.shared.lock().disk.take();
        if let Some(disk) = disk {
            let _ = tokio::time::timeout(LAST_COMMIT, disk.stop()).await;
        }
    }

    /// Notes what is left, with every receipt resolved.
    fn account(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let mut told = self.settle(&mut state);
        let mut left = self.courier.drain();
        left.extend(state.backlog.drain().into_iter().map(|admitted| (admitted, 0)));
        for (admitted, attempts) in left {
            let maybe_delivered = attempts > 0 || admitted.recovered;
            state.backlog.settle(admitted.id);
            state.admission.undelivered = state.admission.undelivered.saturating_add(1);
            state.end(admitted.id, Outcome::Undelivered { maybe_delivered }, &mut told);
            let topic = admitted.message.topic().to_owned();
            self.left.undelivered.push(Undelivered { topic, payload: admitted.message.payload, maybe_delivered });
        }
        state.status = self.courier.status().clone();
        state.delivery = self.courier.stats();
        drop(state);
        #[cfg(feature = "metrics")]
        shared.measure();
        shared.tell(told);
    }
}

impl Drop for Driver {
    /// At the end, and when the runtime ends or the task panics first: nobody waits for an answer that cannot come.
    fn drop(&mut self) {
        // Whoever publishes from another runtime meanwhile: what is admitted behind the last account would be on none.
        self.shared.lock().closed = true;
        // What a panic left half done may panic again, and a second one would end the process.
        let _ = catch_unwind(AssertUnwindSafe(|| self.account()));
        let mut state = self.shared.lock();
        state.closed = true;
        state.ended = true;
        state.acknowledged.clear();
        state.commands.clear();
        if state.status.is_connected() {
            state.status = Status { since: Some(now()), ..Status::default() };
        }
        let mut told = Told::new();
        // A panic took them along.
        for (id, receipt) in std::mem::take(&mut state.receipts) {
            state.backlog.settle(id);
            state.admission.undelivered = state.admission.undelivered.saturating_add(1);
            told.push((Some(receipt), Outcome::Undelivered { maybe_delivered: true }));
        }
        state.left = std::mem::take(&mut self.left);
        for leaving in std::mem::take(&mut state.leaving) {
            let left = std::mem::take(&mut state.left);
            // One that gave up waiting leaves it to the next.
            state.left = leaving.send(left).err().unwrap_or_default();
        }
        let disk = state.disk.take();
        drop(state);
        drop(disk);
        self.shared.tell(told);
        self.readers.clear();
        #[cfg(feature = "metrics")]
        self.shared.measure();
        self.shared.emit(Event::Closed);
        self.shared.room.notify_waiters();
    }
}
