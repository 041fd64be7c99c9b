//! A short rest from reading while as much is under way as may be.
//!
//! A broker acknowledges each message by itself. To read and answer each by itself costs both sides more than the message
//! does. With the window full nothing is lost by letting answers gather for a moment: the broker has the rest of the window
//! to go on with. Only reading rests; whatever else comes up is done at once, and reads what is there.

use std::time::Duration;

#[cfg(target_os = "linux")]
use linux::Timer;
#[cfg(not(target_os = "linux"))]
use none::Timer;

/// With fewer under way the broker could run out of work.
const FEWEST: usize = 64;
/// For each message under way. mosquitto needs about ten times as long for one.
const EACH: Duration = Duration::from_nanos(400);
/// Felt by nobody, also where the way to the broker is what takes time.
const LONGEST: Duration = Duration::from_micros(100);

/// See the head of this file.
#[derive(Default)]
pub(super) struct Rest {
    timer: Timer,
    is_on: bool,
    /// Something was read since the last rest: silence would only be waited for.
    is_earned: bool,
}

impl Rest {
    pub(super) fn heard(&mut self) {
        self.is_earned = true;
    }

    /// No more may be sent, and the broker has so many messages to answer. Only over a socket: on a runtime that does not
    /// watch descriptors the timer could not be built.
    pub(super) fn begin(&mut self, on_the_wire: usize) {
        if on_the_wire >= FEWEST && !self.is_on && std::mem::take(&mut self.is_earned) {
            self.is_on = self.timer.set(time(on_the_wire));
        }
    }

    pub(super) const fn is_on(&self) -> bool {
        self.is_on
    }

    /// Waits for the end of a rest; for ever when none is on. Cancel safe.
    pub(super) async fn end(&mut self) {
        if !self.is_on {
            std::future::pending::<()>().await;
        }
        self.timer.rings().await;
        self.is_on = false;
    }
}

fn time(on_the_wire: usize) -> Duration {
    EACH.saturating_mul(u32::try_from(on_the_wire).unwrap_or(u32::MAX)).min(LONGEST)
}

/// The timers of tokio tick once a millisecond, in which a broker could run out of work.
#[cfg(target_os = "linux")]
mod linux {
    use std::{os::fd::OwnedFd, time::Duration};

    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
    };
    use tokio::io::{Interest, unix::AsyncFd};

    #[derive(Default)]
    pub(super) struct Timer(Option<AsyncFd<OwnedFd>>);

    impl Timer {
        /// Whether it will ring: without a free file descriptor there is no rest.
        pub(super) fn set(&mut self, time: Duration) -> bool {
            if self.0.is_none() {
                self.0 = create();
            }
            let Some(timer) = &self.0 else { return false };
            let never = Timespec { tv_sec: 0, tv_nsec: 0 };
            let Ok(time) = Timespec::try_from(time) else { return false };
            let once = Itimerspec { it_interval: never, it_value: time };
            timerfd_settime(timer, TimerfdTimerFlags::empty(), &once).is_ok()
        }

        pub(super) async fn rings(&self) {
            // Nothing is read from it: setting it again takes back what it counts. On an error the runtime is at its end.
            if let Some(timer) = &self.0
                && let Ok(mut ring) = timer.readable().await
            {
                ring.clear_ready();
            }
        }
    }

    #[allow(deprecated, reason = "unsound for what gives out another descriptor each time, and by some versions only")]
    fn create() -> Option<AsyncFd<OwnedFd>> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK).ok()?;
        AsyncFd::with_interest(timer, Interest::READABLE).ok()
    }
}

/// Another system: it never rests.
#[cfg(not(target_os = "linux"))]
mod none {
    #[derive(Default)]
    pub(super) struct Timer;

    impl Timer {
        pub(super) const fn set(&mut self, _time: std::time::Duration) -> bool {
            false
        }

        pub(super) async fn rings(&self) {}
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Whether a rest is on: then it has not ended when it is first looked at, and ends by itself.
    async fn rests(rest: &mut Rest) -> bool {
        let is_on = rest.is_on();
        if is_on {
            // The runtime has not looked at its descriptors since the rest began.
            assert!(rest.end().now_or_never().is_none(), "it lasts");
            tokio::time::timeout(Duration::from_secs(60), rest.end()).await.expect("it ends");
            assert!(!rest.is_on(), "it has ended");
        }
        is_on
    }

    #[tokio::test]
    async fn a_full_window_rests_once_after_each_read_and_every_rest_lasts_and_ends() {
        let mut rest = Rest::default();
        rest.begin(100);
        assert!(!rests(&mut rest).await, "nothing was read yet");

        for _ in 0..100 {
            rest.heard();
            rest.begin(100);
            assert!(rests(&mut rest).await);
            rest.begin(100);
            assert!(!rests(&mut rest).await, "a silent broker is not waited for again and again");
        }
    }

    #[tokio::test]
    async fn a_small_window_never_rests() {
        let mut rest = Rest::default();
        rest.heard();
        rest.begin(FEWEST - 1);
        assert!(!rests(&mut rest).await);
        rest.begin(FEWEST);
        assert!(rests(&mut rest).await);
    }

    #[test]
    fn a_rest_grows_with_the_window_and_has_an_end() {
        assert_eq!([time(100), time(200)], [Duration::from_micros(40), Duration::from_micros(80)]);
        assert_eq!([time(1000), time(usize::MAX)], [LONGEST; 2]);
    }
}
