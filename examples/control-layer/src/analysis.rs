//! Asks the AI layer about each window of each device; its loss costs advice, nothing else.
//!
//! All instances fill the same windows. Who first inserts (device, window start) asks; the answer and the message to the
//! panel are one transaction. A window whose asker dies stays without an answer: the next one comes in seconds.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use modax_db_router::{WriteError, tokio_postgres};
use modax_txn::{EnqueueError, EnqueueReceipt, Message};
use tokio::sync::{Semaphore, watch};
use tokio_postgres::types::Type;

use crate::{
    app::{App, unix_now, worth_a_line},
    contract::{Analysis, AnalysisRequest, MAX_PAYLOAD_BYTES, SensorData, Vibration, parse, topic},
};

/// Windows with the AI layer at once. The others wait, for all devices' windows end together; one whose successor is over is
/// skipped, because advice about the past is worth less than fresh advice.
const AT_ONCE: usize = 8;
/// How long an analysis may still be published: the panel shows the latest.
const EXPIRES_IN: Duration = Duration::from_secs(60);
/// Longest wait for the database; the AI layer is advisory, so is its history.
const DATABASE_DEADLINE: Duration = Duration::from_secs(5);
/// Says that an answer has more than [`MAX_PAYLOAD_BYTES`].
const TOO_LONG: &str = "answered more than 64 KiB";
const _: () = assert!(MAX_PAYLOAD_BYTES == 64 * 1024, "the text says so");
/// Of a reason that is stored and logged.
const MAX_REASON_CHARS: usize = 300;
/// Devices with an open window at most; more are somebody's mistake.
const MAX_DEVICES: usize = 10_000;

/// Mean, deviation and maximum of one channel, by Welford's method: no sum of squares that cancels out.
#[derive(Clone, Copy, Debug, Default)]
struct Channel {
    count: f64,
    mean: f64,
    squares: f64,
    max: f64,
}

impl Channel {
    fn add(&mut self, value: f64) {
        self.max = if self.count == 0.0 { value } else { self.max.max(value) };
        self.count += 1.0;
        let distance = value - self.mean;
        self.mean += distance / self.count;
        self.squares += distance * (value - self.mean);
    }

    fn deviation(&self) -> f64 {
        if self.count > 0.0 { (self.squares / self.count).sqrt() } else { 0.0 }
    }
}

#[derive(Clone, Debug, Default)]
struct Window {
    start: Duration,
    samples: u64,
    currents: Vec<Channel>,
    vibration: [Channel; 4],
    temperatures: Vec<Channel>,
}

fn add_all(channels: &mut Vec<Channel>, values: &[f64]) {
    if channels.len() < values.len() {
        channels.resize(values.len(), Channel::default());
    }
    for (channel, value) in channels.iter_mut().zip(values) {
        channel.add(*value);
    }
}

impl Window {
    fn add(&mut self, data: &SensorData) {
        self.samples += 1;
        add_all(&mut self.currents, &data.motor_currents);
        add_all(&mut self.temperatures, &data.temperatures);
        let axes = [data.vibration.x, data.vibration.y, data.vibration.z, data.vibration.magnitude];
        for (channel, value) in self.vibration.iter_mut().zip(axes) {
            channel.add(value);
        }
    }

    fn request(&self, device_id: &str, length: Duration) -> AnalysisRequest {
        let axes = |value: fn(&Channel) -> f64| {
            let [x, y, z, magnitude] = self.vibration.each_ref().map(value);
            Vibration { x, y, z, magnitude }
        };
        let all = |channels: &[Channel], value: fn(&Channel) -> f64| channels.iter().map(value).collect();
        AnalysisRequest {
            device_id: device_id.to_owned(),
            time_window_start: self.start.as_secs_f64(),
            time_window_end: (self.start + length).as_secs_f64(),
            current_mean: all(&self.currents, |it| it.mean),
            current_std: all(&self.currents, Channel::deviation),
            current_max: all(&self.currents, |it| it.max),
            vibration_mean: axes(|it| it.mean),
            vibration_std: axes(Channel::deviation),
            vibration_max: axes(|it| it.max),
            temperature_mean: all(&self.temperatures, |it| it.mean),
            temperature_max: all(&self.temperatures, |it| it.max),
            sample_count: self.samples,
        }
    }
}

/// The windows that are being filled. They begin at multiples of their length in Unix time, so all instances have the same.
#[derive(Debug)]
pub struct Windows {
    length: Duration,
    open: Mutex<BTreeMap<String, Window>>,
    finished: Mutex<Vec<AnalysisRequest>>,
}

impl Windows {
    /// None yet.
    pub fn new(length: Duration) -> Self {
        Self { length, open: Mutex::default(), finished: Mutex::default() }
    }

    /// Adds a reading that was heard at `unix`; false if there was no room for it, or for the window it ends.
    pub fn add(&self, data: &SensorData, unix: Duration) -> bool {
        let start = self.start(unix);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= MAX_DEVICES && !open.contains_key(&data.device_id) {
            return false;
        }
        let mut has_room = true;
        let window = open.entry(data.device_id.clone()).or_insert_with(|| Window { start, ..Window::default() });
        if window.start != start {
            let done = std::mem::replace(window, Window { start, ..Window::default() });
            let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
            // The asker empties it every moment; a bound all the same.
            has_room = finished.len() < MAX_DEVICES;
            if has_room {
                finished.push(done.request(&data.device_id, self.length));
            }
        }
        window.add(data);
        has_room
    }

    /// Takes the windows that are over at `unix`, those of devices that fell silent included.
    pub fn take_finished(&self, unix: Duration) -> Vec<AnalysisRequest> {
        let start = self.start(unix);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut finished = std::mem::take(&mut *self.finished.lock().unwrap_or_else(PoisonError::into_inner));
        open.retain(|device_id, window| {
            let is_open = window.start == start;
            if !is_open {
                finished.push(window.request(device_id, self.length));
            }
            is_open
        });
        finished
    }

    fn start(&self, unix: Duration) -> Duration {
        let length = self.length.as_millis().max(1);
        let start = unix.as_millis() / length * length;
        Duration::from_millis(u64::try_from(start).unwrap_or(u64::MAX))
    }
}

/// Asks for every window that ends, until `stop`.
pub async fn run(app: Arc<App>, http: reqwest::Client, mut stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut asking = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = stop.changed() => break,
        }
        while asking.try_join_next().is_some() {}
        for request in app.windows.take_finished(unix_now()) {
            if asking.len() >= MAX_DEVICES {
                app.metrics.analyses_skipped.increment();
                continue;
            }
            let (app, http, places) = (Arc::clone(&app), http.clone(), Arc::clone(&places));
            asking.spawn(async move {
                if !in_turn(&places, app.config.ai_window, || handle(&app, &http, &request)).await {
                    app.metrics.analyses_skipped.increment();
                }
            });
        }
    }
    // What is with the AI layer may be dropped: it is advice, and its window is marked by its claim.
    asking.shutdown().await;
}

/// Does `work` once there is a place for it; false if there was none for `longest`. Those that wait take no room for it.
async fn in_turn<F: Future<Output = ()>>(places: &Semaphore, longest: Duration, work: impl FnOnce() -> F) -> bool {
    let Ok(Ok(_place)) = tokio::time::timeout(longest, places.acquire()).await else { return false };
    Box::pin(work()).await;
    true
}

async fn handle(app: &App, http: &reqwest::Client, request: &AnalysisRequest) {
    match claim(app, request).await {
        Ok(true) => {}
        Ok(false) => return,
        Err(error) => {
            let count = app.metrics.analyses_skipped.increment();
            if worth_a_line(count) {
                tracing::info!(%error, count, "windows are not analysed while the database is away");
            }
            return;
        }
    }
    let answer = ask(app, http, request).await;
    match &answer {
        Ok(analysis) => {
            app.metrics.analyses_answered.increment();
            if app.plant.hear_analysis(analysis, unix_now()) {
                app.tell_live("ai_analysis", &analysis.device_id, analysis);
            }
        }
        Err(error) => {
            let count = app.metrics.analyses_failed.increment();
            if worth_a_line(count) {
                tracing::warn!(device_id = request.device_id, %error, count, "a window was not analysed");
            }
        }
    }
    if let Err(error) = record(app, request, answer).await {
        tracing::warn!(device_id = request.device_id, %error, "an analysis was not recorded");
    }
}

/// Whether this instance is the one that asks.
async fn claim(app: &App, request: &AnalysisRequest) -> Result<bool, WriteError> {
    let (device_id, asked_by) = (request.device_id.clone(), Arc::clone(&app.instance_id));
    let (start, end) = (time(request.time_window_start), time(request.time_window_end));
    let written = app
        .router
        .writer()
        .deadline(DATABASE_DEADLINE)
        .run(|tx| {
            let (device_id, asked_by) = (device_id.clone(), Arc::clone(&asked_by));
            async move {
                tx.execute_typed(
                    "INSERT INTO ai_analysis (device_id, window_start, window_end, asked_by) VALUES ($1, $2, $3, $4)
                     ON CONFLICT DO NOTHING",
                    &[
                        (&device_id, Type::TEXT),
                        (&start, Type::TIMESTAMPTZ),
                        (&end, Type::TIMESTAMPTZ),
                        (&&*asked_by, Type::TEXT),
                    ],
                )
                .await
            }
        })
        .await?;
    Ok(written.value == 1)
}

async fn ask(app: &App, http: &reqwest::Client, request: &AnalysisRequest) -> Result<Analysis, String> {
    let url = format!("{}/api/v1/analyze", app.config.ai_layer_url);
    let mut answer = http.post(url).json(request).send().await.map_err(|error| error.without_url().to_string())?;
    if !answer.status().is_success() {
        return Err(format!("answered {}", answer.status()));
    }
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(|error| error.without_url().to_string())? {
        if body.len() + part.len() > MAX_PAYLOAD_BYTES {
            return Err(TOO_LONG.to_owned());
        }
        body.extend_from_slice(&part);
    }
    understand(&body, &request.device_id)
}

/// What the AI layer says of `device_id`, if it can be shown, stored and published.
fn understand(body: &[u8], device_id: &str) -> Result<Analysis, String> {
    let analysis: Analysis = parse(body).map_err(|error| printable(&error.0))?;
    if analysis.device_id != device_id {
        return Err("device_id: another than was asked for".to_owned());
    }
    // It is published as we write it: a number of three characters may need three hundred.
    match serde_json::to_string(&analysis) {
        Ok(text) if text.len() <= MAX_PAYLOAD_BYTES => Ok(analysis),
        Ok(_) => Err(TOO_LONG.to_owned()),
        Err(error) => Err(printable(&error.to_string())),
    }
}

/// A reason as it can be stored: it may name what the answer names.
fn printable(reason: &str) -> String {
    reason.chars().filter(|character| !character.is_control()).take(MAX_REASON_CHARS).collect()
}

/// Stores the answer and, with it, the message that publishes it.
async fn record(app: &App, request: &AnalysisRequest, answer: Result<Analysis, String>) -> Result<(), WriteError> {
    let (text, reason) = match &answer {
        Ok(analysis) => (serde_json::to_value(analysis).ok(), None),
        Err(reason) => (None, Some(reason.clone())),
    };
    let status = if text.is_some() { "answered" } else { "failed" };
    let message = text.as_ref().map(|text| {
        Message::to(topic::AI_ANALYSIS).key(&*request.device_id).payload(text.to_string()).expires_in(EXPIRES_IN)
    });
    let (device_id, start) = (request.device_id.clone(), time(request.time_window_start));
    let written = app
        .router
        .writer()
        .deadline(DATABASE_DEADLINE)
        .run(|tx| {
            let (device_id, text, reason, message) = (device_id.clone(), text.clone(), reason.clone(), message.clone());
            async move {
                tx.execute_typed(
                    "UPDATE ai_analysis SET status = $3, analysis = $4, reason = $5, answered_at = clock_timestamp()
                     WHERE device_id = $1 AND window_start = $2",
                    &[
                        (&device_id, Type::TEXT),
                        (&start, Type::TIMESTAMPTZ),
                        (&status, Type::TEXT),
                        (&text, Type::JSONB),
                        (&reason, Type::TEXT),
                    ],
                )
                .await?;
                match message {
                    Some(message) => enqueue(app, &tx, message).await,
                    None => Ok(None),
                }
            }
        })
        .await?;
    if let Some(receipt) = &written.value {
        app.outbox.committed(receipt);
    }
    Ok(())
}

/// Enqueues in the caller's transaction; `None` if the message can never be sent (a device id longer than a key may be).
///
/// # Errors
/// The database's; the transaction must be rolled back.
///
/// # Cancel safety
/// Not cancel safe: roll the transaction back.
pub async fn enqueue(
    app: &App,
    tx: &tokio_postgres::Client,
    message: Message,
) -> Result<Option<EnqueueReceipt>, tokio_postgres::Error> {
    match app.outbox.enqueue(tx, message).await {
        Ok(receipt) => Ok(Some(receipt)),
        Err(EnqueueError::Database(error)) => Err(error),
        Err(error) => {
            tracing::error!(%error, "a message cannot be sent");
            Ok(None)
        }
    }
}

fn time(unix_seconds: f64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::try_from_secs_f64(unix_seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::Semaphore;

    use super::{AT_ONCE, MAX_DEVICES, MAX_REASON_CHARS, Windows, in_turn, understand};
    use crate::contract::{MAX_PAYLOAD_BYTES, SensorData, Vibration};

    fn reading(currents: &[f64]) -> SensorData {
        let vibration = Vibration { x: 1.0, y: 2.0, z: 3.0, magnitude: 4.0 };
        SensorData {
            timestamp: 0,
            device_id: "a".to_owned(),
            motor_currents: currents.to_vec(),
            vibration,
            temperatures: vec![40.0],
        }
    }

    #[test]
    fn an_answer_is_refused_for_what_it_holds_with_a_reason_that_can_be_stored() {
        let answer = |device_id: &str, details: &str| {
            format!(
                r#"{{"timestamp":1,"device_id":"{device_id}","anomaly_detected":false,"anomaly_score":0.5,
                   "anomaly_description":"","predicted_wear_level":0,"estimated_remaining_hours":1,
                   "recommendations":[],"confidence":1,"analysis_details":{{{details}}}}}"#
            )
        };
        assert!(understand(answer("a", "").as_bytes(), "a").is_ok());
        // 10,000 numbers of four characters that are written out with seventeen.
        let grows = format!("\"a\":[{}]", vec!["1e15"; 10_000].join(","));
        assert!(answer("a", &grows).len() < MAX_PAYLOAD_BYTES);
        let long = "x".repeat(10_000);
        for (body, named) in [
            (answer("b", ""), "device_id"),
            (answer("a", &grows), "more than 64 KiB"),
            (answer("a", r#""b\u0000":nothing"#), "analysis_details"),
            (answer("a", &format!(r#""{long}":nothing"#)), "analysis_details"),
            (answer("a", r#""b":"\u0000""#), "analysis_details"),
            ("[]".to_owned(), "not a JSON object"),
        ] {
            let reason = understand(body.as_bytes(), "a").expect_err(named);
            assert!(reason.contains(named), "{reason}");
            assert!(reason.len() <= MAX_REASON_CHARS && !reason.contains('\0'), "{reason:?}");
        }
    }

    #[test]
    fn a_window_holds_mean_deviation_and_maximum_of_each_channel() {
        let windows = Windows::new(Duration::from_secs(10));
        for (seconds, currents) in [(101.0, [1.0, -5.0]), (102.0, [3.0, -5.0]), (109.9, [5.0, -5.0])] {
            windows.add(&reading(&currents), Duration::from_secs_f64(seconds));
        }
        assert!(windows.take_finished(Duration::from_secs(109)).is_empty(), "it is not over");

        let finished = windows.take_finished(Duration::from_secs(110));
        let [window] = finished.as_slice() else { panic!("one window: {finished:?}") };
        assert_eq!((window.time_window_start, window.time_window_end, window.sample_count), (100.0, 110.0, 3));
        assert_eq!(window.current_mean, [3.0, -5.0]);
        assert_eq!(window.current_max, [5.0, -5.0]);
        assert!((window.current_std[0] - (8.0_f64 / 3.0).sqrt()).abs() < 1e-12, "{window:?}");
        assert_eq!(window.vibration_mean, Vibration { x: 1.0, y: 2.0, z: 3.0, magnitude: 4.0 });
        assert!(windows.take_finished(Duration::from_secs(111)).is_empty(), "each is taken once");
    }

    #[test]
    fn a_reading_without_room_is_told() {
        let windows = Windows::new(Duration::from_secs(10));
        for n in 0..=MAX_DEVICES {
            let data = SensorData { device_id: n.to_string(), ..reading(&[1.0]) };
            assert_eq!(windows.add(&data, Duration::from_secs(105)), n < MAX_DEVICES);
        }
    }

    #[test]
    fn a_reading_of_the_next_window_finishes_the_one_before() {
        let windows = Windows::new(Duration::from_secs(10));
        windows.add(&reading(&[1.0]), Duration::from_secs(105));
        windows.add(&reading(&[2.0]), Duration::from_secs(115));

        let finished = windows.take_finished(Duration::from_secs(115));
        assert_eq!(finished.len(), 1);
        assert_eq!(finished[0].current_mean, [1.0]);
    }

    #[tokio::test]
    async fn windows_that_end_together_are_all_asked_about_and_one_that_waited_too_long_is_not() {
        let places = Semaphore::new(AT_ONCE);
        let long = Duration::from_secs(60);
        let all = (0..5 * AT_ONCE).map(|_| in_turn(&places, long, tokio::task::yield_now));
        assert!(futures_util::future::join_all(all).await.into_iter().all(|asked| asked));

        places.forget_permits(AT_ONCE);
        assert!(!in_turn(&places, Duration::from_millis(1), async || panic!("there is no place")).await);
    }
}
