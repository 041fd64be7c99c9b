//! The only owner of clock, sockets and tasks.
//!
//! One task runs the [`Monitor`]; one a server keeps its probe connection. What they learn is published as an
//! immutable [`Topology`], which every call reads with one atomic load.

pub(crate) mod acquire;
pub(crate) mod events;
mod evidence;
#[cfg(feature = "patroni")]
pub(crate) mod patroni;
pub(crate) mod pool;
pub(crate) mod probe;
mod query;
mod reset;
pub(crate) mod settle;
pub(crate) mod transaction;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::task::AbortHandle;

use crate::config::{Config, LONGEST, Target};
use crate::error::ConfigError;
use crate::event::Event;
use crate::monitor::{Input, Monitor, Output, Pace};
use crate::stats::Counters;
use crate::topology::{NodeId, Topology};
use pool::NodePool;
use probe::{Order, Reason};

/// Events kept for a listener that is slower than they come.
const EVENTS: usize = 256;

/// Inputs that wait for the monitor. Probes wait for a place; hints, which repeat, do not.
const INPUTS: usize = 256;

/// The one place that reads the clock; `tokio`'s, so that a test can move it.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The end of a time that a caller named; one that is longer than anybody means ends in a year.
pub(crate) fn after(time: Duration) -> Instant {
    now() + time.min(LONGEST)
}

/// One server as the driver knows it.
pub(crate) struct Server {
    pub(crate) id: NodeId,
    pub(crate) pool: NodePool,
    reason: Reason,
}

/// What all calls and tasks share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) servers: Vec<Server>,
    pub(crate) counters: Counters,
    pub(crate) hold: Semaphore,
    topology: ArcSwap<Topology>,
    /// Moves when routing changes.
    routing: watch::Sender<u64>,
    /// Moves with every picture.
    pictures: watch::Sender<u64>,
    events: broadcast::Sender<Event>,
    inputs: mpsc::Sender<Input>,
    /// New calls are refused.
    closed: AtomicBool,
    /// Nobody is waited for any more.
    over: AtomicBool,
    /// Writes and reads under way, with or without a connection.
    running: AtomicUsize,
    random: AtomicU64,
    turn: AtomicU64,
}

impl Shared {
    pub(crate) fn topology(&self) -> Arc<Topology> {
        self.topology.load_full()
    }

    pub(crate) fn routing(&self) -> watch::Receiver<u64> {
        self.routing.subscribe()
    }

    pub(crate) fn pictures(&self) -> watch::Receiver<u64> {
        self.pictures.subscribe()
    }

    pub(crate) fn events(&self) -> events::Events {
        events::Events::new(self.events.subscribe())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Something about that server is not as it should be: look at once. A hint that finds the queue full is
    /// dropped, because the monitor is about to look anyway.
    pub(crate) fn suspect(&self, node: usize) {
        let _ = self.inputs.try_send(Input::Suspect { node });
    }

    /// What the last probes met, of the servers whose last probe failed.
    pub(crate) fn reasons(&self) -> Vec<(NodeId, String)> {
        self.servers.iter().filter_map(|server| Some((server.id.clone(), server.reason.get()?))).collect()
    }

    /// Counts the caller as running until it is dropped.
    pub(crate) fn run(&self) -> Running<'_> {
        self.running.fetch_add(1, Ordering::AcqRel);
        Running { shared: self }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    pub(crate) async fn tell(&self, input: Input) -> bool {
        self.inputs.send(input).await.is_ok()
    }

    pub(crate) fn index_of(&self, id: &NodeId) -> Option<usize> {
        self.servers.iter().position(|server| server.id == *id)
    }

    /// A number nobody needs to predict: it only keeps those who collided from colliding again.
    pub(crate) fn random(&self) -> u64 {
        // SplitMix64 over a counter.
        let mut z = self.random.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn turn(&self) -> u64 {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    fn sever(&self, node: usize) {
        if let Some(server) = self.servers.get(node) {
            let cut = server.pool.sever() as u64;
            self.counters.connections_severed.fetch_add(cut, Ordering::Relaxed);
        }
    }

    fn publish(&self, topology: Topology) {
        let epoch = topology.epoch();
        let changed = self.topology.swap(Arc::new(topology)).epoch() != epoch;
        if changed {
            self.routing.send_modify(|moves| *moves += 1);
        }
        self.pictures.send_modify(|moves| *moves += 1);
    }

    fn announce(&self, event: Event) {
        match &event {
            Event::FailedOver { .. } => self.counters.failovers.fetch_add(1, Ordering::Relaxed),
            Event::SplitBrain { .. } => self.counters.split_brains.fetch_add(1, Ordering::Relaxed),
            Event::Fenced { .. } => self.counters.stale_primaries_refused.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        #[cfg(feature = "tracing")]
        tracing::info!(?event, "cluster");
        // Nobody listens: nothing to tell.
        let _ = self.events.send(event);
    }
}

/// A write or a read under way: [`Driver::close`] waits for it.
pub(crate) struct Running<'a> {
    shared: &'a Shared,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.shared.running.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Owns the tasks: they end with it.
pub(crate) struct Driver {
    pub(crate) shared: Arc<Shared>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.over.store(true, Ordering::Release);
        for task in &self.tasks {
            task.abort();
        }
        for node in 0..self.shared.servers.len() {
            self.shared.sever(node);
        }
    }
}

impl Driver {
    pub(crate) fn start(
        config: Config,
        targets: Vec<Target>,
        #[cfg(feature = "patroni")] patroni: Vec<patroni::Api>,
    ) -> Result<Self, ConfigError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| ConfigError::NoRuntime)?;
        let mut servers = Vec::with_capacity(targets.len());
        for target in &targets {
            let pool = NodePool::new(target.login.clone(), config.pool_size).ok_or(ConfigError::NoRuntime)?;
            servers.push(Server { id: target.id.clone(), pool, reason: Reason::default() });
        }
        let (inputs, input_queue) = mpsc::channel(INPUTS);
        let ids: Vec<NodeId> = targets.iter().map(|target| target.id.clone()).collect();
        let shared = Arc::new(Shared {
            hold: Semaphore::new(config.hold_limit.min(Semaphore::MAX_PERMITS)),
            servers,
            counters: Counters::default(),
            topology: ArcSwap::from_pointee(Topology::unseen(ids.clone())),
            routing: watch::Sender::new(0),
            pictures: watch::Sender::new(0),
            events: broadcast::Sender::new(EVENTS),
            inputs: inputs.clone(),
            closed: AtomicBool::new(false),
            over: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            random: AtomicU64::new(seed()),
            turn: AtomicU64::new(0),
            config,
        });
        let mut tasks = Vec::new();
        let mut orders = Vec::with_capacity(targets.len());
        for (node, target) in targets.into_iter().enumerate() {
            let (sender, receiver) = mpsc::channel(2);
            orders.push(sender);
            let reason = shared.servers.get(node).map(|server| server.reason.clone()).unwrap_or_default();
            let task = runtime.spawn(probe::run(node, target.login, receiver, inputs.clone(), reason));
            tasks.push(task.abort_handle());
        }
        let pace = Pace {
            calm: shared.config.probe_interval,
            doubt: shared.config.doubt_interval,
            deadline: shared.config.probe_deadline,
            fall: shared.config.fall,
        };
        let monitor = Monitor::new(now(), pace, ids);
        let task = runtime.spawn(watch_cluster(Arc::clone(&shared), monitor, orders, input_queue));
        tasks.push(task.abort_handle());
        #[cfg(feature = "patroni")]
        for api in patroni {
            let task = runtime.spawn(patroni::run(api, Arc::clone(&shared)));
            tasks.push(task.abort_handle());
        }
        Ok(Self { shared, tasks })
    }

    /// Refuses new calls, waits for running ones, then cuts.
    pub(crate) async fn close(&self, deadline: Duration) {
        let end = tokio::time::Instant::from_std(after(deadline));
        self.shared.closed.store(true, Ordering::Release);
        // Whoever waits for a change finds the router closed.
        self.shared.routing.send_modify(|moves| *moves += 1);
        self.shared.pictures.send_modify(|moves| *moves += 1);
        let idle = || {
            let by_hand = self.shared.servers.iter().any(|server| server.pool.outstanding() > 0);
            self.shared.running.load(Ordering::Acquire) == 0 && !by_hand
        };
        while !idle() && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.shared.over.store(true, Ordering::Release);
        self.shared.routing.send_modify(|moves| *moves += 1);
        for server in &self.shared.servers {
            server.pool.close();
        }
        for node in 0..self.shared.servers.len() {
            self.shared.sever(node);
        }
        for task in &self.tasks {
            task.abort();
        }
        self.shared.announce(Event::Closed);
    }
}

/// Runs the state machine.
async fn watch_cluster(
    shared: Arc<Shared>,
    mut monitor: Monitor,
    orders: Vec<mpsc::Sender<Order>>,
    mut inputs: mpsc::Receiver<Input>,
) {
    monitor.handle_timeout(now());
    loop {
        let mut severed = Vec::new();
        while let Some(output) = monitor.poll_output() {
            if let Output::Sever { node } = output {
                severed.push(node);
            } else {
                perform(&shared, &orders, output);
            }
        }
        // After the new picture: a call that checks the picture once it has its connection is then cut or warned.
        for node in severed {
            shared.sever(node);
        }
        let wake = monitor.poll_timeout().unwrap_or_else(|| now() + shared.config.probe_interval);
        tokio::select! {
            input = inputs.recv() => {
                let Some(input) = input else { return };
                if matches!(input, Input::Failed { .. }) {
                    shared.counters.probes_failed.fetch_add(1, Ordering::Relaxed);
                }
                monitor.handle_input(now(), input);
            }
            () = tokio::time::sleep_until(wake.into()) => monitor.handle_timeout(now()),
        }
    }
}

fn perform(shared: &Shared, orders: &[mpsc::Sender<Order>], output: Output) {
    match output {
        Output::Probe { node, sent, deadline } => {
            shared.counters.probes.fetch_add(1, Ordering::Relaxed);
            if let Some(order) = orders.get(node) {
                // One probe is under way at a time; the monitor itself gives up one that is never answered.
                let _ = order.try_send(Order { sent, deadline });
            }
        }
        Output::Sever { node } => shared.sever(node),
        Output::Publish(topology) => shared.publish(topology),
        Output::Event(event) => shared.announce(event),
    }
}

/// Differs from process to process and from router to router.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
