//! The client's clock, and waiting by it.

use std::{future::Future, pin::Pin, time::Instant};

use crate::handover::Shared;

/// The clock of this crate; paused clocks of tokio's test utilities move it too.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Whether `work` ended before `deadline`.
///
/// The clock is the client's runtime: a publisher may stand outside of any.
pub(crate) async fn before<F: Future<Output = ()>>(shared: &Shared, at: Option<Instant>, work: Pin<&mut F>) -> bool {
    let Some(at) = at else {
        work.await;
        return true;
    };
    let limited = {
        let _inside = shared.runtime.as_ref().map(tokio::runtime::Handle::enter);
        tokio::time::timeout_at(at.into(), work)
    };
    limited.await.is_ok()
}
