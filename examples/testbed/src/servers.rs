//! The servers: how each is configured for a test, started, broken and stopped.

pub mod etcd;
pub mod haproxy;
mod http;
pub mod mosquitto;
pub mod nats;
pub mod patroni;
pub mod postgres;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::{Ground, Process, Spawn, TestbedError, bring};

/// Finds or brings programs without blocking the runtime.
pub(crate) async fn require(names: &'static [&'static str]) -> Result<(), TestbedError> {
    let brought = tokio::task::spawn_blocking(move || bring::require(names)).await;
    brought
        .map_err(|_| TestbedError::server(names.join(", "), "the runtime shut down while bringing"))?
        .map_err(Into::into)
}

/// Waits until something accepts connections at `address`, and says early if the process that should has ended.
pub(crate) async fn listening(process: &Process, address: SocketAddr, deadline: Duration) -> Result<(), TestbedError> {
    ready(process, deadline, "listening", || async { TcpStream::connect(address).await.is_ok() }).await
}

/// Waits until `question` is answered with yes, and says early if the process has ended.
pub(crate) async fn ready<F, Fut>(
    process: &Process,
    deadline: Duration,
    what: &str,
    mut question: F,
) -> Result<(), TestbedError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let what = format!("{}: {what}", process.name());
    let waited = crate::wait::until(deadline, &what, || {
        let ended = process.ended();
        let asked = question();
        async move {
            match ended {
                Ok(()) => asked.await.then_some(Ok(())),
                Err(error) => Some(Err(error)),
            }
        }
    })
    .await;
    match waited {
        Ok(answer) => answer,
        Err(TestbedError::Deadline { what, after, .. }) => Err(TestbedError::Deadline {
            what,
            after,
            last: format!("; the end of its log:\n{}", process.log_tail(20)),
        }),
        Err(error) => Err(error),
    }
}

/// Tries a start again, on other ports, while it fails because a port was taken in the meantime.
pub(crate) async fn persistently<T, F, Fut>(mut start: F) -> Result<T, TestbedError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, TestbedError>>,
{
    for _ in 0..2 {
        match start().await {
            Err(error) if error.is_transient() => {}
            other => return other,
        }
    }
    start().await
}

/// A server process that can be started again in the same place.
#[derive(Debug)]
pub(crate) struct Restartable {
    ground: Ground,
    spawn: Spawn,
    process: Mutex<Process>,
}

impl Restartable {
    pub(crate) fn start(ground: &Ground, spawn: Spawn) -> Result<Self, TestbedError> {
        let process = ground.spawn(spawn.clone())?;
        Ok(Self { ground: ground.clone(), spawn, process: Mutex::new(process) })
    }

    /// The process that runs, or ran last.
    pub(crate) fn process(&self) -> Process {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends what is left of the last process and starts the next.
    pub(crate) fn restart(&self) -> Result<Process, TestbedError> {
        self.process().kill();
        let process = self.ground.spawn(self.spawn.clone())?;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = process.clone();
        Ok(process)
    }
}
