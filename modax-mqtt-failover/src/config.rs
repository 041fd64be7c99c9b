//! What a client is made of: brokers, limits and times, each with its default and why.

mod topic;

use std::{sync::Arc, time::Duration};

pub use topic::{TopicError, check_filter, check_topic};

use crate::{
    broker::{Address, AddressError, Broker},
    dedup::Identity,
    liveness::LivenessConfig,
    message::Message,
    packet::{Credentials, Qos, Version},
    policy::{backoff::Backoff, scouting::Scouting, selection::Selection, standby::Standby},
    queue::Queue,
};

/// How the brokers belong together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Topology {
    /// Each keeps its own sessions and messages. The default: assuming less is never wrong, only slower.
    #[default]
    Independent,
    /// They share sessions: one that still has ours may be any of them.
    Cluster,
}

/// Which field contradicts what.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A URL in `brokers` was not understood. `position` counts from 0; the URL may hold a password and is not shown.
    #[error("brokers[{position}]: {reason}")]
    Broker {
        /// Which of them.
        position: usize,
        /// What is wrong with it.
        reason: AddressError,
    },
    /// `brokers` is empty.
    #[error("brokers: at least one is needed")]
    NoBrokers,
    /// `brokers` holds the same one twice.
    #[error("brokers: {broker} is there twice")]
    RepeatedBroker {
        /// Which one.
        broker: Broker,
    },
    /// `client_id` is empty (without an identity there is no session to come back to), longer than 65535 bytes, or holds a
    /// NUL character.
    #[error("client_id: must be 1 to 65535 bytes without a NUL character")]
    ClientId,
    /// A field is outside its limits.
    #[error("{field}: {limit}")]
    OutOfRange {
        /// Which field.
        field: &'static str,
        /// What it allows.
        limit: &'static str,
    },
    /// A broker's URL asks for another version of MQTT than the others, or than `version` does.
    #[error("version: {broker} asks for {asked}, and the client speaks {speaks}")]
    Version {
        /// The first that differs.
        broker: Broker,
        /// What its URL says.
        asked: Version,
        /// What `version`, or an earlier URL, says.
        speaks: Version,
    },
    /// A field that only MQTT 5 can carry, and the client speaks 3.1.1.
    #[error("{field}: needs MQTT 5")]
    NeedsVersion5 {
        /// Which field.
        field: &'static str,
    },
    /// The message said on each connection contradicts itself or the will.
    #[error("on_connect: {reason}")]
    OnConnect {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// `session_expiry` says how long a session lasts, and `clean_session` that it ends with the connection.
    #[error("session_expiry: contradicts clean_session")]
    CleanSession,
    /// The will is not a message a broker can publish.
    #[error("will: {reason}")]
    Will {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The disk queue could not be opened, and nothing of it was sent: another process has it, it cannot be written to,
    /// or it holds messages with user properties and this client speaks MQTT 3.1.1, which cannot carry them.
    #[error("queue: {reason}")]
    Queue {
        /// Which directory, and what stands in the way.
        reason: String,
    },
    /// TLS cannot be had as asked for. Names the file, or the broker; never shows what is in a key.
    #[error("tls: {reason}")]
    Tls {
        /// What is wrong with which.
        reason: String,
    },
    /// `build` was called outside a tokio runtime.
    #[error("build() needs a tokio runtime around it")]
    NoRuntime,
}

/// All that the machines need to know; made by [`ClientBuilder`](crate::ClientBuilder), or by hand for a driver of
/// your own.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Identity of the session; no default, because two live clients with one identity throw each other out.
    pub client_id: Arc<str>,
    /// In order of preference; no default, because nobody but the caller knows them.
    pub brokers: Vec<Broker>,
    /// Of each broker, in the same order; default none, and then [`credentials`](Self::credentials) are used.
    pub broker_credentials: Vec<Option<Credentials>>,
    /// The versions named in the URLs, in the order of `brokers`; default none.
    pub broker_versions: Vec<Option<Version>>,
    /// Which MQTT is spoken with all brokers; default none, which is what a URL says, else 3.1.1: every broker knows it.
    pub version: Option<Version>,
    /// For brokers without their own; default none, because many plants' brokers want none.
    pub credentials: Option<Credentials>,
    /// Default [`Topology::Independent`]: assuming less is never wrong, only slower.
    pub topology: Topology,
    /// Default [`Selection::priority`], so that all clients end up on one broker.
    pub selection: Selection,
    /// Default [`Standby::None`]: a second connection of every client doubles what the brokers carry.
    pub standby: Standby,
    /// Only in a cluster; default [`Scouting::probing`], because waiting on one connection costs seconds in an election.
    pub scouting: Scouting,
    /// Whether transports to several brokers are opened side by side; default `false`: brokers that are not used
    /// should not be burdened.
    pub racing: bool,
    /// Default `false`: a broker keeps our session while we are away, so that a short break loses nothing.
    pub clean_session: bool,
    /// Told to the broker in CONNECT, whole seconds up to 65535, 0 for never; default 60, the usual one: a broker notices
    /// within 90 s that we are gone. How fast *we* notice is [`LivenessConfig`]'s.
    pub keep_alive: Duration,
    /// Unacknowledged publishes on the wire; default 100, which fills a link with 20 ms round trip at 5000 msg/s. More
    /// than 65,000 is taken for 65,000: other packet identifiers are for subscriptions.
    pub max_inflight: u16,
    /// Limits of what waits; default [`Queue::memory`], because a directory cannot be guessed.
    pub queue: Queue,
    /// How a silent broker is found out; default: within 500 ms under traffic, see [`LivenessConfig`].
    pub liveness: LivenessConfig,
    /// Waits between tries; default 100 ms doubling to 2 s with full jitter, see [`Backoff`].
    pub retry: Backoff,
    /// How long a broker keeps our session while we are away (MQTT 5), in whole seconds up to `u32::MAX`, which stands for
    /// ever; default none, which is one hour: longer than a restart or a repaired link, and short enough that a broker
    /// we have left does not gather messages for days. With `clean_session` it is zero.
    pub session_expiry: Option<Duration>,
    /// QoS 1 and 2 messages that a broker may send without an acknowledgement (MQTT 5); default 65535, the protocol's own
    /// bound and that of 3.1.1: brokers bound it themselves. A program that acknowledges in groups needs room for one.
    pub receive_maximum: u16,
    /// The largest packet a broker may send us, in bytes (MQTT 5); default none, because a broker drops a larger one
    /// without a word. It is announced and no more: what a broker sends against it is delivered.
    pub max_packet_bytes: Option<u32>,
    /// Said first on each connection, before any other message; default none. Usually retained and on the topic of the will,
    /// which it then contradicts: the will is watched for, and this said again when a broker publishes it although we
    /// live. At most QoS 1, and another payload than the will's. Where both have one topic, that can be subscribed to
    /// ([`check_filter`]).
    pub on_connect: Option<Message>,
    /// How long a broker waits with the will for us to come back (MQTT 5), in whole seconds; default none, which is 10 s:
    /// longer than a failover, so that a client that lives on elsewhere or comes back is not mourned.
    pub will_delay: Option<Duration>,
    /// After how many connections in a row that brokers closed on one message, sent alone, that message is rejected;
    /// `None` for never. Default 3: see [`ClientBuilder::reject_after_closes`](crate::ClientBuilder::reject_after_closes).
    pub reject_after_closes: Option<u32>,
    /// Published by the broker when we vanish without goodbye; default none, because a broker that is left in a failover
    /// publishes it although we live on elsewhere.
    pub will: Option<Message>,
    /// Whether each message with QoS 1 or 2 gets a user property that says which it is (MQTT 5); default `false`: nothing
    /// is added to a message unasked.
    pub stamping: bool,
    /// Seeds the jitter; default 0, for which the driver takes a random one, so that clients spread out.
    pub seed: u64,
}

impl Config {
    /// The defaults for this identity and these brokers.
    #[must_use]
    pub fn new(client_id: impl Into<Arc<str>>, brokers: Vec<Broker>) -> Self {
        Self {
            client_id: client_id.into(),
            broker_credentials: vec![None; brokers.len()],
            broker_versions: vec![None; brokers.len()],
            version: None,
            brokers,
            credentials: None,
            topology: Topology::default(),
            selection: Selection::default(),
            standby: Standby::default(),
            scouting: Scouting::default(),
            racing: false,
            clean_session: false,
            keep_alive: Duration::from_secs(60),
            max_inflight: 100,
            queue: Queue::default(),
            liveness: LivenessConfig::default(),
            retry: Backoff::default(),
            reject_after_closes: Some(3),
            will: None,
            session_expiry: None,
            receive_maximum: u16::MAX,
            max_packet_bytes: None,
            will_delay: None,
            on_connect: None,
            stamping: false,
            seed: 0,
        }
    }

    /// The defaults for this identity and the brokers of these URLs.
    ///
    /// # Errors
    /// [`ConfigError::Broker`] with the position of the first URL that was not understood.
    pub fn from_urls<I, S>(client_id: impl Into<Arc<str>>, urls: I) -> Result<Self, ConfigError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<str>,
    {
        let mut config = Self::new(client_id, Vec::new());
        config.add_brokers(urls)?;
        Ok(config)
    }

    /// Adds brokers from their URLs, in order of preference.
    pub(crate) fn add_brokers<I, S>(&mut self, urls: I) -> Result<(), ConfigError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<str>,
    {
        for (position, url) in urls.into_iter().enumerate() {
            let address = Address::parse(url.as_ref()).map_err(|reason| ConfigError::Broker { position, reason })?;
            self.brokers.push(address.broker);
            self.broker_credentials.push(address.credentials);
            self.broker_versions.push(address.version);
        }
        Ok(())
    }

    /// The version spoken with all brokers: `version`, else what the first URL that names one says, else 3.1.1.
    #[must_use]
    pub fn speaks(&self) -> Version {
        let named = self.broker_versions.iter().copied().flatten().next();
        self.version.or(named).unwrap_or_default()
    }

    /// What CONNECT says of the session's life.
    pub(crate) fn session_expiry_seconds(&self) -> u32 {
        if self.clean_session { 0 } else { whole_seconds(self.session_expiry.unwrap_or(SESSION_EXPIRY)) }
    }

    /// What CONNECT says of the will's delay.
    pub(crate) fn will_delay_seconds(&self) -> u32 {
        whole_seconds(self.will_delay.unwrap_or(WILL_DELAY))
    }

    fn check_version(&self, speaks: Version) -> Result<(), ConfigError> {
        let said_properties = self.on_connect.as_ref().is_some_and(|said| !said.user_properties.is_empty());
        let will_properties = self.will.as_ref().is_some_and(|will| !will.user_properties.is_empty());
        // 3.1.1 has no place for one (MQTT-3.1.2-22): brokers would close, and not say why.
        let nameless = |pair: &Option<Credentials>| {
            pair.as_ref().is_some_and(|pair| pair.user().is_empty() && !pair.password().is_empty())
        };
        let nameless = nameless(&self.credentials) || self.broker_credentials.iter().any(nameless);
        let only_in_5 = [
            ("a password without a user name", nameless),
            ("session_expiry", self.session_expiry.is_some()),
            ("receive_maximum", self.receive_maximum < u16::MAX),
            ("max_packet_bytes", self.max_packet_bytes.is_some()),
            ("will_delay", self.will_delay.is_some()),
            ("stamping", self.stamping),
            ("will.user_properties", will_properties),
            ("on_connect.user_properties", said_properties),
        ];
        match only_in_5.into_iter().find(|(_, used)| *used) {
            Some((field, _)) if speaks == Version::V311 => return Err(ConfigError::NeedsVersion5 { field }),
            Some(_) | None => {}
        }
        if self.clean_session && self.session_expiry.is_some_and(|time| !time.is_zero()) {
            return Err(ConfigError::CleanSession);
        }
        let range = |holds, field, limit| if holds { Ok(()) } else { Err(ConfigError::OutOfRange { field, limit }) };
        range(self.will.is_some() || self.will_delay.is_none(), "will_delay", "only with a will")?;
        // What is longer than the protocol can say stands for the longest.
        let whole = |time: Option<Duration>| {
            time.is_none_or(|time| time.subsec_nanos() == 0 || time.as_secs() > u32::MAX.into())
        };
        range(whole(self.session_expiry), "session_expiry", "whole seconds")?;
        range(whole(self.will_delay), "will_delay", "whole seconds")?;
        range(self.receive_maximum > 0, "receive_maximum", "at least 1")?;
        let stamp_fits = self.client_id.len() <= Identity::MAX_BYTES.saturating_sub(Identity::NUMBERS_BYTES);
        range(stamp_fits || !self.stamping, "client_id", "at most 986 bytes, to be part of an identity")?;
        range(self.max_packet_bytes.is_none_or(|bytes| bytes >= 1024), "max_packet_bytes", "at least 1024")
    }

    fn check_credentials(&self) -> Result<(), ConfigError> {
        let fit = |pair: &Credentials| is_text(pair.user()) && u16::try_from(pair.password().len()).is_ok();
        let unfit = |pair: &Option<Credentials>| pair.as_ref().is_some_and(|pair| !fit(pair));
        if let Some(position) = self.broker_credentials.iter().position(unfit) {
            return Err(ConfigError::Broker { position, reason: AddressError::Unsendable });
        }
        let limit = "at most 65535 bytes each, and no NUL character in the user name";
        if unfit(&self.credentials) { Err(ConfigError::OutOfRange { field: "credentials", limit }) } else { Ok(()) }
    }

    fn check_on_connect(&self) -> Result<(), ConfigError> {
        let Some(said) = &self.on_connect else { return Ok(()) };
        let refuse = |holds, reason| if holds { Ok(()) } else { Err(ConfigError::OnConnect { reason }) };
        refuse(check_topic(&said.topic).is_ok(), "topic is empty, too long or holds a wildcard")?;
        refuse(said.user_properties.check().is_ok(), "a user property is too long or holds a NUL character")?;
        refuse(said.qos <= Qos::AtLeastOnce, "at most QoS 1")?;
        refuse(said.expires_in.is_none(), "never expires: it is said again on each connection")?;
        let Some(will) = self.will.as_ref().filter(|will| will.topic == said.topic) else { return Ok(()) };
        refuse(will.payload != said.payload, "says the same as the will")?;
        // It is watched on each connection.
        refuse(check_filter(&said.topic).is_ok(), "topic is the will's as well, and cannot be subscribed to")
    }

    /// Finds contradictions.
    ///
    /// # Errors
    /// [`ConfigError`] names the field.
    pub fn check(&self) -> Result<(), ConfigError> {
        let range = |holds, field, limit| if holds { Ok(()) } else { Err(ConfigError::OutOfRange { field, limit }) };
        if self.client_id.is_empty() || !is_text(&self.client_id) {
            return Err(ConfigError::ClientId);
        }
        if self.brokers.is_empty() {
            return Err(ConfigError::NoBrokers);
        }
        for (position, broker) in self.brokers.iter().enumerate() {
            if self.brokers.iter().take(position).any(|other| other == broker) {
                return Err(ConfigError::RepeatedBroker { broker: broker.clone() });
            }
        }
        let speaks = self.speaks();
        for (broker, asked) in self.brokers.iter().zip(&self.broker_versions) {
            if let Some(asked) = asked.filter(|asked| *asked != speaks) {
                return Err(ConfigError::Version { broker: broker.clone(), asked, speaks });
            }
        }
        self.check_version(speaks)?;
        self.check_credentials()?;
        self.check_on_connect()?;
        let keep_alive = self.keep_alive.subsec_nanos() == 0 && u16::try_from(self.keep_alive.as_secs()).is_ok();
        range(keep_alive, "keep_alive", "whole seconds, at most 65535")?;
        range(self.max_inflight > 0, "max_inflight", "at least 1")?;
        range(self.reject_after_closes != Some(0), "reject_after_closes", "at least 1")?;
        range(self.queue.max_messages > 0, "queue.max_messages", "at least 1")?;
        range(self.queue.fsync_every <= Duration::from_secs(10), "queue.fsync_every", "at most 10 s")?;
        range(self.queue.max_bytes > Message::OVERHEAD_BYTES, "queue.max_bytes", "more than 128, one empty message")?;
        self.liveness.check()?;
        self.retry.check()?;
        self.scouting.check()?;
        self.selection.check()?;
        match &self.will {
            Some(will) if check_topic(&will.topic).is_err() => {
                Err(ConfigError::Will { reason: "topic is empty, too long or holds a wildcard" })
            }
            Some(will) if will.user_properties.check().is_err() => {
                Err(ConfigError::Will { reason: "a user property is too long or holds a NUL character" })
            }
            Some(will) if will.payload.len() > usize::from(u16::MAX) => {
                Err(ConfigError::Will { reason: "payload is longer than 65535 bytes" })
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// A session outlives a restart or a repaired link, and not a move to another broker for long.
const SESSION_EXPIRY: Duration = Duration::from_secs(3600);
/// Longer than a failover.
const WILL_DELAY: Duration = Duration::from_secs(10);

/// Whether a string field of a packet can carry it (MQTT 3.1.1, 1.5.3).
fn is_text(text: &str) -> bool {
    u16::try_from(text.len()).is_ok() && !text.contains('\0')
}

fn whole_seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}
