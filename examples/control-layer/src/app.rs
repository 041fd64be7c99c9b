//! What all parts of this instance share.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use modax_db_router::Router;
use modax_mqtt_failover::{Client, ConfigError, Selection};
use modax_txn::{IdempotencyKeys, Outbox, Schema};
use tokio::sync::broadcast;

use crate::{
    analysis::Windows,
    buffer::{Buffer, CAPACITY},
    config::{BadSetting, Config},
    metrics::Metrics,
    state::Plant,
};

/// Messages a WebSocket client may be behind before it misses some: a second of sixteen devices.
const LIVE_BUFFER: usize = 512;
/// The layer's write deadline unless a call says otherwise; one round of the writer.
const ACQUIRE_DEADLINE: Duration = Duration::from_secs(10);
/// An instance that is frozen in a transaction loses its locks after this: those of a device, of a command, of the order of all
/// commands. As long as the relay's lease runs, which it has lost by then as well.
const FROZEN_AFTER: Duration = Duration::from_secs(3);
/// Back to the preferred broker once it has been reachable for so long: the layers prefer different ones, and would
/// otherwise end up together on the one that was never broken. Longer than an election of NATS.
const FAILBACK_AFTER: Duration = Duration::from_secs(10);

/// One instance. Everything in it may be used from everywhere at once.
#[derive(Debug)]
pub struct App {
    /// As configured.
    pub config: Config,
    /// `config.instance_id`, shared.
    pub instance_id: Arc<str>,
    /// What is known now.
    pub plant: Plant,
    /// What waits for the database.
    pub buffer: Buffer,
    /// Windows being filled for the AI layer.
    pub windows: Windows,
    /// The database.
    pub router: Router,
    /// The brokers.
    pub mqtt: Client,
    /// The schema of outbox and idempotency keys.
    pub outbox_schema: Schema,
    /// Outgoing messages.
    pub outbox: Outbox,
    /// Callers' keys.
    pub keys: IdempotencyKeys,
    /// Live messages for WebSocket clients.
    pub live: broadcast::Sender<Arc<LiveMessage>>,
    /// What was counted.
    pub metrics: Metrics,
}

/// A message for WebSocket clients, rendered once for all of them.
#[derive(Debug)]
pub struct LiveMessage {
    /// About whom.
    pub device_id: String,
    /// The JSON text.
    pub text: String,
}

impl App {
    /// Puts the instance together; nothing needs to be up yet. Inside a tokio runtime.
    ///
    /// # Errors
    /// [`BadSetting`] names the variable that one of the parts refuses.
    pub fn new(config: Config) -> Result<Self, BadSetting> {
        let router = Router::builder(config.database_url.reveal())
            .map_err(|error| BadSetting::new("DATABASE_URL", error))?
            .acquire_deadline(ACQUIRE_DEADLINE)
            .idle_in_transaction_timeout(FROZEN_AFTER)
            .patroni(&config.patroni_urls)
            .map_err(|error| BadSetting::new("PATRONI_URLS", error))?
            .build()
            .map_err(|error| BadSetting::new("DATABASE_URL", error))?;
        let mut builder = Client::builder(&config.mqtt_client_id)
            .brokers(&config.mqtt_brokers)
            .map_err(|error| BadSetting::new("MQTT_BROKERS", error))?
            .topology(config.mqtt_topology)
            .selection(Selection::priority().failback_after(FAILBACK_AFTER))
            // A session without a name is never taken up again: left persistent it would queue on the broker for ever.
            .clean_session(!config.instance_is_named);
        if let Some(version) = config.mqtt_version {
            builder = builder.version(version);
        }
        if let Some((user, password)) = &config.mqtt_credentials {
            builder = builder.credentials(user, password.reveal());
        }
        if config.mqtt_tls.is_given() {
            builder = builder.tls(config.mqtt_tls.to_tls());
        }
        let mqtt = builder.build().map_err(|error| match error {
            ConfigError::Tls { .. } if config.mqtt_tls.is_given() => BadSetting::new(config.mqtt_tls.variable(), error),
            error => BadSetting::new("MQTT_BROKERS", error),
        })?;
        let outbox_schema = Schema::default();
        Ok(Self {
            instance_id: config.instance_id.as_str().into(),
            plant: Plant::new(config.safety_max_age, Instant::now()),
            buffer: Buffer::new(CAPACITY),
            windows: Windows::new(config.ai_window),
            outbox: Outbox::new(outbox_schema.clone()),
            keys: IdempotencyKeys::new(outbox_schema.clone()),
            outbox_schema,
            live: broadcast::channel(LIVE_BUFFER).0,
            metrics: Metrics::default(),
            router,
            mqtt,
            config,
        })
    }

    /// Tells WebSocket clients; costs nothing when there are none.
    pub fn tell_live<T: serde::Serialize>(&self, kind: &'static str, device_id: &str, data: &T) {
        if self.live.receiver_count() == 0 {
            return;
        }
        let text = serde_json::json!({"type": kind, "device_id": device_id, "data": data}).to_string();
        // No receiver is no error: the last one may just have left.
        let _ = self.live.send(Arc::new(LiveMessage { device_id: device_id.to_owned(), text }));
    }
}

/// Unix time now, for display and for the windows; nothing is decided by it.
pub fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Whether this is the first, second, fourth, eighth… time: for warnings about what may happen a thousand times a second.
pub const fn worth_a_line(count: u64) -> bool {
    count.is_power_of_two()
}
