//! The lock, the flag and the wake-ups of the hand-over; with `--cfg modax_loom` those of a model that tries every
//! interleaving.

#[cfg(not(all(test, modax_loom)))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic::AtomicBool};

#[cfg(not(all(test, modax_loom)))]
pub(crate) use tokio::sync::Notify;

#[cfg(all(test, modax_loom))]
pub(crate) use self::modelled::Notify;
#[cfg(all(test, modax_loom))]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic::AtomicBool};

/// tokio's own wake-ups, whose order against each other the model varies. It cannot look inside them, which tokio's tests
/// do.
#[cfg(all(test, modax_loom))]
mod modelled {
    use std::{
        future::Future,
        pin::Pin,
        sync::atomic::Ordering,
        task::{Context, Poll},
    };

    use tokio::sync::futures;

    pub(crate) struct Notify {
        inner: tokio::sync::Notify,
        /// Changed by each operation: the model varies the order of what it sees to depend on each other.
        steps: loom::sync::atomic::AtomicUsize,
    }

    pub(crate) struct Notified<'n> {
        notify: &'n Notify,
        inner: Pin<Box<futures::Notified<'n>>>,
    }

    impl Notify {
        pub(crate) fn new() -> Self {
            Self { inner: tokio::sync::Notify::new(), steps: loom::sync::atomic::AtomicUsize::new(0) }
        }

        pub(crate) fn notify_one(&self) {
            self.step();
            self.inner.notify_one();
        }

        pub(crate) fn notify_waiters(&self) {
            self.step();
            self.inner.notify_waiters();
        }

        pub(crate) fn notified(&self) -> Notified<'_> {
            self.step();
            Notified { notify: self, inner: Box::pin(self.inner.notified()) }
        }

        fn step(&self) {
            self.steps.fetch_add(1, Ordering::AcqRel);
        }
    }

    impl Notified<'_> {
        pub(crate) fn enable(mut self: Pin<&mut Self>) -> bool {
            self.notify.step();
            self.inner.as_mut().enable()
        }
    }

    impl Future for Notified<'_> {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            self.notify.step();
            self.inner.as_mut().poll(context)
        }
    }
}
