//! The device's state: what it has made, what waits, what is under way. Synchronous, behind one lock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::time::Duration;

use bytes::Bytes;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::Publish;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::log::{DeviceLog, Entry, LogWriter};
use super::{DeviceConfig, DeviceStatus};

const DATA: &str = "modax/sensor/data";
const SAFETY: &str = "modax/sensor/safety";

/// Command ids remembered, so that each is acted on once; hours of an operator at five commands a second.
const REMEMBERED: usize = 100_000;

/// The four safety inputs of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the wire contract names these four")]
pub struct SafetyState {
    /// Pressed.
    pub emergency_stop: bool,
    /// Closed.
    pub door_closed: bool,
    /// Overloaded.
    pub overload_detected: bool,
    /// Within bounds.
    pub temperature_ok: bool,
}

impl Default for SafetyState {
    /// Safe.
    fn default() -> Self {
        Self { emergency_stop: false, door_closed: true, overload_detected: false, temperature_ok: true }
    }
}

/// The serial number of the reading that carries these `motor_currents`.
///
/// The first two currents of a reading spell its serial number in thousandths above 3 A: plausible values, unique for
/// each reading of a device over all its boots (up to a million), exact in single precision too.
pub fn serial_of(motor_currents: &[f64]) -> Option<u64> {
    let [low, high, ..] = *motor_currents else { return None };
    let digits = |current: f64| {
        let thousandths = ((current - 3.0) * 1000.0).round();
        let near = (current - 3.0 - thousandths / 1000.0).abs() < 1e-5;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to lie in 0..1000")]
        (near && (0.0..1000.0).contains(&thousandths)).then_some(thousandths as u64)
    };
    Some(digits(high)? * 1000 + digits(low)?)
}

pub(super) fn currents_of(serial: u64) -> [f64; 3] {
    let spelt = |digits: u64| (3000 + digits) as f64 / 1000.0;
    [spelt(serial % 1000), spelt(serial / 1000 % 1000), 3.5]
}

#[derive(Debug)]
pub(super) struct Readings {
    device_id: String,
    log: LogWriter,
    status: DeviceStatus,
    booted_at: Instant,
    newest_timestamp: Option<u64>,
    safety: SafetyState,
    queue: VecDeque<Waiting>,
    queue_limit: usize,
    window: usize,
    /// The newest safety report, until it is sent.
    unsent_safety: Option<Bytes>,
    under_way: BTreeMap<u16, (Instant, UnderWay)>,
    last_id: u16,
    refuses_expired: bool,
    acted: BTreeSet<String>,
    acted_order: VecDeque<String>,
}

#[derive(Debug)]
struct Waiting {
    serial: u64,
    payload: Bytes,
    under_way: bool,
}

#[derive(Clone, Copy, Debug)]
enum UnderWay {
    Reading(u64),
    Safety,
}

#[derive(Deserialize)]
struct Order {
    #[serde(default)]
    command_id: Option<String>,
    command_type: String,
    #[serde(default)]
    parameters: BTreeMap<String, String>,
    #[serde(default)]
    expires_at: Option<u64>,
}

impl Readings {
    pub(super) fn new(config: &DeviceConfig, now: Instant) -> io::Result<Self> {
        let mut readings = Self {
            device_id: config.device_id.clone(),
            log: LogWriter::open(&config.device_id, config.log_file.as_deref())?,
            status: DeviceStatus::default(),
            booted_at: now,
            newest_timestamp: None,
            safety: SafetyState::default(),
            queue: VecDeque::new(),
            queue_limit: config.queue_limit,
            window: config.window,
            unsent_safety: None,
            under_way: BTreeMap::new(),
            last_id: 0,
            refuses_expired: config.refuses_expired,
            acted: BTreeSet::new(),
            acted_order: VecDeque::new(),
        };
        readings.reboot(now);
        Ok(readings)
    }

    pub(super) fn status(&self) -> DeviceStatus {
        DeviceStatus { queued: self.queue.len(), ..self.status.clone() }
    }

    pub(super) fn log(&self) -> &DeviceLog {
        &self.log.log
    }

    pub(super) fn reboot(&mut self, now: Instant) {
        self.status.boot += 1;
        self.booted_at = now;
        self.newest_timestamp = None;
        self.unsent_safety = None;
        self.log.push(Entry::Booted { boot: self.status.boot });
    }

    pub(super) fn report_safety(&mut self, safety: SafetyState) {
        self.safety = safety;
    }

    fn timestamp(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.booted_at).as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn make_reading(&mut self, now: Instant) {
        let timestamp = self.newest_timestamp.map_or(0, |newest| newest + 1).max(self.timestamp(now));
        self.newest_timestamp = Some(timestamp);
        let serial = self.status.made;
        self.status.made += 1;
        let payload = serde_json::json!({
            "timestamp": timestamp,
            "device_id": self.device_id,
            "motor_currents": currents_of(serial),
            "vibration": { "x": 0.5, "y": 0.6, "z": 0.7, "magnitude": 1.05 },
            "temperatures": [36.5, 38.25],
        });
        self.log.push(Entry::Made { serial, boot: self.status.boot, timestamp });
        if self.queue.len() >= self.queue_limit {
            self.shed();
        }
        self.queue.push_back(Waiting { serial, payload: payload.to_string().into(), under_way: false });
    }

    /// Throws the oldest reading away that is not under way: one that is may have arrived.
    fn shed(&mut self) {
        if let Some(oldest) = self.queue.iter().position(|waiting| !waiting.under_way)
            && let Some(waiting) = self.queue.remove(oldest)
        {
            self.status.shed += 1;
            self.log.push(Entry::Shed { serial: waiting.serial });
        }
    }

    pub(super) fn make_safety(&mut self, now: Instant) {
        let SafetyState { emergency_stop, door_closed, overload_detected, temperature_ok } = self.safety;
        let payload = serde_json::json!({
            "timestamp": self.timestamp(now),
            "device_id": self.device_id,
            "emergency_stop": emergency_stop,
            "door_closed": door_closed,
            "overload_detected": overload_detected,
            "temperature_ok": temperature_ok,
        });
        self.unsent_safety = Some(payload.to_string().into());
    }

    /// A connection stands: everything that waits is sent on it, in order.
    pub(super) fn connected(&mut self, broker: &str) {
        self.under_way.clear();
        self.queue.iter_mut().for_each(|waiting| waiting.under_way = false);
        self.status.broker = Some(broker.to_owned());
        self.log.push(Entry::Connected { broker: broker.to_owned() });
    }

    pub(super) fn left(&mut self, broker: &str, reason: String) {
        if self.status.broker.take().is_some() {
            self.log.push(Entry::Left { broker: broker.to_owned(), reason });
        }
    }

    /// The next message to send, if the window allows one. Safety goes first: it is small and must not wait.
    pub(super) fn next_to_send(&mut self, now: Instant) -> Option<Publish> {
        if self.under_way.len() >= self.window {
            return None;
        }
        if let Some(payload) = self.unsent_safety.take() {
            return Some(self.publish(now, UnderWay::Safety, SAFETY, payload));
        }
        // Those under way stand at the front, at most a window of them.
        let waiting = self.queue.iter_mut().find(|waiting| !waiting.under_way)?;
        waiting.under_way = true;
        let (serial, payload) = (waiting.serial, waiting.payload.clone());
        Some(self.publish(now, UnderWay::Reading(serial), DATA, payload))
    }

    fn publish(&mut self, now: Instant, what: UnderWay, topic: &str, payload: Bytes) -> Publish {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.under_way.contains_key(&self.last_id) {
                break;
            }
        }
        self.under_way.insert(self.last_id, (now, what));
        Publish { pkid: self.last_id, ..Publish::from_bytes(topic, QoS::AtLeastOnce, payload) }
    }

    /// When the broker has to be given up, unless it acknowledges something before.
    pub(super) fn answer_due(&self, deadline: Duration) -> Option<Instant> {
        self.under_way.values().map(|(sent_at, _)| *sent_at + deadline).min()
    }

    pub(super) fn acknowledged(&mut self, packet_id: u16) {
        match self.under_way.remove(&packet_id) {
            Some((_, UnderWay::Reading(serial))) => {
                self.queue.retain(|waiting| waiting.serial != serial);
                self.status.acked += 1;
                self.log.push(Entry::Acked { serial });
            }
            Some((_, UnderWay::Safety)) => self.status.safety_acked += 1,
            None => {}
        }
    }

    /// Acts, once for each `command_id` and not on an expired one. What cannot be read is ignored, as firmware does.
    pub(super) fn command(&mut self, payload: &[u8], unix_ms: u64) {
        let Ok(command) = serde_json::from_slice::<Order>(payload) else { return };
        let expired = command.expires_at.is_some_and(|at| unix_ms >= at);
        let refused = expired && self.refuses_expired;
        let acted = !refused
            && match &command.command_id {
                Some(id) => self.remember(id),
                None => true,
            };
        self.status.acted += u64::from(acted);
        self.status.expired += u64::from(refused);
        self.log.push(Entry::Received {
            command_id: command.command_id,
            command_type: command.command_type,
            request: command.parameters.get("request").cloned(),
            expired,
            acted,
        });
    }

    fn remember(&mut self, command_id: &str) -> bool {
        if !self.acted.insert(command_id.to_owned()) {
            return false;
        }
        self.acted_order.push_back(command_id.to_owned());
        if self.acted_order.len() > REMEMBERED
            && let Some(oldest) = self.acted_order.pop_front()
        {
            self.acted.remove(&oldest);
        }
        true
    }
}
