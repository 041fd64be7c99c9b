//! The only owner of clock, sockets and the task.
#![expect(clippy::disallowed_methods, reason = "the driver owns the clock and the task")]

use std::{future::Future, pin::Pin, sync::Arc, time::Instant};

use crate::{
    config::{Config, ConfigError},
    handover::Shared,
};

pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Whether `work` ended before `deadline`.
pub(crate) async fn before<F: Future<Output = ()>>(deadline: Option<Instant>, work: Pin<&mut F>) -> bool {
    match deadline {
        Some(at) => tokio::time::timeout_at(at.into(), work).await.is_ok(),
        None => {
            work.await;
            true
        }
    }
}

pub(crate) fn spawn(config: Config, shared: Arc<Shared>) -> Result<(), ConfigError> {
    let runtime = tokio::runtime::Handle::try_current().map_err(|_| ConfigError::NoRuntime)?;
    runtime.spawn(async move {
        let _ = (config, shared);
        std::future::pending::<()>().await
    });
    Ok(())
}
