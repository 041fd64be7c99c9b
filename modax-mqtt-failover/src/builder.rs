//! Describes a client before it starts.

mod transport;

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    client::Client,
    config::{Config, ConfigError, Topology},
    driver::{self, Ways},
    handover::{Handle, Shared},
    liveness::LivenessConfig,
    message::Message,
    observer::Observer,
    packet::{Credentials, Version},
    policy::{backoff::Backoff, scouting::Scouting, selection::Selection, standby::Standby},
    queue::Queue,
};

/// Describes a client. Each step returns the builder; [`build`](Self::build) checks it all at once.
///
/// ```
/// use std::time::Duration;
/// use modax_mqtt_failover::{Client, ConfigError, Message, Queue, Selection, WhenFull};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), ConfigError> {
/// let client = Client::builder("press-7")
///     .brokers(["mqtt://127.0.0.1:1884", "mqtt://127.0.0.1:1885"])?
///     .credentials("press-7", "secret")
///     .selection(Selection::priority().failback_after(Duration::from_secs(30)))
///     .queue(Queue::memory().max_messages(50_000).when_full(WhenFull::ShedOldest))
///     .will(Message::new("plant/press-7/alive", "no").retained())
///     .on_connect(Message::new("plant/press-7/alive", "yes").retained())
///     .build()?; // whether a broker is there or not
/// # drop(client);
///
/// let twice = Client::builder("press-7").brokers(["mqtt://a", "mqtt://a:1883"])?.build();
/// assert_eq!(twice.unwrap_err().to_string(), "brokers: a:1883 is there twice");
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use]
pub struct ClientBuilder {
    config: Config,
    ways: Ways,
    observer: Option<Arc<dyn Observer>>,
}

impl ClientBuilder {
    pub(crate) fn new(client_id: String) -> Self {
        Self { config: Config::new(client_id, Vec::new()), ways: Ways::default(), observer: None }
    }

    /// Adds brokers in order of preference: `mqtt://[user:password@]host[:1883][?version=5]`, or `mqtts://…host[:8883]` for
    /// TLS (with the feature `rustls`).
    ///
    /// # Errors
    /// [`ConfigError::Broker`] with the position of the first URL that was not understood.
    pub fn brokers<I, S>(mut self, urls: I) -> Result<Self, ConfigError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<str>,
    {
        self.config.add_brokers(urls)?;
        Ok(self)
    }

    /// Which MQTT to speak with all brokers; default [`Version::V311`], unless a broker's URL says `?version=5`. One that
    /// says something else is refused by [`build`](Self::build).
    pub fn version(mut self, version: Version) -> Self {
        self.config.version = Some(version);
        self
    }

    /// User name and password for brokers whose URL has none; default none, because many plants' brokers want none.
    /// Over plain TCP they are sent as they are.
    pub fn credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.config.credentials = Some(Credentials::new(user.into(), password.into()));
        self
    }

    /// How the brokers belong together; default [`Topology::Independent`], because assuming less is never wrong, only
    /// slower: taken for a cluster, an independent broker may hand out what an old session of ours has kept.
    pub fn topology(mut self, topology: Topology) -> Self {
        self.config.topology = topology;
        self
    }

    /// Which broker next; default [`Selection::priority`], so that all clients end up on one broker: independent ones pass
    /// nothing on to each other.
    pub fn selection(mut self, selection: Selection) -> Self {
        self.config.selection = selection;
        self
    }

    /// Whether another broker is held ready; default [`Standby::None`]: one that works is found in milliseconds without a
    /// second connection, which every client would add to what brokers carry.
    pub fn standby(mut self, standby: Standby) -> Self {
        self.config.standby = standby;
        self
    }

    /// Whether a client in a [cluster](Topology::Cluster) looks for the node that acknowledges first, with short
    /// connections beside its own; default [`Scouting::probing`].
    pub fn scouting(mut self, scouting: Scouting) -> Self {
        self.config.scouting = scouting;
        self
    }

    /// Whether the next broker's transport is opened beside one that has not opened within 200 ms; the first that stands
    /// gets the one CONNECT. Default `false`: one broker is dialled at a time, because a client should not burden the brokers
    /// that it does not use, and a transport that hangs costs a second in the first round.
    pub fn racing(mut self, racing: bool) -> Self {
        self.config.racing = racing;
        self
    }

    /// Whether each connection starts from nothing and its session ends with it (in MQTT 5: Clean Start, and no session
    /// expiry); default `false`: a broker keeps our session while we are away.
    pub fn clean_session(mut self, clean: bool) -> Self {
        self.config.clean_session = clean;
        self
    }

    /// How long a broker keeps our session while we are away (MQTT 5); default one hour, which outlives a restart or a
    /// repaired link, and does not make a broker that was left gather messages for days. Whole seconds up to
    /// `u32::MAX`, which stands for ever.
    pub fn session_expiry(mut self, time: Duration) -> Self {
        self.config.session_expiry = Some(time);
        self
    }

    /// QoS 1 and 2 messages a broker may send without an acknowledgement (MQTT 5); default 65535, as in 3.1.1: brokers
    /// bound it themselves. A program that acknowledges in groups needs room for one.
    pub fn receive_maximum(mut self, messages: u16) -> Self {
        self.config.receive_maximum = messages;
        self
    }

    /// The largest packet a broker may send us, in bytes (MQTT 5); default any, because a broker drops a larger one
    /// without a word. At least 1024. It is announced and no more: what a broker sends against it is delivered.
    pub fn max_packet_bytes(mut self, bytes: u32) -> Self {
        self.config.max_packet_bytes = Some(bytes);
        self
    }

    /// What the broker is told; default 60 s, the usual one: a broker that hears nothing for one and a half times as long
    /// takes us for dead. Whole seconds up to 65535, 0 switches it off. How fast this client notices a dead broker does not
    /// depend on it: see [`liveness`](Self::liveness).
    pub fn keep_alive(mut self, keep_alive: Duration) -> Self {
        self.config.keep_alive = keep_alive;
        self
    }

    /// Unacknowledged publishes on the wire; default 100, which fills a link of 20 ms round trip at 5000 messages a
    /// second. A broker of MQTT 5 says how many it takes, and is given no more. One of 3.1.1 cannot say: of QoS 2 it is given
    /// 8 at once whatever stands here, because mosquitto takes 20 by default and drops what is more with an acknowledgement.
    ///
    /// While 64 or more are at the broker and no other may be sent, acknowledgements gather for 0.4 µs for each of them, at most
    /// 100 µs and what the runtime needs to look at its timers, before they and the messages between them are read, unless a
    /// publish or a reader wakes the client: one at a time they cost more than the messages. On Linux, over TCP or TLS; not
    /// over a [`connector`](Self::connector).
    ///
    /// More than 65,000 is taken for 65,000: the rest of the 65,535 packet identifiers is for subscriptions.
    pub fn max_inflight(mut self, messages: u16) -> Self {
        self.config.max_inflight = messages;
        self
    }

    /// How much may wait; default [`Queue::memory`], because a directory cannot be guessed.
    pub fn queue(mut self, queue: Queue) -> Self {
        self.config.queue = queue;
        self
    }

    /// How a silent broker is found out; the defaults find one within 500 ms under traffic, 1.5 s when idle.
    pub fn liveness(mut self, liveness: LivenessConfig) -> Self {
        self.config.liveness = liveness;
        self
    }

    /// Waits between tries of one broker; default 100 ms doubling to 2 s, with full jitter. The first try of another broker
    /// is made at once and by all clients together: [`Backoff`] says what that means for [a herd](Backoff#a-herd) of them.
    pub fn retry(mut self, backoff: impl Into<Backoff>) -> Self {
        self.config.retry = backoff.into();
        self
    }

    /// After how many connections in a row that brokers closed on one message, sent alone, that message is
    /// [rejected](crate::Rejection::ClosesConnection); `None` for never: then it is sent until it expires, what is
    /// behind it waits, and from the third connection on it may look like another client with our identity
    /// ([`Event::DuplicateClientId`](crate::Event::DuplicateClientId): few tries then, in the end one in 30 s). Default 3: one may be a broker that happens to die, three, each after a quiet time, are none; and
    /// what is behind waits for some seconds only. The crate's section *A message on which brokers close the connection*
    /// says what has to be true of those connections.
    pub fn reject_after_closes(mut self, connections: impl Into<Option<u32>>) -> Self {
        self.config.reject_after_closes = connections.into();
        self
    }

    /// Published by the broker when we vanish without goodbye; default none. A broker that is left in a failover publishes it too,
    /// although we live on elsewhere: at once in 3.1.1, after [`will_delay`](Self::will_delay) in MQTT 5.
    pub fn will(mut self, will: Message) -> Self {
        self.config.will = Some(will);
        self
    }

    /// Said first on each connection, before any other message; default none. Usually [retained](Message::retained) and on the
    /// topic of the will, which it contradicts: the client then watches for its own will, and says this again when a broker
    /// publishes it although the client lives (it was left in a failover, or took an old connection for the present one).
    /// A client that is closed says nothing more: publish the farewell before, if there is to be one.
    ///
    /// At most QoS 1, and another payload than the will's. Where both have one topic, that can be subscribed to: no control
    /// character, no non-character, at most 200 levels.
    pub fn on_connect(mut self, message: Message) -> Self {
        self.config.on_connect = Some(message);
        self
    }

    /// How long a broker waits with the will for us to come back (MQTT 5); default 10 s, longer than a failover. Whole
    /// seconds. A session that ends sooner ends the wait, so with `clean_session` there is none.
    pub fn will_delay(mut self, time: Duration) -> Self {
        self.config.will_delay = Some(time);
        self
    }

    /// Whether each message with QoS 1 or 2 gets the user property `modax-id` (MQTT 5), by which a
    /// [`Dedup`](crate::dedup::Dedup) knows its copies: client id, a random epoch of this start, and the number of the
    /// message. Default `false`: it is about 40 bytes and a client id that every subscriber sees, and nothing is added to
    /// a message unasked.
    ///
    /// A message keeps it through failovers and, in a queue on disk, through restarts. A property of that name which the
    /// program has set itself stays as it is. A later start of the same queue in 3.1.1 sends what it finds there without.
    pub fn stamping(mut self, stamping: bool) -> Self {
        self.config.stamping = stamping;
        self
    }

    /// Hears every event and every outcome as it happens; default nobody. For counting and metrics; a program that waits for
    /// events reads [`Client::events`].
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Starts the client. Returns whether a broker is there or not: at once with a queue in memory. A queue on disk is read
    /// first, on this thread, which takes as long as its files are large and the disk is slow.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that is contradictory, or the file that TLS cannot use; or
    /// [`ConfigError::NoRuntime`].
    pub fn build(self) -> Result<Client, ConfigError> {
        self.config.check()?;
        let version = self.config.speaks();
        let shared = Shared::new(&self.config, self.observer);
        driver::spawn(self.config, self.ways, Arc::clone(&shared))?;
        Ok(Client::new(Arc::new(Handle { version, shared })))
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder").field("config", &self.config).field("ways", &self.ways).finish_non_exhaustive()
    }
}
