//! A prober: asks one question ten times a second and remembers each answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

/// Ten times a second.
pub(crate) const PACE: Duration = Duration::from_millis(100);

/// One answered question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answered {
    /// When it was asked.
    pub(crate) asked: Instant,
    /// When the answer was there.
    pub(crate) at: Instant,
    pub(crate) good: bool,
}

/// A running prober; ends when dropped.
pub(crate) struct Prober {
    answers: Arc<Mutex<Vec<Answered>>>,
    _task: JoinSet<()>,
}

impl Prober {
    /// Asks at its pace whether or not earlier questions are answered, so that a question that hangs hides none of
    /// the later ones. Each question needs its own deadline.
    pub(crate) fn start<A, F>(ask: A) -> Self
    where
        A: Fn() -> F + Send + 'static,
        F: Future<Output = bool> + Send + 'static,
    {
        let answers: Arc<Mutex<Vec<Answered>>> = Arc::default();
        let mut task = JoinSet::new();
        let kept = answers.clone();
        task.spawn(async move {
            let mut pace = interval(PACE);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut running = JoinSet::new();
            loop {
                pace.tick().await;
                while running.try_join_next().is_some() {}
                let (asked, question, kept) = (Instant::now(), ask(), kept.clone());
                running.spawn(async move {
                    let good = question.await;
                    lock(&kept).push(Answered { asked, at: Instant::now(), good });
                });
            }
        });
        Self { answers, _task: task }
    }

    /// Every answer so far, in the order in which they were asked.
    pub(crate) fn answers(&self) -> Vec<Answered> {
        let mut answers = lock(&self.answers).clone();
        answers.sort_by_key(|answered| answered.asked);
        answers
    }

    /// The first failure of a question asked since `start`.
    pub(crate) fn first_failure(&self, start: Instant) -> Option<Instant> {
        lock(&self.answers)
            .iter()
            .filter(|answered| answered.asked >= start && !answered.good)
            .map(|answered| answered.at)
            .min()
    }

    /// Failures of questions asked since `start`.
    pub(crate) fn failures(&self, start: Instant) -> u64 {
        lock(&self.answers).iter().filter(|answered| answered.asked >= start && !answered.good).count() as u64
    }

    /// How many questions were answered.
    pub(crate) fn count(&self) -> u64 {
        lock(&self.answers).len() as u64
    }

    /// The first success after the last failure, of questions asked since `start`.
    pub(crate) fn recovered(&self, start: Instant) -> Option<Instant> {
        recovered(&self.answers(), start)
    }
}

fn recovered(answers: &[Answered], start: Instant) -> Option<Instant> {
    let since: Vec<&Answered> = answers.iter().filter(|answered| answered.asked >= start).collect();
    let after_failure = since.iter().rposition(|answered| !answered.good).map_or(0, |index| index + 1);
    since.get(after_failure..)?.iter().map(|answered| answered.at).min()
}

fn lock(answers: &Mutex<Vec<Answered>>) -> MutexGuard<'_, Vec<Answered>> {
    answers.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovered_is_the_first_success_after_the_last_failure() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let answered = |ms, good| Answered { asked: at(ms), at: at(ms + 5), good };
        let answers =
            [answered(0, false), answered(100, true), answered(200, false), answered(300, true), answered(400, true)];
        assert_eq!(recovered(&answers, begun), Some(at(305)));
        assert_eq!(recovered(&answers[..3], begun), None);
        assert_eq!(recovered(&answers, at(400)), Some(at(405)));
        assert_eq!(recovered(&answers, at(500)), None);
    }
}
