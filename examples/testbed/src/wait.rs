//! Waiting for something to become true, always with a deadline: the testbed's replacement for a sleep.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::TestbedError;

/// How often a condition is asked again. Short beside the seconds a server takes, long beside a loopback answer.
const PAUSE: Duration = Duration::from_millis(20);

/// An answer to "is it so yet?": a `bool`, or an `Option` whose content is wanted.
pub trait Answer {
    /// What is known once it is so.
    type Known;
    /// The content, or nothing while it is not so.
    fn known(self) -> Option<Self::Known>;
}

impl Answer for bool {
    type Known = ();
    fn known(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Answer for Option<T> {
    type Known = T;
    fn known(self) -> Option<T> {
        self
    }
}

/// Asks `question` again and again until it is answered with yes, at most for `deadline`.
///
/// A question that hangs is dropped at the deadline, so it must be safe to cancel.
///
/// # Errors
/// [`TestbedError::Deadline`], naming `what`, when the answer was still no.
///
/// # Cancel safety
/// Safe: nothing is kept between two questions.
pub async fn until<F, Fut, A>(deadline: Duration, what: &str, mut question: F) -> Result<A::Known, TestbedError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = A>,
    A: Answer,
{
    let end = Instant::now() + deadline;
    loop {
        match timeout_at(end, question()).await {
            Ok(answer) => {
                if let Some(known) = answer.known() {
                    return Ok(known);
                }
            }
            Err(_) => return Err(late(what, deadline)),
        }
        if Instant::now() + PAUSE >= end {
            return Err(late(what, deadline));
        }
        sleep(PAUSE).await;
    }
}

fn late(what: &str, after: Duration) -> TestbedError {
    TestbedError::Deadline { what: what.to_owned(), after, last: String::new() }
}
