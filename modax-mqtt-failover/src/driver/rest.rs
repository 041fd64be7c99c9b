//! A short rest from reading while as much is on the wire as may be.
//!
//! A broker acknowledges each message by itself. To read and answer each by itself costs both sides more than the message
//! does. With the window full nothing is lost by letting answers gather for a moment: the broker has the other messages to go
//! on with. Only reading from the broker that serves rests, and with it what it sends to subscribers; a handle, a reader with
//! room again and a time that is due make the driver read what is there sooner.

use std::time::Duration;

#[cfg(target_os = "linux")]
use linux::Timer;
#[cfg(not(target_os = "linux"))]
use none::Timer;

/// With fewer on the wire the broker could run out of work.
const FEWEST: usize = 64;
/// For each message on the wire. mosquitto needs about ten times as long for one.
const EACH: Duration = Duration::from_nanos(400);
/// Felt by nobody, also where the way to the broker is what takes time.
const LONGEST: Duration = Duration::from_micros(100);
/// So often in a row no rest is taken, at most, after rests in which nothing came.
const MOST_SKIPPED: u32 = 64;

/// See the head of this file.
#[derive(Default)]
pub(super) struct Rest {
    timer: Timer,
    is_on: bool,
    /// The last one has ended, and nobody has asked yet whether it was worth it.
    has_ended: bool,
    /// The broker was heard since this was asked last: otherwise silence would only be waited for.
    is_earned: bool,
    /// How many rests are left out, and how many of them are still to come. Where the way to the broker takes the time,
    /// answers come one by one, and a rest is a timer for nothing.
    skipped: u32,
    to_skip: u32,
}

impl Rest {
    /// Something was read, from the broker that serves or from another one.
    pub(super) fn heard(&mut self, from_serving: bool) {
        self.is_earned |= from_serving;
    }

    /// No more may be sent, and the broker has so many messages to answer. Only over a socket: on a runtime that does not
    /// watch descriptors the timer could not be built.
    pub(super) fn begin(&mut self, on_the_wire: usize) {
        if on_the_wire < FEWEST || self.is_on {
            return;
        }
        let is_earned = std::mem::take(&mut self.is_earned);
        if std::mem::take(&mut self.has_ended) {
            self.skipped = if is_earned { 0 } else { self.skipped.saturating_mul(2).clamp(2, MOST_SKIPPED) };
            self.to_skip = self.skipped;
        }
        if !is_earned {
            return;
        }
        if let Some(left) = self.to_skip.checked_sub(1) {
            self.to_skip = left;
            return;
        }
        self.is_on = self.timer.set(time(on_the_wire));
        #[cfg(test)]
        TAKEN.set(TAKEN.get() + u32::from(self.is_on));
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
        self.has_ended = true;
    }
}

#[cfg(test)]
thread_local! {
    /// Rests begun on this thread.
    static TAKEN: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
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

    #[allow(
        deprecated,
        reason = "unsound where the descriptor changes, which ours does not; deprecated by some versions only"
    )]
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
    use tokio::{
        io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::{
        Client, Message,
        transport::{Dial, Transport},
    };

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
            rest.heard(true);
            rest.begin(100);
            assert!(rests(&mut rest).await);
        }

        rest.begin(100);
        assert!(!rests(&mut rest).await, "a silent broker is not waited for again and again");
        rest.heard(false);
        rest.begin(100);
        assert!(!rests(&mut rest).await, "another one was heard");
    }

    #[tokio::test]
    async fn a_small_window_never_rests() {
        let mut rest = Rest::default();
        rest.heard(true);
        rest.begin(FEWEST - 1);
        assert!(!rests(&mut rest).await);
        rest.begin(FEWEST);
        assert!(rests(&mut rest).await);
    }

    /// How many reads pass until the next rest.
    async fn reads_before_a_rest(rest: &mut Rest) -> u32 {
        for reads in 0..=MOST_SKIPPED {
            rest.heard(true);
            rest.begin(100);
            if rests(rest).await {
                return reads;
            }
        }
        panic!("no rest any more");
    }

    #[tokio::test]
    async fn rests_in_which_nothing_comes_are_taken_more_and_more_seldom_until_something_does() {
        let mut rest = Rest::default();
        let mut before = Vec::new();
        for _ in 0..8 {
            before.push(reads_before_a_rest(&mut rest).await);
            rest.begin(100);
        }
        assert_eq!(before, [0, 2, 4, 8, 16, 32, 64, 64]);

        assert_eq!(reads_before_a_rest(&mut rest).await, 64, "the last one was in vain");
        assert_eq!(reads_before_a_rest(&mut rest).await, 0, "in the last one something came");
    }

    #[test]
    fn a_rest_grows_with_the_window_and_has_an_end() {
        assert_eq!([time(100), time(200)], [Duration::from_micros(40), Duration::from_micros(80)]);
        assert_eq!([time(1000), time(usize::MAX)], [LONGEST; 2]);
    }

    /// Acknowledges nothing before it has `window` messages, then each by itself.
    async fn serve(mut wire: impl AsyncRead + AsyncWrite + Unpin, window: usize) -> std::io::Result<()> {
        let (mut published, mut is_full) = (Vec::new(), false);
        loop {
            let kind = wire.read_u8().await?;
            let mut body = vec![0; usize::from(wire.read_u8().await?)];
            wire.read_exact(&mut body).await?;
            match kind >> 4 {
                1 => wire.write_all(&[0x20, 2, 0, 0]).await?,
                // Its identifier stands behind the topic `t`.
                3 => published.push([body[3], body[4]]),
                12 => wire.write_all(&[0xd0, 0]).await?,
                _ => return Ok(()),
            }
            is_full |= published.len() == window;
            if is_full {
                for [high, low] in published.drain(..) {
                    wire.write_all(&[0x40, 2, high, low]).await?;
                }
            }
        }
    }

    #[tokio::test]
    async fn a_client_whose_window_is_full_rests() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("mqtt://{}", listener.local_addr().unwrap());
        let broker = tokio::spawn(async move { serve(listener.accept().await?.0, 100).await });
        let client = Client::builder("rests").brokers([url]).unwrap().max_inflight(100).build().unwrap();

        let before = TAKEN.get();
        let all = async {
            let publishes = (0..1000).map(|_| client.publish(Message::new("t", "x")));
            for receipt in futures_util::future::try_join_all(publishes).await.unwrap() {
                assert!(receipt.acked().await.is_acked());
            }
            client.close(Duration::from_secs(60)).await;
            broker.await.unwrap().unwrap();
        };
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("an end");

        // Once for the greeting, and again after acknowledgements: the window stays full for 900 more messages.
        assert!(TAKEN.get() - before > 1, "{} rests", TAKEN.get() - before);
    }

    #[test]
    fn a_full_window_over_a_pipe_needs_no_runtime_that_watches_descriptors() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let builder = Client::builder("pipe").brokers(["mqtt://nowhere"]).unwrap().max_inflight(100);
            let pipe = |_: Dial| async {
                let (ours, theirs) = tokio::io::duplex(1 << 16);
                tokio::spawn(serve(theirs, 100));
                Ok(Transport::new(ours))
            };
            let client = builder.connector(pipe).build().unwrap();
            let publishes = (0..1000).map(|_| client.publish(Message::new("t", "x")));
            for receipt in futures_util::future::try_join_all(publishes).await.unwrap() {
                assert!(receipt.acked().await.is_acked());
            }
            assert!(client.close(Duration::from_secs(60)).await.undelivered.is_empty());
        });
    }
}
