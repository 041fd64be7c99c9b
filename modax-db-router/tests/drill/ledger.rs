//! Writers that remember what they were told, and the comparison with what the database says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use modax_db_router::{Event, Events, Router};
use modax_testbed::servers::postgres::{PostgresCluster, PostgresNode};
use modax_testbed::{TestbedError, wait};
use tokio::task::JoinSet;

/// Every wait of a drill; far above what is needed on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// What a writer was told about a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Committed,
    NotCommitted,
    Unknown,
}

/// Rows by number, as the writers were told.
pub(crate) type Ledger = BTreeMap<i64, Told>;

/// Writers that insert numbered rows, one transaction each, until they are stopped.
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicI64>,
    tasks: JoinSet<Ledger>,
}

impl Writers {
    pub(crate) fn start(router: &Router, count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let committed = Arc::new(AtomicI64::new(0));
        let next = Arc::new(AtomicI64::new(1));
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let (router, stop) = (router.clone(), Arc::clone(&stop));
            let (committed, next) = (Arc::clone(&committed), Arc::clone(&next));
            tasks.spawn(async move {
                let mut ledger = Ledger::new();
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let told = match router.execute("INSERT INTO ledger VALUES ($1)", &[&number]).await {
                        Ok(_) => {
                            committed.fetch_add(1, Ordering::Relaxed);
                            Told::Committed
                        }
                        Err(error) if error.outcome_unknown() => Told::Unknown,
                        Err(_) => Told::NotCommitted,
                    };
                    ledger.insert(number, told);
                }
                ledger
            });
        }
        Self { stop, committed, tasks }
    }

    /// Waits until `more` further rows were acknowledged.
    pub(crate) async fn progress(&self, more: i64) -> Result<(), TestbedError> {
        let goal = self.committed.load(Ordering::Relaxed) + more;
        wait::until(LONG, "acknowledged writes", || async { self.committed.load(Ordering::Relaxed) >= goal }).await
    }

    pub(crate) fn acknowledged(&self) -> i64 {
        self.committed.load(Ordering::Relaxed)
    }

    pub(crate) async fn stop(self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await.into_iter().flatten().collect()
    }
}

/// Makes the table the writers need. No unique key: a row written twice must show.
pub(crate) async fn prepare(router: &Router) {
    router.execute("CREATE TABLE ledger (number bigint NOT NULL)", &[]).await.expect("the table");
}

/// Compares what was told with what is there, and returns (committed, unknown).
pub(crate) async fn compare(node: &PostgresNode, ledger: &Ledger) -> (usize, usize) {
    let text = node.psql("SELECT coalesce(string_agg(number::text, ',' ORDER BY number), '') FROM ledger").await;
    let mut rows: BTreeMap<i64, usize> = BTreeMap::new();
    for number in text.expect("the rows").split(',').filter(|text| !text.is_empty()) {
        *rows.entry(number.parse().expect("a number")).or_default() += 1;
    }
    let twice: Vec<_> = rows.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "written twice: {twice:?}");
    let (mut lost, mut ghosts) = (Vec::new(), Vec::new());
    for (number, told) in ledger {
        match (told, rows.contains_key(number)) {
            (Told::Committed, false) => lost.push(number),
            (Told::NotCommitted, true) => ghosts.push(number),
            _ => {}
        }
    }
    assert!(lost.is_empty(), "{} rows acknowledged and lost: {lost:?}", lost.len());
    assert!(ghosts.is_empty(), "rows said not to be committed are there: {ghosts:?}");
    let count = |wanted| ledger.values().filter(|told| **told == wanted).count();
    (count(Told::Committed), count(Told::Unknown))
}

/// Waits for an event; the ones before it are passed over.
pub(crate) async fn event(events: &mut Events, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
    let found = tokio::time::timeout(LONG, async {
        loop {
            match events.next().await {
                Some(event) if wanted(&event) => return event,
                Some(_) => {}
                None => panic!("the events ended before {what}"),
            }
        }
    });
    found.await.unwrap_or_else(|_| panic!("no event: {what}"))
}

/// Promotes the standby that has received most, and lets the other follow it. Returns its index.
pub(crate) async fn promote_best(cluster: &PostgresCluster) -> usize {
    let mut best = (1, String::new());
    for index in [1, 2] {
        let sql = "SELECT lpad(split_part(l, '/', 1), 8, '0') || lpad(split_part(l, '/', 2), 8, '0') \
            FROM (SELECT pg_last_wal_receive_lsn()::text AS l) AS x";
        let received = cluster.nodes()[index].psql(sql).await.expect("a standby answers");
        if received > best.1 {
            best = (index, received);
        }
    }
    let chosen = best.0;
    cluster.nodes()[chosen].promote().await.expect("promotion");
    cluster.nodes()[3 - chosen].follow(&cluster.nodes()[chosen]).await.expect("the other standby follows");
    chosen
}
