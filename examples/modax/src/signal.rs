//! SIGINT and SIGTERM as one thing to wait for.

use std::sync::LazyLock;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Set for good by the first signal after [`Interrupt::listen`].
static COME: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::channel(false).0);

/// Returns once a signal has come that [`Interrupt::listen`] took over, whoever waited for it.
pub(crate) async fn come() {
    // The sender is a static, so that it never goes.
    let _ = COME.subscribe().wait_for(|come| *come).await;
}

/// Has a write beyond the limit for files (`ulimit -f`) fail, as on a full disk, where it would end the process in the middle
/// of something.
pub(crate) fn survive_file_limit() {
    // A handler is what counts; it stays when this end of it goes.
    let _ = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()));
}

/// Waits for the user or the service manager to ask for the end.
pub(crate) struct Interrupt {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupt {
    /// Takes both signals over from their default action.
    pub(crate) fn listen() -> std::io::Result<Self> {
        let mut noted = Self::new()?;
        // Also while the command waits for something else and does not ask.
        tokio::spawn(async move {
            noted.wait().await;
            COME.send_replace(true);
        });
        Self::new()
    }

    fn new() -> std::io::Result<Self> {
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
