//! SIGINT and SIGTERM as one thing to wait for.

use tokio::signal::unix::{Signal, SignalKind, signal};

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
    }
}
