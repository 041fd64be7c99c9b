//! The overload: many requests, a hundred at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::http::Http;

/// As the strategy document has it: `ab -n 10000 -c 100`.
pub(crate) const REQUESTS: u64 = 10_000;
const AT_ONCE: u64 = 100;
/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Load {
    /// Answers with a status of 500 or more.
    pub(crate) server_errors: u64,
    /// Requests without an answer.
    pub(crate) unanswered: u64,
    /// In 100 requests 99 were at least as quick.
    pub(crate) p99: Duration,
    pub(crate) slowest: Duration,
    pub(crate) took: Duration,
}

/// Asks `url` until all requests are made.
pub(crate) async fn run(http: &Http, url: &str) -> Load {
    let begun = Instant::now();
    let left = Arc::new(AtomicU64::new(REQUESTS));
    let mut workers = JoinSet::new();
    for _ in 0..AT_ONCE {
        workers.spawn(worker(http.clone(), url.to_owned(), left.clone()));
    }
    let (mut load, mut times) = (Load::default(), Vec::new());
    while let Some(done) = workers.join_next().await {
        let Ok(part) = done else { continue };
        load.server_errors += part.0.server_errors;
        load.unanswered += part.0.unanswered;
        times.extend(part.1);
    }
    times.sort_unstable();
    let index = (times.len() * 99).div_ceil(100).saturating_sub(1);
    load.p99 = times.get(index).copied().unwrap_or(PATIENCE);
    load.slowest = times.last().copied().unwrap_or(PATIENCE);
    load.took = begun.elapsed();
    load
}

async fn worker(http: Http, url: String, left: Arc<AtomicU64>) -> (Load, Vec<Duration>) {
    let (mut load, mut times) = (Load::default(), Vec::new());
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        let begun = Instant::now();
        match http.get(&url, PATIENCE).await {
            Ok(answer) if answer.status >= 500 => load.server_errors += 1,
            Ok(_) => {}
            Err(_) => load.unanswered += 1,
        }
        times.push(begun.elapsed());
    }
    (load, times)
}
