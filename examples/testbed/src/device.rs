//! A simulated field device: what an ESP32 of the field layer does on the wire, with a log that an oracle reads.
//!
//! It publishes `modax/sensor/data` ten times and `modax/sensor/safety` twenty times a second with QoS 1 and
//! millisecond timestamps since boot, takes the next broker of its list when one does not answer, and acts on
//! `modax/control/commands` once for each `command_id`, and not once `expires_at` has passed. Readings that no broker has acknowledged wait in a bounded
//! queue, in order, and survive a reboot (flash). A safety report does not wait: only the newest one matters, and an
//! old one must not look fresh. So everything made and not shed is *owed*: acknowledged, or still in the queue.
//!
//! The client is the device's own, on the bare codec: a fault in the client under test cannot hide itself here.

mod link;
mod log;
mod readings;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

pub use log::{DeviceLog, Entry};
pub use readings::{SafetyState, serial_of};

use readings::Readings;

/// How a device behaves.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// `device_id` of every message, and the MQTT client id.
    pub device_id: String,
    /// `mqtt://host:port` or `host:port`, the preferred one first.
    pub brokers: Vec<String>,
    /// Between two readings; 100 ms, as the firmware does.
    pub data_interval: Duration,
    /// Between two safety reports; 50 ms, as the firmware does.
    pub safety_interval: Duration,
    /// How long a broker may take for a connection, a CONNACK or a PUBACK before the next one is tried; 1 s.
    pub answer_deadline: Duration,
    /// The most readings that wait; 36,000, an hour of them. Beyond, the oldest one not under way is shed.
    pub queue_limit: usize,
    /// Publishes under way at once; 50.
    pub window: usize,
    /// Whether the MQTT session is clean; true, so that no command waits in a broker and acts late.
    pub clean_session: bool,
    /// Whether it heeds `expires_at`, as firmware with a clock can; true. Old firmware does not.
    pub refuses_expired: bool,
    /// Also append each log entry to this file, as a line of JSON.
    pub log_file: Option<PathBuf>,
}

impl DeviceConfig {
    /// The firmware's defaults.
    pub fn new<S: Into<String>>(device_id: impl Into<String>, brokers: impl IntoIterator<Item = S>) -> Self {
        Self {
            device_id: device_id.into(),
            brokers: brokers.into_iter().map(Into::into).collect(),
            data_interval: Duration::from_millis(100),
            safety_interval: Duration::from_millis(50),
            answer_deadline: Duration::from_secs(1),
            queue_limit: 36_000,
            window: 50,
            clean_session: true,
            refuses_expired: true,
            log_file: None,
        }
    }
}

/// A running device. Dropping it pulls the plug.
#[derive(Debug)]
pub struct Device {
    shared: Arc<Shared>,
    making: JoinHandle<()>,
    linking: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    config: DeviceConfig,
    readings: Mutex<Readings>,
    /// Something can be sent.
    ready: Notify,
    /// Counts up at each reboot: the connection breaks without a word.
    reboots: watch::Sender<u64>,
    /// Counts up whenever the log grows.
    changes: watch::Sender<u64>,
}

/// What a device is doing at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceStatus {
    /// The broker it is connected to.
    pub broker: Option<String>,
    /// Boots so far; the first one is 1.
    pub boot: u32,
    /// Readings made.
    pub made: u64,
    /// Readings acknowledged by a broker.
    pub acked: u64,
    /// Readings shed from the full queue.
    pub shed: u64,
    /// Readings that wait.
    pub queued: usize,
    /// Safety reports acknowledged by a broker.
    pub safety_acked: u64,
    /// Commands acted on.
    pub acted: u64,
    /// Commands refused because they came after their `expires_at`.
    pub expired: u64,
}

impl Device {
    /// Boots the device.
    ///
    /// # Errors
    /// When the log file cannot be opened, or the list of brokers is empty.
    ///
    /// # Cancel safety
    /// Cancel safe: it does not wait.
    #[expect(clippy::unused_async, reason = "it spawns tasks, so it must be called inside a runtime")]
    pub async fn start(config: DeviceConfig) -> io::Result<Self> {
        if config.brokers.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a device needs at least one broker"));
        }
        let readings = Readings::new(&config, Instant::now())?;
        let shared = Arc::new(Shared {
            config,
            readings: Mutex::new(readings),
            ready: Notify::new(),
            reboots: watch::Sender::new(0),
            changes: watch::Sender::new(0),
        });
        let making = tokio::spawn(make(Arc::clone(&shared)));
        let linking = tokio::spawn(link::run(Arc::clone(&shared)));
        Ok(Self { shared, making, linking })
    }

    /// `device_id` of its messages.
    pub fn id(&self) -> &str {
        &self.shared.config.device_id
    }

    /// What it is doing.
    pub fn status(&self) -> DeviceStatus {
        self.shared.readings().status()
    }

    /// Everything it has done so far.
    pub fn log(&self) -> DeviceLog {
        self.shared.readings().log().clone()
    }

    /// Reboots: the connection breaks without a word, timestamps begin near 0 again, the queue is kept.
    pub fn reboot(&self) {
        self.shared.readings().reboot(Instant::now());
        self.shared.reboots.send_modify(|count| *count += 1);
        self.shared.changed();
    }

    /// Reports this state from the next safety message on; a sound device does so at first.
    pub fn report_safety(&self, safety: SafetyState) {
        self.shared.readings().report_safety(safety);
    }

    /// Waits until `holds` does; false when `deadline` is over.
    ///
    /// # Cancel safety
    /// Cancel safe: it changes nothing.
    pub async fn wait_until(&self, deadline: Duration, mut holds: impl FnMut(&DeviceStatus) -> bool) -> bool {
        let mut changes = self.shared.changes.subscribe();
        let waiting = async {
            loop {
                changes.mark_unchanged();
                if holds(&self.status()) {
                    return;
                }
                // The sender lives as long as `self`.
                let _ = changes.changed().await;
            }
        };
        tokio::time::timeout(deadline, waiting).await.is_ok()
    }

    /// Makes nothing more, delivers what waits for at most `drain`, and gives the log. What is left in the queue is
    /// owed all the same.
    ///
    /// # Cancel safety
    /// Not cancel safe: dropping the future pulls the plug.
    pub async fn finish(mut self, drain: Duration) -> DeviceLog {
        self.making.abort();
        // It has ended when the handle says so: nothing is made after the log was read.
        let _ = (&mut self.making).await;
        self.wait_until(drain, |status| status.queued == 0).await;
        self.log()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.making.abort();
        self.linking.abort();
    }
}

impl Shared {
    fn readings(&self) -> MutexGuard<'_, Readings> {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// The sensors. A tick that comes late is skipped, as on the device, so that timestamps stay apart.
async fn make(shared: Arc<Shared>) {
    let mut data = tokio::time::interval(shared.config.data_interval);
    let mut safety = tokio::time::interval(shared.config.safety_interval);
    data.set_missed_tick_behavior(MissedTickBehavior::Skip);
    safety.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            now = data.tick() => shared.readings().make_reading(now),
            now = safety.tick() => shared.readings().make_safety(now),
        }
        shared.ready.notify_one();
        shared.changed();
    }
}

#[cfg(test)]
mod tests;
