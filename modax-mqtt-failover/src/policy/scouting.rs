//! Whether and how a client asks the nodes of a cluster for themselves.

use std::{sync::Arc, time::Duration};

use crate::config::{ConfigError, check_topic};

/// The mean time from one scout to the next.
const EVERY: Duration = Duration::from_millis(150);

/// How a client in a cluster looks for a node that acknowledges, when its own connection gets no answer.
///
/// A cluster that elects a leader accepts connections and holds them: NATS blocks each one for 4 s with its first
/// CONNECT or QoS 1 PUBLISH, pings included, and then resets it. Whoever waits on one connection hears of the new
/// leader up to 4 s late. So short connections under derived identities (`<client id>~scout0` and so on: clean, without
/// subscriptions) publish one empty QoS 1 message each; as soon as one is acknowledged, the client itself goes there. They
/// are sent only while the client is without a broker that acknowledges, and at most four a node stand at a time.
///
/// While all is well each node gets one such connection a minute, without a message: a node that has never had an MQTT
/// client sets its sessions up first, and NATS cannot do that during an election.
///
/// The derived identities need the client's rights to connect and to publish to the topic. Where a broker refuses them
/// nothing breaks: the client then waits on its own connections.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Scouting {
    topic: Option<Arc<str>>,
    pub(crate) every: Duration,
}

impl Default for Scouting {
    /// As [`probing`](Self::probing). How much later than the first new connection to any node a client in a NATS cluster
    /// that had lost its node was acknowledged, in runs of ten kills on a busy machine: without scouts 0.1 to 3.3 s in the
    /// median and 3 to 19 s at worst; with them 0.02 to 0.27 s, and 0.4 to 5 s at worst.
    fn default() -> Self {
        Self::probing()
    }
}

impl Scouting {
    /// No scouts at all: no connection and no message beside the client's own.
    pub const fn none() -> Self {
        Self { topic: None, every: EVERY }
    }

    /// The default: topic `modax/probe`, one connection each 150 ms over all nodes: the client is then mostly less than
    /// 200 ms behind the cluster, and 500 clients open no more than 3,500 connections a second between them.
    pub fn probing() -> Self {
        Self { topic: Some(Arc::from("modax/probe")), every: EVERY }
    }

    /// Scouts, with this as the topic of the empty messages; default with [`probing`](Self::probing) `modax/probe`, of which nobody's commands or data are made.
    pub fn topic(mut self, topic: impl Into<Arc<str>>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    /// The mean time from one scout to the next; default 150 ms. A plant with thousands of clients takes more.
    pub fn every(mut self, interval: Duration) -> Self {
        self.every = interval;
        self
    }

    /// The topic, unless there are no scouts.
    #[must_use]
    pub fn probe_topic(&self) -> Option<&Arc<str>> {
        self.topic.as_ref()
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let error = |field, limit| Err(ConfigError::OutOfRange { field, limit });
        if self.topic.as_ref().is_some_and(|topic| check_topic(topic).is_err()) {
            return error("scouting.topic", "a topic without wildcards");
        }
        if self.every < Duration::from_millis(10) || self.every > Duration::from_secs(60) {
            return error("scouting.every", "10 ms to 60 s");
        }
        Ok(())
    }
}
