//! SIGINT and SIGTERM as one thing to wait for.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Set for good by the first signal.
static HAS_COME: AtomicBool = AtomicBool::new(false);

/// Whether a signal that somebody waited for has come.
pub(crate) fn has_come() -> bool {
    HAS_COME.load(Ordering::Relaxed)
}

/// Waits for the user or the service manager to ask for the end.
pub(crate) struct Interrupt {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupt {
    /// Takes both signals over from their default action.
    pub(crate) fn listen() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Returns at the next signal. Cancel safe: a signal that comes between two calls is not missed.
    pub(crate) async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        HAS_COME.store(true, Ordering::Relaxed);
    }
}
